"""Sample inputs: those that the caller describes or gives, and those that an exported program carries."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from edgeq.data.dataset import InputSpec
from edgeq.errors import UsageError
from edgeq.frontends.precision import in_float32

DTYPES = {
    "float32": torch.float32,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
LARGEST_INPUT = 2**31
"""Values of a sample input: a picture of 26 754 pixels square has as many."""

LARGEST_OF_FILES = 2**28
"""The same where nobody asked for them: a gigabyte."""

_DIGITS = 12
_BECOME_FLOAT32 = ("float16", "bfloat16", "float64")
_SPEC = re.compile(r"(?:(?P<name>[A-Za-z_]\w*):)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?")


def parse_input_spec(text: str) -> InputSpec:
    """Read `[name:]shape[:dtype]`, such as `1x3x224x224`, `1x256:int64` or `tokens:1x256:int64`; float32 by
    default, and for other precisions.

    Returns:
        The input; its name is empty where none was given.

    Raises:
        UsageError: the text is nothing of the kind.
    """
    remedy = "write [name:]shape[:dtype], for example 1x3x224x224 or tokens:1x256:int64"
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} describes no input", remedy=remedy)
    dtype = match["dtype"] or "float32"
    if dtype in _BECOME_FLOAT32:
        dtype = "float32"
    if dtype not in DTYPES:
        raise UsageError(f"{dtype!r} in {text!r} is no type of an input", remedy=f"use one of {', '.join(DTYPES)}")
    sizes = match["shape"].split("x")
    shape = () if any(len(size) > _DIGITS for size in sizes) else tuple(map(int, sizes))
    if 0 in shape:
        raise UsageError(f"{text!r} has an axis of length 0", remedy=remedy)
    if not shape or math.prod(shape) > LARGEST_INPUT:
        raise UsageError(f"{text[:60]!r} has more than {LARGEST_INPUT} values", remedy=remedy)
    return InputSpec(match["name"] or "", shape, dtype)


def sized(sizes: Sequence[int | None], dtype: torch.dtype, name: str, where: str) -> torch.Tensor:
    """Zeros of the sizes that a file says of an input, 1 where the first is free.

    Raises:
        UsageError: there is none that can be made.
    """
    whole = [1 if size is None else size for size in sizes]
    if 0 in whole or min(whole, default=1) < 0 or math.prod(whole) > LARGEST_OF_FILES:
        raise UsageError(
            f"the input {name!r} is of the sizes {whole}",
            where=where,
            remedy=f"give a file whose inputs have from 1 to {LARGEST_OF_FILES} values",
        )
    return torch.zeros(whole, dtype=dtype)


def asked_for(inputs: Sequence[str], example: tuple[torch.Tensor, ...] | None) -> Given:
    """The caller's sample inputs: the tensors of `example`, otherwise zeros for each of the specifications `inputs`."""
    if example is not None:
        if any(tensor.is_meta or tensor.layout != torch.strided for tensor in example):
            raise UsageError("an example input has no values or is not dense", remedy="give plain tensors on the CPU")
        return Given(tuple(map(in_float32, example)), ("",) * len(example))
    specs = [parse_input_spec(text) for text in inputs]
    tensors = tuple(torch.zeros([int(size or 1) for size in spec.shape], dtype=DTYPES[spec.dtype]) for spec in specs)
    return Given(tensors, tuple(spec.name for spec in specs))


def in_order(given: Given, names: tuple[str, ...], where: str) -> tuple[torch.Tensor, ...]:
    """The given inputs in the order of a network's arguments.

    Args:
        given: the inputs, named or not.
        names: the arguments; empty for a network that takes any number of them.
        where: the model, for messages.

    Raises:
        UsageError: there are none, since shapes cannot be guessed, or not those that the network takes.
    """
    if not given.tensors:
        raise UsageError(
            "nothing says what shape the inputs have",
            remedy="add --input [name:]shape[:dtype] for each input, for example --input 1x3x224x224",
            where=where,
        )
    if len(given.tensors) != len(names) and names:
        raise UsageError(
            f"{len(given.tensors)} inputs are given and the model takes {len(names)} ({', '.join(names)})",
            remedy="give --input once for each",
            where=where,
        )
    if not any(given.names):
        return given.tensors
    by_name = dict(zip(given.names, given.tensors, strict=True))
    unknown = [name for name in given.names if name not in names]
    if unknown or len(by_name) != len(names):
        raise UsageError(
            f"the inputs are named {', '.join(name or '(no name)' for name in given.names)} "
            f"and the model takes {', '.join(names) or 'inputs without names'}",
            remedy="use the model's names, or none",
            where=where,
        )
    return tuple(by_name[name] for name in names)


def carried(program: ExportedProgram) -> tuple[torch.Tensor, ...]:
    """The sample inputs that the program carries, in the order of its inputs; zeros where it has none."""
    if program.example_inputs is not None:
        leaves = pytree.tree_leaves(program.example_inputs)
        if leaves and all(isinstance(leaf, torch.Tensor) for leaf in leaves):
            return tuple(leaf.detach() for leaf in leaves)
    wanted = set(program.graph_signature.user_inputs)
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in wanted]
    return tuple(
        torch.zeros([size if isinstance(size, int) else size.node.hint or 1 for size in value.shape], dtype=value.dtype)
        for value in values
    )


def check_fit(program: ExportedProgram, example: tuple[torch.Tensor, ...], where: str) -> None:
    """Raise a UsageError for sample inputs that are not of the number, shapes and types that the program takes."""
    names = program.graph_signature.user_inputs
    if len(example) != len(names):
        raise UsageError(
            f"{len(example)} inputs are given and the model takes {len(names)} ({', '.join(map(str, names))})",
            remedy="give one for each input, or none: the file knows its shapes",
            where=where,
        )
    placeholders = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    for name, tensor in zip(names, example, strict=True):
        value = placeholders[name]
        fits = len(value.shape) == tensor.dim() and all(
            not isinstance(wanted, int) or wanted == got for wanted, got in zip(value.shape, tensor.shape, strict=True)
        )
        if not fits or value.dtype != tensor.dtype:
            raise UsageError(
                f"the input {name!r} is {list(value.shape)} {value.dtype}, not {list(tensor.shape)} {tensor.dtype}",
                remedy="leave the shape out: the file knows it",
                where=where,
            )


@dataclass(frozen=True)
class Given:
    """The sample inputs that the caller gave, with the names given for them (empty where there is none)."""

    tensors: tuple[torch.Tensor, ...]
    names: tuple[str, ...]
