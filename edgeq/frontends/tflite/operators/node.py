"""What a function of this folder is told of the operator that it computes, and in which order it gets axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edgeq.errors import UnsupportedError

Tensor = torch.Tensor
Known = NDArray[Any]


class Node(NamedTuple):
    """
    Attributes:
        op: the operator's name in the schema.
        options: its table of options; None where it has none.
        outputs: how many results it has.
        turned: whether its arguments are held with their channels first.
    """

    op: str
    options: Any
    outputs: int
    turned: bool = False

    def axis(self, number: int) -> int:
        """Where an axis of the file's is, of a value that may be held otherwise."""
        return (0, 2, 3, 1)[number % 4] if self.turned else number


class Turned(NamedTuple):
    """A value that the file has as [batch, height, width, channels], held as PyTorch's layers want it: [batch,
    channels, height, width]."""

    held: Tensor


class Operator(NamedTuple):
    """
    Attributes:
        run: takes the node and its arguments, in the schema's order; None for one that is left out.
        known: positions of the arguments that come as NumPy arrays, since they say how to compute and not on what.
        turned: how it takes `Turned` values: `layer` turns its first argument and gives such a result, `each` computes
            value by value and does not care, `axes` asks the node for them, `no` gets all as the file has them.
    """

    run: Callable[..., Any]
    known: frozenset[int] = frozenset()
    turned: str = "no"


Table = dict[str, Operator]
"""By the names of operators."""


def as_filed(value: Any) -> Any:
    """A value with its axes in the file's order."""
    return value.held.permute(0, 2, 3, 1) if isinstance(value, Turned) else value


def channels_first(value: Any) -> Tensor:
    """A value of four axes as layers want it."""
    found: Tensor = value.held if isinstance(value, Turned) else value.permute(0, 3, 1, 2)
    return found


def compute(operator: Operator, node: Node, *given: Any) -> Any:
    """What an operator makes of its arguments."""
    if operator.turned == "layer":
        first, *rest = given
        return Turned(operator.run(node, channels_first(first), *rest))
    any_turned = any(isinstance(one, Turned) for one in given)
    if operator.turned == "each" and any_turned and all(isinstance(one, Turned) or _fits(one) for one in given):
        return Turned(operator.run(node, *map(_alike, given)))
    tensors = [one for one in given if isinstance(one, Turned | Tensor)]
    if operator.turned == "axes" and any_turned and all(isinstance(one, Turned) for one in tensors):
        found = operator.run(
            node._replace(turned=True), *(one.held if isinstance(one, Turned) else one for one in given)
        )
        return Turned(found) if found.dim() == 4 else found
    return operator.run(node, *map(as_filed, given))


def whole(values: Any) -> list[Any]:
    """Sizes, axes and the like as Python's integers; symbols stay."""
    flat = np.asarray(values, dtype=object).reshape(-1)
    return [one if isinstance(one, torch.SymInt) else int(one) for one in flat]


def refused(what: str) -> UnsupportedError:
    """The error for a form of an operator that is not computed here."""
    return UnsupportedError(what, remedy="export the model without it, or give the program of torch.export")


def _fits(one: Any) -> bool:
    return not isinstance(one, Tensor) or one.dim() in (0, 1, 4)


def _alike(one: Any) -> Any:
    if isinstance(one, Turned):
        return one.held
    if isinstance(one, Tensor) and one.dim() == 4:
        return one.permute(0, 3, 1, 2)
    return one.reshape(-1, 1, 1) if isinstance(one, Tensor) and one.dim() == 1 and one.numel() > 1 else one
