"""Operators that compute value by value, with broadcasting, and activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from edgeq.frontends.tflite.operators.layers import activated
from edgeq.frontends.tflite.operators.node import Node, Operator, Table

Tensor = torch.Tensor

TYPES = {
    0: torch.float32, 1: torch.float32, 2: torch.int32, 3: torch.uint8, 4: torch.int64, 6: torch.bool, 7: torch.int16,
    9: torch.int8, 10: torch.float32,
}  # fmt: skip
"""By the schema's numbers."""


def _pairwise(function: Callable[[Any, Any], Any]) -> Operator:
    def run(node: Node, a: Any, b: Any) -> Any:
        return activated(node, function(a, b))

    return Operator(run, turned="each")


def _each(function: Callable[[Tensor], Any]) -> Operator:
    return Operator(lambda node, x: function(x), turned="each")


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _softmax(node: Node, x: Tensor) -> Tensor:
    beta = node.options.beta
    return torch.softmax(x if beta == 1 else x * beta, -1)


def _prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _select(node: Node, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    while condition.dim() < a.dim() and node.op == "SELECT":
        condition = condition.unsqueeze(-1)
    return torch.where(condition, a, b)


def _cast(node: Node, x: Tensor) -> Tensor:
    return x.to(TYPES[node.options.outDataType])


def _leaky(node: Node, x: Tensor) -> Tensor:
    return F.leaky_relu(x, node.options.alpha)


def _gelu(node: Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh" if node.options.approximate else "none")


def _sum_of_all(node: Node, *given: Tensor) -> Tensor:
    total = given[0]
    for one in given[1:]:
        total = total + one
    return total


ARITHMETIC: Table = {
    "ADD": _pairwise(torch.add), "SUB": _pairwise(torch.sub), "MUL": _pairwise(torch.mul), "DIV": _pairwise(_divide),
    "POW": _pairwise(torch.pow), "MAXIMUM": _pairwise(torch.maximum), "MINIMUM": _pairwise(torch.minimum),
    "FLOOR_DIV": _pairwise(torch.floor_divide), "FLOOR_MOD": _pairwise(torch.remainder),
    "SQUARED_DIFFERENCE": _pairwise(lambda a, b: (a - b) * (a - b)), "EQUAL": _pairwise(torch.eq),
    "NOT_EQUAL": _pairwise(torch.ne), "LESS": _pairwise(torch.lt), "LESS_EQUAL": _pairwise(torch.le),
    "GREATER": _pairwise(torch.gt), "GREATER_EQUAL": _pairwise(torch.ge), "LOGICAL_AND": _pairwise(torch.logical_and),
    "LOGICAL_OR": _pairwise(torch.logical_or), "LOGICAL_NOT": _each(torch.logical_not), "ABS": _each(torch.abs),
    "NEG": _each(torch.neg), "EXP": _each(torch.exp), "LOG": _each(torch.log), "SQRT": _each(torch.sqrt),
    "RSQRT": _each(torch.rsqrt), "SQUARE": _each(lambda x: x * x), "SIN": _each(torch.sin), "COS": _each(torch.cos),
    "FLOOR": _each(torch.floor), "CEIL": _each(torch.ceil), "ROUND": _each(torch.round), "SIGN": _each(torch.sign),
    "RELU": _each(torch.relu), "RELU6": _each(F.relu6), "RELU_N1_TO_1": _each(lambda x: torch.clamp(x, -1, 1)),
    "RELU_0_TO_1": _each(lambda x: torch.clamp(x, 0, 1)), "LOGISTIC": _each(torch.sigmoid), "TANH": _each(torch.tanh),
    "HARD_SWISH": _each(F.hardswish), "ELU": _each(F.elu), "LEAKY_RELU": Operator(_leaky, turned="each"),
    "GELU": Operator(_gelu, turned="each"), "CAST": Operator(_cast, turned="each"), "PRELU": Operator(_prelu),
    "SOFTMAX": Operator(_softmax), "LOG_SOFTMAX": Operator(lambda node, x: torch.log_softmax(x, -1)),
    "SELECT": Operator(_select), "SELECT_V2": Operator(_select),
    "ADD_N": Operator(_sum_of_all),
}  # fmt: skip
