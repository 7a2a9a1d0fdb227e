"""A module becomes an exported program, which must then answer as the module does."""

from __future__ import annotations

import contextlib
import inspect
import io
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from edgeq.errors import UnsupportedError, UsageError
from edgeq.frontends.check import check_outputs, check_program, check_weights
from edgeq.frontends.examples import Given, in_order
from edgeq.frontends.loaded import Kind, Loaded, describe
from edgeq.frontends.precision import module_in_float32, program_in_float32
from edgeq.frontends.returned import without_none
from edgeq.model.refusals import gist


def from_module(module: torch.nn.Module, given: Given, where: str, *, free: bool = True) -> Loaded:
    """A module as an exported program that answers as it does in inference mode. The module is left as it was.

    Args:
        free: whether the first axis of all inputs may be free.
    """
    tensors = in_order(given, _arguments(module, len(given.tensors)), where)
    check_weights(module.state_dict(), where)
    module, notes = module_in_float32(module, where)
    was_training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        program = export(module, tensors, where, free=free)
        verify(program, module, tensors, where)
    finally:
        for part in was_training:
            part.training = True
    return describe_traced(program, "module", where, tensors, notes)


def export(
    module: torch.nn.Module, tensors: tuple[torch.Tensor, ...], where: str, *, free: bool = True
) -> ExportedProgram:
    """Export with a free first axis, or, where the network fixes it, with the sizes given.

    Raises:
        UsageError: the network fails on these inputs.
        UnsupportedError: it cannot be traced.
    """
    if free and all(tensor.dim() > 0 and len(tensor) == len(tensors[0]) for tensor in tensors):
        batch = torch.export.Dim("batch", min=1)
        # A first axis of 1 is taken for a constant while tracing, so two samples are traced.
        pair = tensors if len(tensors[0]) > 1 else tuple(torch.cat([tensor, tensor]) for tensor in tensors)
        with contextlib.suppress(Exception):
            return _trace(module, pair, _dynamic_shapes(module, [{0: batch} for _ in pair]))
    try:
        return _trace(module, tensors, None)
    except Exception as error:
        check_runs(module, tensors, where)
        raise UnsupportedError(
            f"torch.export cannot trace the network ({gist(error)})",
            remedy="make its control flow independent of the values, or export it yourself with torch.export.export "
            "and give the .pt2",
            where=where,
        ) from error


def check_runs(module: torch.nn.Module, tensors: tuple[torch.Tensor, ...], where: str) -> None:
    """Raise a UsageError for sample inputs on which the network itself fails."""
    try:
        with torch.no_grad():
            module(*tensors)
    except Exception as error:
        listed = " and ".join(f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in tensors)
        raise UsageError(
            f"the network fails on inputs of {listed} ({gist(error)})",
            remedy="give the shapes and types that it takes: --input [name:]shape[:dtype] for each input",
            where=where,
        ) from error


def verify(program: ExportedProgram, module: torch.nn.Module, tensors: tuple[torch.Tensor, ...], where: str) -> None:
    """The program must answer as the network does, on the example and on noise; otherwise it is not the network.

    The noise comes twice: a network that remembers its last call answers differently the second time.
    """
    check_outputs(program, where)
    traced = program.module()
    noise = _noise(tensors)
    for inputs in (tensors, noise, noise):
        with torch.no_grad():
            wanted, got = (_tensors(network(*inputs)) for network in (module, traced))
        same = len(wanted) == len(got) and all(
            isinstance(a, torch.Tensor) and torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5, equal_nan=True)
            for a, b in zip(wanted, got, strict=True)
        )
        if not same:
            raise UnsupportedError(
                "the exported program answers otherwise than the network",
                remedy="look for random numbers, state kept between calls, or branches on values or the training mode",
                where=where,
            )


def describe_traced(
    program: ExportedProgram, kind: Kind, where: str, tensors: tuple[torch.Tensor, ...], notes: tuple[str, ...] = ()
) -> Loaded:
    """A program that was traced here, checked like any other; it is said where tracing had to fix the batch."""
    program, computed = program_in_float32(without_none(program), where)
    notes = notes or computed
    check_program(program, where)
    loaded = describe(program, kind, where, tensors)
    if loaded.dynamic_batch:
        return replace(loaded, notes=notes)
    note = "the network fixes its batch size: it is exported with the batch size of the given inputs"
    return replace(loaded, notes=(*notes, note))


def _tensors(returned: Any) -> list[Any]:
    return [leaf for leaf in pytree.tree_leaves(returned) if leaf is not None]


def _arguments(module: torch.nn.Module, count: int) -> tuple[str, ...]:
    """Names of the arguments of a module: those without a default, and as many of the others as inputs are given.

    Empty for `*args`, which takes any number and names none.
    """
    parameters = list(inspect.signature(module.forward).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return ()
    needed = sum(p.default is p.empty for p in positional)
    return tuple(p.name for p in positional[: max(needed, count)])


def _trace(module: torch.nn.Module, tensors: tuple[torch.Tensor, ...], shapes: Any) -> ExportedProgram:
    # On failure PyTorch prints the half-traced graph to the error stream, past warnings and logging. Gradients are off
    # so that a `torch.no_grad()` inside the network does not become an operator of its own.
    with contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
        return torch.export.export(module, tensors, dynamic_shapes=shapes, strict=False)


def _dynamic_shapes(module: torch.nn.Module, axes: list[dict[int, Any]]) -> Any:
    """One entry for each argument; `*args` takes all of its own in a tuple."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    if parameters and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        return (tuple(axes),)
    return tuple(axes)


def _noise(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Other inputs of the same shapes, always the same ones. Integers are kept: they may be indices of a table."""
    generator = np.random.default_rng(0)
    return tuple(
        torch.from_numpy(generator.standard_normal(tuple(tensor.shape), np.float32))
        if tensor.dtype == torch.float32
        else tensor
        for tensor in tensors
    )
