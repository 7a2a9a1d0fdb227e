"""A language model of which little learns: what learns, what stays, and how both become one model again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn


class Adapted(NamedTuple):
    """
    Attributes:
        model: takes `input_ids`, and gives `logits`.
        learned: by name in the model's `state_dict`, what learns.
        merged: puts float layers, with what was learned in them, in the place of packed ones; gives a model that
            transformers saves. What is packed is gone then.
        beside: writes what was learned alone into a folder; None where nothing reads that.
    """

    model: nn.Module
    learned: dict[str, nn.Parameter]
    merged: Callable[[], Any]
    beside: Callable[[Path], None] | None = None


def frozen(adapted: Adapted) -> str:
    """SHA-256 over all that does not learn, to the bit: packed integers, their scales, and what is float."""
    digest = hashlib.sha256()
    for name, value in sorted(adapted.model.state_dict().items()):
        if name not in adapted.learned:
            digest.update(f"{name}\0{value.dtype}\0{list(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def exchanged(model: nn.Module, new: Callable[[str, nn.Module], nn.Module | None]) -> None:
    """Puts other layers in the places of a model's layers, those of a packed layer's own inside left alone.

    Args:
        new: is given the name of a layer and itself; None for one that stays.
    """

    def walk(parent: nn.Module, prefix: str) -> None:
        for name, child in list(parent.named_children()):
            other = new(prefix + name, child)
            if other is None:
                walk(child, f"{prefix}{name}.")
            else:
                setattr(parent, name, other)

    walk(model, "")


def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A float layer of these values: [outputs, inputs], [outputs]."""
    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer
