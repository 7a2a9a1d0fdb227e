"""What is known of a graph node's value before it is computed: its sizes and its type.

A program that was traced has PyTorch's fake tensors there. Making them takes PyTorch's compiler, seconds of imports: a
program that the cache kept has a `Value`, which says the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.fx import Node


@dataclass(frozen=True)
class Free:
    """A size that the caller's data decides: `factor` times `symbol`, which is often the batch.

    Attributes:
        traced: what it was when the graph was made.
    """

    factor: int
    symbol: str
    traced: int


@dataclass(frozen=True)
class Value:
    """A tensor without its numbers."""

    dtype: torch.dtype
    shape: tuple[int | Free, ...]


Described: TypeAlias = torch.Tensor | Value


def tensor_of(node: Node) -> Described | None:
    """What is known of the single tensor that a node gives; None where it gives anything else."""
    value = node.meta.get("val")
    return value if isinstance(value, Described) else None


def traced_size(size: Any) -> int:
    """A size of a shape; one that is free counts as it was when the graph was made."""
    if isinstance(size, int | Free):
        return size if isinstance(size, int) else size.traced
    return int(size.node.hint or 1)
