"""Operators that compute value by value, with broadcasting."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from edgeq.frontends.onnx.operators.node import Known, Node, Operator, Table, listed, refused

Tensor = torch.Tensor

TYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 4: torch.uint16, 5: torch.int16, 6: torch.int32, 7: torch.int64,
    9: torch.bool, 10: torch.float32, 11: torch.float32, 12: torch.uint32, 13: torch.uint64, 16: torch.float32,
}  # fmt: skip
"""By the numbers that the standard gives to types. What is float in another precision is computed in float32."""


def value_of(one: Any, like: Tensor | None = None) -> Any:
    """An argument that may be a number: as Python's, where that does not change the shape of the result."""
    if isinstance(one, np.ndarray):
        numbers = listed(one)
        if len(numbers) == 1 and like is not None and one.ndim <= like.dim():
            return numbers[0]
        dtype = torch.bool if one.dtype == bool else torch.float32 if one.dtype.kind == "f" else torch.int64
        if any(isinstance(number, torch.SymInt) for number in numbers):
            return torch.stack([torch.scalar_tensor(n, dtype=torch.int64) for n in numbers]).reshape(one.shape)
        own = like.dtype if like is not None and like.dtype.is_floating_point == dtype.is_floating_point else dtype
        return torch.tensor(numbers, dtype=own).reshape(one.shape)
    return one


def tensor_of(one: Any) -> Tensor:
    """An argument as a tensor."""
    found: Tensor = value_of(one)
    return found


def pairwise(function: Callable[..., Any]) -> Operator:
    """An operator of PyTorch's that takes one number in place of either tensor."""

    def run(node: Node, a: Any, b: Any) -> Any:
        x = a if isinstance(a, Tensor) else b if isinstance(b, Tensor) else None
        a, b = value_of(a, x), value_of(b, x)
        return function(tensor_of(np.asarray(a)) if not isinstance(a, Tensor | float | int) else a, b)

    return Operator(run, scalars=True)


def _tensors(function: Callable[..., Any]) -> Operator:
    """The same, of functions that take tensors alone."""

    def run(node: Node, *given: Any) -> Any:
        x = next(one for one in given if isinstance(one, Tensor))
        values = [value_of(one, x) for one in given]
        return function(*(one if isinstance(one, Tensor) else torch.tensor(one, dtype=x.dtype) for one in values))

    return Operator(run, scalars=True)


def _each(function: Callable[[Tensor], Any]) -> Operator:
    return Operator(lambda node, x: function(x))


def _folded(function: Callable[..., Any]) -> Operator:
    """Of any number of values."""
    two = pairwise(function).run
    return Operator(lambda node, *given: functools.reduce(lambda a, b: two(node, a, b), given), scalars=True)


def _extreme(function: Callable[[Tensor, Tensor], Tensor], end: str) -> Operator:
    """The larger or smaller of any number of values; beside a number it is one end of a range."""

    def two(a: Any, b: Any) -> Any:
        if not isinstance(a, Tensor):
            a, b = b, a
        if not isinstance(a, Tensor):
            return function(tensor_of(a), tensor_of(b))
        b = value_of(b, a)
        return function(a, b) if isinstance(b, Tensor) else torch.clamp(a, **{end: b})

    return Operator(lambda node, *given: functools.reduce(two, given) if len(given) > 1 else tensor_of(given[0]),
                    scalars=True)  # fmt: skip


def _divide(a: Any, b: Any) -> Any:
    floats = [one.is_floating_point() if isinstance(one, Tensor) else isinstance(one, float) for one in (a, b)]
    return torch.div(a, b) if any(floats) else torch.div(a, b, rounding_mode="trunc")


def _modulo(node: Node, a: Any, b: Any) -> Any:
    return pairwise(torch.fmod if node.get("fmod", 0) else torch.remainder).run(node, a, b)


def _power(a: Any, b: Any) -> Any:
    found = torch.pow(a, b)
    return found.to(a.dtype) if isinstance(a, Tensor) else found


def _mean(node: Node, *given: Any) -> Any:
    return _folded(torch.add).run(node, *given) / len(given)


def _clip(node: Node, x: Tensor, low: Known | None = None, high: Known | None = None) -> Tensor:
    ends = [listed(one)[0] if one is not None else node.get(name) for one, name in ((low, "min"), (high, "max"))]
    if ends[0] == 0 and ends[1] is None:
        return torch.relu(x)
    if ends == [0, 6] and x.is_floating_point():
        return torch.nn.functional.relu6(x)
    return torch.clamp(x, *ends) if ends != [None, None] else x


def _cast(node: Node, x: Any) -> Any:
    if node.get("to") not in TYPES:
        raise refused(f"it casts to the type {node.get('to')}, which is not computed here")
    return tensor_of(x).to(TYPES[node.get("to")])


def _where(node: Node, condition: Tensor, a: Any, b: Any) -> Tensor:
    x = a if isinstance(a, Tensor) else b if isinstance(b, Tensor) else None
    a, b = (one if isinstance(one, Tensor) else value_of(one, x if x is not None else condition) for one in (a, b))
    dtype = x.dtype if x is not None else torch.float32 if isinstance(a, float) else torch.int64
    a, b = (one if isinstance(one, Tensor) else torch.tensor(one, dtype=dtype) for one in (a, b))
    return torch.where(tensor_of(condition).bool(), a, b)


def _is_infinite(node: Node, x: Tensor) -> Tensor:
    found = torch.isinf(x)
    if not node.get("detect_negative", 1):
        found = found & (x > 0)
    return found if node.get("detect_positive", 1) else found & (x < 0)


def _shift(node: Node, a: Any, b: Any) -> Any:
    way = torch.bitwise_left_shift if node.get("direction") == "LEFT" else torch.bitwise_right_shift
    return pairwise(way).run(node, a, b)


ARITHMETIC: Table = {
    "Add": pairwise(torch.add), "Sub": pairwise(torch.sub), "Mul": pairwise(torch.mul), "Div": pairwise(_divide),
    "Pow": pairwise(_power), "Mod": Operator(_modulo, scalars=True), "BitShift": Operator(_shift, scalars=True),
    "Sum": _folded(torch.add), "Mean": Operator(_mean, scalars=True),
    "Max": _extreme(torch.maximum, "min"), "Min": _extreme(torch.minimum, "max"),
    "Equal": pairwise(torch.eq), "Less": pairwise(torch.lt), "LessOrEqual": pairwise(torch.le),
    "Greater": pairwise(torch.gt), "GreaterOrEqual": pairwise(torch.ge),
    "And": _tensors(torch.logical_and), "Or": _tensors(torch.logical_or), "Xor": _tensors(torch.logical_xor),
    "BitwiseAnd": _tensors(torch.bitwise_and), "BitwiseOr": _tensors(torch.bitwise_or),
    "BitwiseXor": _tensors(torch.bitwise_xor), "BitwiseNot": _each(torch.bitwise_not),
    "Not": _each(torch.logical_not), "Neg": _each(torch.neg), "Abs": _each(torch.abs), "Sqrt": _each(torch.sqrt),
    "Exp": _each(torch.exp), "Log": _each(torch.log), "Reciprocal": _each(torch.reciprocal),
    "Floor": _each(torch.floor), "Ceil": _each(torch.ceil), "Round": _each(torch.round), "Sign": _each(torch.sign),
    "Sin": _each(torch.sin), "Cos": _each(torch.cos), "Tan": _each(torch.tan), "Asin": _each(torch.asin),
    "Acos": _each(torch.acos), "Atan": _each(torch.atan), "Sinh": _each(torch.sinh), "Cosh": _each(torch.cosh),
    "Asinh": _each(torch.asinh), "Acosh": _each(torch.acosh), "Atanh": _each(torch.atanh), "Erf": _each(torch.erf),
    "IsNaN": _each(torch.isnan), "IsInf": Operator(_is_infinite), "Identity": Operator(lambda node, x: x),
    "Clip": Operator(_clip, frozenset({1, 2})), "Cast": Operator(_cast), "Where": Operator(_where, scalars=True),
    "CastLike": Operator(lambda node, x, like: tensor_of(x).to(tensor_of(like).dtype)),
}  # fmt: skip
