"""TorchScript becomes an exported program: PyTorch's converter, with the names and a free batch kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.jit._recursive import wrap_cpp_module

from edgeq.errors import EdgeqError, UnsupportedError
from edgeq.frontends.check import check_weights
from edgeq.frontends.examples import Given, in_order
from edgeq.frontends.loaded import Loaded
from edgeq.frontends.precision import converted, inputs_alike, module_in_float32
from edgeq.frontends.steps import check_steps
from edgeq.frontends.trace import check_runs, describe_traced, export, verify
from edgeq.frontends.vet import vet_script
from edgeq.model.refusals import damaged, gist


def read_script(path: Path, trust: bool) -> torch.jit.ScriptModule:
    """The scripted or traced module in a file; without trust, one that does nothing but compute."""
    if not trust:
        vet_script(path)
    try:
        # What torch.jit.load does, which does not tell the functions that methods call.
        unit = torch._C.CompilationUnit()
        network = torch._C.import_ir_module(unit, str(path), torch.device("cpu"), {}, False)  # type: ignore[call-arg]
        module: torch.jit.ScriptModule = wrap_cpp_module(network)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise damaged(path.name, error) from error
    if not trust:
        check_steps(module, unit, path.name)
    return module


def from_script(module: torch.jit.ScriptModule, given: Given, where: str) -> Loaded:
    """A scripted or traced module as an exported program that answers as it does."""
    from torch._export.converter import TS2EPConverter

    module.eval()
    names = _inputs(module, where)
    tensors = in_order(given, names, where)
    check_weights(module.state_dict(), where)
    notes = converted([*module.parameters(), *module.buffers()])
    example = tensors
    module, tensors = _runnable(module, tensors, where)
    check_runs(module, tensors, where)

    class Converter(TS2EPConverter):  # type: ignore[misc]
        """Keeps the arguments' names, and frees the first axis alone: the converter's own export frees every axis."""

        def retrace_as_exported_program(self, graph: torch.fx.GraphModule, constants: Any) -> ExportedProgram:
            for node, name in zip(graph.graph.find_nodes(op="placeholder"), names, strict=False):
                node._rename(name)
                node.target = name
            graph.recompile()
            return export(graph, tensors, where)

    try:
        with torch.no_grad():
            program = Converter(module, tensors).convert()
    except EdgeqError:
        raise
    except Exception as error:
        raise UnsupportedError(
            f"this TorchScript cannot be turned into one graph ({_construct(error)})",
            remedy="export the original Python model with torch.export.export and give the .pt2",
            where=where,
        ) from error
    verify(program, module, tensors, where)
    return describe_traced(program, "torchscript", where, example, notes)


def _runnable(
    module: torch.jit.ScriptModule, tensors: tuple[torch.Tensor, ...], where: str
) -> tuple[torch.jit.ScriptModule, tuple[torch.Tensor, ...]]:
    """The module in float32; or as it is, with inputs of its precision, where a step in it asks for that one."""
    whole, notes = module_in_float32(module, where)
    if not notes or not isinstance(whole, torch.jit.ScriptModule):
        return module, tensors
    try:
        with torch.no_grad():
            whole(*tensors)
    except RuntimeError:
        return module, inputs_alike(module, tensors)
    return whole, tensors


def _inputs(module: torch.jit.ScriptModule, where: str) -> tuple[str, ...]:
    """Names of the arguments of a scripted network, which must be a pure function of tensors."""
    try:
        arguments = [a for a in module.forward.schema.arguments[1:] if not a.has_default_value()]  # type: ignore[attr-defined]
        graph: Any = module.inlined_graph
    except (AttributeError, RuntimeError) as error:
        raise UnsupportedError(
            "the TorchScript file has no forward method", remedy="save a module with a forward method", where=where
        ) from error
    written = sorted({node.s("name") for node in graph.findAllNodes("prim::SetAttr")})
    if written:
        raise UnsupportedError(
            f"the network keeps state between calls (prim::SetAttr writes to {', '.join(map(repr, written[:3]))})",
            remedy="make the state an input and an output of the original Python model, and export that",
            where=where,
        )
    for argument in arguments:
        if str(argument.type) != "Tensor":
            raise UnsupportedError(
                f"the input {argument.name!r} is {argument.type}, not a tensor",
                remedy="wrap the model so that it takes tensors only, and export that",
                where=where,
            )
    return tuple(argument.name for argument in arguments)


def _construct(error: BaseException) -> str:
    """Which construct of TorchScript the converter could not handle, from what it says."""
    match = re.search(r"\b(prim|aten|torchvision|quantized|\w+)::\w+", str(error))
    if match is None:
        return gist(error)
    meaning = {"prim::If": ", a branch", "prim::Loop": ", a loop"}.get(match[0], "")
    return f"{match[0]}{meaning}"
