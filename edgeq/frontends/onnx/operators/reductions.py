"""Operators that make one value of many along some axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edgeq.frontends.onnx.operators.node import Known, Node, Operator, Table, axes, axis, refused, whole

Tensor = torch.Tensor

_FUNCTIONS: dict[str, Callable[[Tensor, list[int]], Tensor]] = {
    "ReduceSum": lambda x, over: x.sum(over, keepdim=True),
    "ReduceMean": lambda x, over: x.mean(over, keepdim=True),
    "ReduceMax": lambda x, over: x.amax(over, keepdim=True),
    "ReduceMin": lambda x, over: x.amin(over, keepdim=True),
    "ReduceL1": lambda x, over: x.abs().sum(over, keepdim=True),
    "ReduceL2": lambda x, over: (x * x).sum(over, keepdim=True).sqrt(),
    "ReduceSumSquare": lambda x, over: (x * x).sum(over, keepdim=True),
    "ReduceLogSum": lambda x, over: x.sum(over, keepdim=True).log(),
    "ReduceLogSumExp": lambda x, over: torch.logsumexp(x, over, keepdim=True),
    "ReduceProd": lambda x, over: _product(x, over),
}


def _product(x: Tensor, over: list[int]) -> Tensor:
    for number in over:
        x = x.prod(number, keepdim=True)
    return x


def _reduce(node: Node, x: Tensor, given: Known | None = None) -> Tensor:
    over = axes(node, given, x.dim())
    if not over:
        if node.get("noop_with_empty_axes", 0):
            return x
        over = list(range(x.dim()))
    y = _FUNCTIONS[node.op](x, over)
    if node.get("keepdims", 1):
        return y
    for number in sorted(over, reverse=True):
        y = y.squeeze(number)
    return y


def _extreme_place(node: Node, x: Tensor) -> Tensor:
    if node.get("select_last_index", 0):
        raise refused("it gives the last of several places")
    function = torch.argmax if node.op == "ArgMax" else torch.argmin
    return function(x, axis(node.get("axis", 0), x.dim()), bool(node.get("keepdims", 1)))


def _top(node: Node, x: Tensor, count: Known | None = None) -> Any:
    k = whole(count)[0] if count is not None else node.get("k")
    values, places = torch.topk(x, k, node.get("axis", -1), bool(node.get("largest", 1)), bool(node.get("sorted", 1)))
    return values, places


def _running_sum(node: Node, x: Tensor, along: Known) -> Tensor:
    number = axis(whole(along)[0], x.dim())
    x = x.flip(number) if node.get("reverse", 0) else x
    y = x.cumsum(number).to(x.dtype)
    y = y - x if node.get("exclusive", 0) else y
    return y.flip(number) if node.get("reverse", 0) else y


REDUCTIONS: Table = {
    **{name: Operator(_reduce, frozenset({1})) for name in _FUNCTIONS},
    "ArgMax": Operator(_extreme_place), "ArgMin": Operator(_extreme_place), "TopK": Operator(_top, frozenset({1})),
    "CumSum": Operator(_running_sum, frozenset({1})),
}  # fmt: skip
