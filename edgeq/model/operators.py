"""From the names in a graph to PyTorch's operators and constants: those of ATen that only compute, and arithmetic on
sizes. A cache may be shared, and a name in it is no more trusted than a user's file."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

from edgeq.errors import UnsupportedError
from edgeq.model.graph import Named, Program
from edgeq.model.names import ATEN, CONSTANTS, OPERATORS


def operator_of(program: Program, target: str) -> Callable[..., Any]:
    """The operator of a name.

    Raises:
        UnsupportedError: there is none that only computes.
    """
    held: Callable[..., Any] | None = program.functions.get(target)
    if held is not None:
        return held
    owner, _, rest = target.partition(".")
    if owner == "operator" and rest in OPERATORS:
        found: Callable[..., Any] = getattr(operator, rest)
        return found
    parts = ATEN.fullmatch(target)
    overload = parts and getattr(getattr(torch.ops.aten, parts[1], None), parts[2], None)
    if isinstance(overload, OpOverload) and not overload._schema.is_mutable:
        return overload
    raise UnsupportedError(
        f"there is no operator {target!r} that only computes",
        remedy="if the model was read from the cache, empty that: edgeq cache clear",
    )


def constant_of(named: Named) -> Any:
    """PyTorch's constant of a name."""
    if named.name not in CONSTANTS:
        raise UnsupportedError(f"there is no constant {named.name!r}", remedy="edgeq cache clear")
    return torch.device(named.name) if named.name == "cpu" else getattr(torch, named.name.removeprefix("torch."))
