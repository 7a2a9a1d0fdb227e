"""What an interrupted training goes on from: a file beside the one that it will write."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path

import torch

from edgeq.errors import UsageError
from edgeq.files import atomic_write
from edgeq.training.loop import Epoch, State


def place_of(out: Path) -> Path:
    """Where it lies."""
    return out.with_name(f"{out.name}.checkpoint")


def write_checkpoint(path: Path, key: str, state: State) -> None:
    """
    Args:
        key: hash of all that decides how the training goes.
    """
    stream = io.BytesIO()
    torch.save({"key": key, **asdict(state), "epochs": [tuple(one) for one in state.epochs]}, stream)
    atomic_write(path, stream.getvalue())


def read_checkpoint(path: Path, key: str) -> State | None:
    """The state to go on from; None where there is none.

    Raises:
        UsageError: it is damaged, or of another training.
    """
    if not path.is_file():
        return None
    remedy = f"remove {path.name} to begin anew, or write to another --out"
    try:
        held = torch.load(path, weights_only=True)
        found = held.pop("key")
        state = State(**{**held, "epochs": [Epoch(*one) for one in held["epochs"]]})
    except Exception as error:
        raise UsageError("the checkpoint is damaged", where=path.name, remedy=remedy) from error
    if found != key:
        cause = "the checkpoint is of another training: model, plan, data or options differ"
        raise UsageError(cause, where=path.name, remedy=remedy)
    return state
