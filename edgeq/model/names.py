"""The names that a graph may hold, told from all others by their form: what is kept of a model is read by them, and a
cache may be shared."""

from __future__ import annotations

import re

ATEN = re.compile(r"aten\.(?!save\b|from_file\b)((?!__)\w+|__(?:and|or|xor|lshift|rshift)__)\.(?!__)(\w+)")
"""Operators of ATen, without those that touch files; which of them there are, and only compute, PyTorch knows. Those on
bits go by the names that they have in Python."""

OPERATORS = frozenset({
    "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pos", "pow", "eq", "ne", "lt", "le", "gt", "ge",
    "and_", "or_", "xor", "not_", "getitem", "lshift", "rshift",
})  # fmt: skip
"""Python's own that compute on sizes."""

DTYPES = frozenset({
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32",
    "float64", "complex32", "complex64", "complex128", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2",
    "float8_e5m2fnuz",
})  # fmt: skip

CONSTANTS = frozenset(f"torch.{name}" for name in DTYPES) | {
    "torch.strided", "torch.sparse_coo", "torch.contiguous_format", "torch.preserve_format", "torch.channels_last",
    "torch.channels_last_3d", "cpu",
}  # fmt: skip
"""PyTorch's constants among the arguments of operators."""
