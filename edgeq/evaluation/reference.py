"""What the float model answers: what every artefact is compared with."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from edgeq.data.dataset import Dataset
from edgeq.errors import UnsupportedError
from edgeq.evaluation.measure import Array
from edgeq.model.batches import batches, side_by_side
from edgeq.model.execute import execute
from edgeq.model.model import Model
from edgeq.progress import Progress

TRIED = 4
"""Samples that are run by themselves and together, before the others are run together."""


def reference_outputs(model: Model, data: Dataset, progress: Progress) -> list[Array]:
    """The float model's outputs, [N, ...] each, from the program as it was loaded: not folded, not exported.

    Samples go through it together only where those of the data that are tried give the same by themselves.

    Raises:
        UnsupportedError: an output has another shape for each sample.
    """
    program = model.reference()

    def run(batch: list[torch.Tensor]) -> tuple[int, list[torch.Tensor]]:
        return len(batch[0]) if model.inputs[0].batched else 1, execute(program, [batch])[0]

    few = data.first(TRIED)
    together = model.batchable and _same(
        (outputs for _, outputs in map(run, batches(model, few, TRIED))),
        (outputs for _, outputs in map(run, batches(model, few, 1))),
    )
    parts: list[list[torch.Tensor]] = []
    done = 0
    for samples, outputs in side_by_side(run, batches(model, data.inputs, None if together else 1)):
        parts.append(outputs)
        done += samples
        progress.step(done, len(data))
    columns = zip(model.output_names, zip(*parts, strict=True), strict=True)
    return [_stack(name, column, len(data), together=together) for name, column in columns]


def _same(together: Iterable[list[torch.Tensor]], alone: Iterable[list[torch.Tensor]]) -> bool:
    """Whether all outputs of all samples are the same but for rounding."""
    try:
        wholes, parts = ([torch.cat(column) for column in zip(*rows, strict=True)] for rows in (together, alone))
    except (RuntimeError, IndexError, ValueError, TypeError):  # sizes or states that do not follow the batch
        return False
    return all(
        one.shape == whole.shape and torch.allclose(one, whole, rtol=1e-3, atol=1e-4 * _largest(one), equal_nan=True)
        for whole, one in zip(wholes, parts, strict=True)
    )


def _largest(values: torch.Tensor) -> float:
    finite = values[torch.isfinite(values)].double().abs()
    return max(1e-6, float(finite.max())) if finite.numel() else 1e-6


def _stack(name: str, parts: tuple[torch.Tensor, ...], samples: int, *, together: bool) -> Array:
    """One output of all samples: of batches, or of single samples, whose batch axis of 1 is theirs."""
    if len({part.shape[1 if together else 0 :] for part in parts}) > 1:
        raise UnsupportedError(
            "its shape differs between samples, and no artefact here can give such outputs",
            where=f"output {name}",
            remedy="give samples of one size, or take this output away",
        )
    single = not together and not all(part.dim() and len(part) == 1 for part in parts)
    whole = torch.stack(parts) if single else torch.cat(parts)
    return np.ascontiguousarray(whole.numpy())
