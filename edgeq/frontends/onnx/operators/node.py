"""What a function of this folder is told of the node that it computes, and how it says what it needs to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edgeq.errors import UnsupportedError


class Node(NamedTuple):
    """
    Attributes:
        op: the operator's name in the standard.
        attributes: numbers, texts, lists of them, or arrays.
        opset: the version of the standard's operators: some have changed their meaning.
        outputs: how many results are asked for.
    """

    op: str
    attributes: Mapping[str, Any]
    opset: int
    outputs: int

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or what the standard says where there is none."""
        return self.attributes.get(name, default)


class Operator(NamedTuple):
    """
    Attributes:
        run: takes the node and its arguments, in the standard's order; None for one that is left out.
        known: positions of the arguments that come as NumPy arrays, since they say how to compute and not on what:
            constants, or sizes.
        indices: the same of arguments that may as well flow: as arrays where they are constants.
        scalars: whether constants of one number come as NumPy arrays too.
    """

    run: Callable[..., Any]
    known: frozenset[int] = frozenset()
    indices: frozenset[int] = frozenset()
    scalars: bool = False


Table = dict[str, Operator]
"""By the names of operators."""

Known = NDArray[Any]
"""Of numbers; of a free size, the symbol that stands for it is an object in it."""


def listed(values: Any) -> list[Any]:
    """Sizes, axes and the like as Python's numbers; symbols stay."""
    flat = np.asarray(values, dtype=object).reshape(-1)
    return [value.item() if isinstance(value, np.generic) else value for value in flat]


def whole(values: Any) -> list[Any]:
    """The same, of integers."""
    return [value if isinstance(value, torch.SymInt) else int(value) for value in listed(values)]


def axes(node: Node, given: Known | None, rank: int, name: str = "axes") -> list[int] | None:
    """Axes, from an argument, as newer versions have it, or an attribute, counted from the front.

    Raises:
        UnsupportedError: there is no such axis.
    """
    found = whole(given) if given is not None else node.get(name)
    return None if found is None else [axis(one, rank) for one in found]


def axis(number: int, rank: int) -> int:
    """An axis, counted from the front.

    Raises:
        UnsupportedError: there is none.
    """
    if not -rank <= number < max(rank, 1):
        raise UnsupportedError(
            f"it names the axis {number} of a value of {rank}", remedy="check the file with onnx.checker.check_model"
        )
    return number % max(rank, 1)


def refused(what: str) -> UnsupportedError:
    """The error for a form of an operator that is not computed here."""
    return UnsupportedError(what, remedy="export the model without it, or give the program of torch.export")
