"""Operators on sizes: numbers while the graph is traced, or symbols where one is free."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from edgeq.frontends.tflite.operators.node import Known, Node, Turned, whole
from edgeq.frontends.tflite.operators.shapes import strided


def shape(node: Node, x: Any) -> Known:
    """Of a value, with its axes in the file's order."""
    sizes = [x.held.shape[number] for number in (0, 2, 3, 1)] if isinstance(x, Turned) else list(x.shape)
    return _objects(sizes)


def _objects(values: list[Any]) -> Known:
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def _pairwise(function: Callable[[Any, Any], Any]) -> Callable[..., Known]:
    def run(node: Node, a: Known, b: Known) -> Known:
        one, two = np.broadcast_arrays(np.asarray(a, dtype=object), np.asarray(b, dtype=object))
        return _objects([function(x, y) for x, y in zip(whole(one), whole(two), strict=True)]).reshape(one.shape)

    return run


def _slice(node: Node, x: Known, begin: Known, end: Known, step: Known) -> Known:
    found = np.asarray(x, dtype=object)[strided(node.options, x.ndim, begin, end, step)]
    if isinstance(found, np.ndarray):
        return found
    one = np.empty((), dtype=object)
    one[()] = found
    return one


def _pack(node: Node, *parts: Known) -> Known:
    return np.stack([np.asarray(one, dtype=object) for one in parts], node.options.axis)


def _concat(node: Node, *parts: Known) -> Known:
    return np.concatenate([np.asarray(one, dtype=object) for one in parts], node.options.axis)


def _gather(node: Node, x: Known, index: Known) -> Known:
    return np.asarray(np.take(x, np.asarray(index, dtype=np.int64), node.options.axis), dtype=object)


def _product(node: Node, x: Known, over: Known) -> Known:
    found = np.empty((1,) * x.ndim if node.options.keepDims else (), dtype=object)
    found[...] = math.prod(whole(x))
    return found


def _reshape(node: Node, x: Known, wanted: Known | None = None) -> Known:
    return np.reshape(x, whole(wanted if wanted is not None else node.options.newShape))


def _as_it_is(node: Node, x: Known, *rest: Any) -> Known:
    return x


SIZES: dict[str, Callable[..., Any]] = {
    "STRIDED_SLICE": _slice, "PACK": _pack, "CONCATENATION": _concat, "GATHER": _gather, "REDUCE_PROD": _product,
    "MUL": _pairwise(operator.mul), "ADD": _pairwise(operator.add), "SUB": _pairwise(operator.sub),
    "FLOOR_DIV": _pairwise(operator.floordiv), "FLOOR_MOD": _pairwise(operator.mod), "MAXIMUM": _pairwise(max),
    "MINIMUM": _pairwise(min), "CAST": _as_it_is,
    "RESHAPE": _reshape,
    "SQUEEZE": lambda node, x: np.squeeze(x), "EXPAND_DIMS": lambda node, x, along: np.expand_dims(x, whole(along)[0]),
}  # fmt: skip
"""By the names of operators."""
