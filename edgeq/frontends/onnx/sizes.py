"""Operators on sizes: what a graph computes of shapes is numbers while it is traced, or symbols where one is free."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from edgeq.frontends.onnx.operators.node import Known, Node, listed, whole
from edgeq.frontends.onnx.operators.shapes import objects

_SYMBOLS = (torch.SymInt, torch.SymFloat)


def _pairwise(function: Callable[[Any, Any], Any]) -> Callable[..., Known]:
    def run(node: Node, *given: Known) -> Known:
        spread = np.broadcast_arrays(*(np.asarray(one, dtype=object) for one in given))
        values = [functools.reduce(function, one) for one in zip(*(listed(s) for s in spread), strict=True)]
        return objects(values).reshape(spread[0].shape)

    return run


def _each(function: Callable[[Any], Any]) -> Callable[..., Known]:
    return lambda node, x: objects([function(one) for one in listed(x)]).reshape(np.shape(x))


def _divide(a: Any, b: Any) -> Any:
    if any(isinstance(one, float | torch.SymFloat) for one in (a, b)):
        return a / b
    return a // b if isinstance(a, torch.SymInt) or isinstance(b, torch.SymInt) or a * b >= 0 else -(-a // b)


def _cast(node: Node, x: Known) -> Known:
    to = node.get("to")
    if to in (1, 10, 11, 16):
        return _each(lambda one: one if isinstance(one, _SYMBOLS) else float(one))(node, x)
    if to == 9:
        return _each(bool)(node, x)
    return _each(lambda one: one if isinstance(one, torch.SymInt) else math.trunc(one))(node, x)


def _slice(node: Node, x: Known, *given: Known | None) -> Known:
    starts, ends, axes, steps = (*given, *(None,) * 4)[:4]
    first = whole(starts) if starts is not None else node.get("starts")
    last = whole(ends) if ends is not None else node.get("ends")
    along = whole(axes) if axes is not None else node.get("axes", list(range(len(first))))
    every = whole(steps) if steps is not None else [1] * len(first)
    places = [slice(None)] * x.ndim
    for number, a, b, step in zip(along, first, last, every, strict=True):
        places[number] = slice(a, b, step)
    return np.asarray(x, dtype=object)[tuple(places)]


def _squeeze(node: Node, x: Known, axes: Known | None = None) -> Known:
    gone = whole(axes) if axes is not None else node.get("axes")
    return np.squeeze(x, tuple(gone) if gone is not None else None)


def _unsqueeze(node: Node, x: Known, axes: Known | None = None) -> Known:
    return np.expand_dims(x, tuple(whole(axes) if axes is not None else node.get("axes")))


def _reshape(node: Node, x: Known, shape: Known) -> Known:
    return np.reshape(x, whole(shape))


def _gather(node: Node, x: Known, index: Known) -> Known:
    return np.asarray(np.take(x, np.asarray(index, dtype=np.int64), node.get("axis", 0)), dtype=object)


def _split(node: Node, x: Known, sizes: Known | None = None) -> tuple[Known, ...]:
    parts = whole(sizes) if sizes is not None else node.get("split")
    if parts is None:
        return tuple(np.array_split(x, node.outputs))
    return tuple(np.split(x, np.cumsum(parts)[:-1]))


def _concat(node: Node, *parts: Known) -> Known:
    return np.concatenate([np.asarray(one, dtype=object) for one in parts], node.get("axis"))


def _product(node: Node, x: Known, axes: Known | None = None) -> Known:
    found = np.empty((1,) * x.ndim if node.get("keepdims", 1) else (), dtype=object)
    found[...] = math.prod(listed(x))
    return found


def _where(node: Node, condition: Known, a: Known, b: Known) -> Known:
    spread = np.broadcast_arrays(*(np.asarray(one, dtype=object) for one in (condition, a, b)))
    flat = zip(*(listed(one) for one in spread), strict=True)
    return objects([x if c else y for c, x, y in flat]).reshape(spread[0].shape)


SIZES: dict[str, Callable[..., Any]] = {
    "Add": _pairwise(operator.add), "Sub": _pairwise(operator.sub), "Mul": _pairwise(operator.mul),
    "Div": _pairwise(_divide), "Mod": _pairwise(operator.mod), "Max": _pairwise(max), "Min": _pairwise(min),
    "Equal": _pairwise(operator.eq), "Less": _pairwise(operator.lt), "Greater": _pairwise(operator.gt),
    "LessOrEqual": _pairwise(operator.le), "GreaterOrEqual": _pairwise(operator.ge),
    "And": _pairwise(lambda a, b: a and b), "Or": _pairwise(lambda a, b: a or b), "Not": _each(operator.not_),
    "Floor": _each(math.floor), "Ceil": _each(math.ceil), "Neg": _each(operator.neg), "Abs": _each(abs),
    "Sqrt": _each(math.sqrt), "Cast": _cast, "Slice": _slice, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
    "Reshape": _reshape, "Gather": _gather, "Split": _split, "Concat": _concat, "ReduceProd": _product,
    "Where": _where, "Identity": lambda node, x: x,
}  # fmt: skip
"""By the names of operators."""
