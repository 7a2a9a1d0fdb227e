"""Networks that are kept or computed in another precision, brought to float32: what is quantized is the network, and
not the way in which it was stored."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from edgeq.errors import UnsupportedError

HALVES = (torch.float16, torch.bfloat16)
OTHERS = (*HALVES, torch.float64)
"""What becomes float32: the first two lose nothing, the last one what no artefact would keep either."""

_MOST = torch.finfo(torch.float32).max


def in_float32(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers in float32; tensors of other kinds as they are."""
    if tensor.dtype not in OTHERS:
        return tensor
    plain = tensor.detach().float()
    return torch.nn.Parameter(plain, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else plain


def converted(tensors: Iterable[Any]) -> tuple[str, ...]:
    """What to tell of weights that become float32: one note, or none if all are."""
    found = {t.dtype for t in tensors if isinstance(t, torch.Tensor)}.intersection(OTHERS)
    return (f"weights in {_listed(found)} were converted to float32",) if found else ()


def module_in_float32(module: torch.nn.Module, where: str) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """A module with its weights in float32, and what to tell of it. The caller's own is left as it was.

    Raises:
        UnsupportedError: it would have to be copied, and cannot be.
    """
    notes = converted([*module.parameters(), *module.buffers()])
    if not notes:
        return module, ()
    try:
        return copy.deepcopy(module).float(), notes
    except RuntimeError as error:
        raise UnsupportedError(
            "a module that is not in float32 is copied, and this one cannot be",
            remedy="give module.float()",
            where=where,
        ) from error


def inputs_alike(module: torch.nn.Module, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Sample inputs in the precision of the weights, as a module takes them whose steps fix that one."""
    found = {t.dtype for t in (*module.parameters(), *module.buffers())}.intersection(OTHERS)
    (dtype,) = found if len(found) == 1 else (torch.float32,)
    return tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors)


def program_in_float32(program: ExportedProgram, where: str) -> tuple[ExportedProgram, tuple[str, ...]]:
    """A program that is stored and computes in float32, and what to tell of it. The caller's own is left as it was.

    float64 stays where it is only computed with, and neither weights nor inputs have it.

    Raises:
        UnsupportedError: it reads the bits of such numbers.
    """
    wanted = set(program.graph_signature.user_inputs)
    inputs = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in wanted]
    held = [*program.state_dict.values(), *program.constants.values()]
    found = _dtypes([inputs, held]).intersection(OTHERS)
    inside = _dtypes([node.meta.get("val") for node in _nodes(program.graph_module)]).intersection(HALVES)
    if not found and not inside:
        return program, ()
    module = copy.deepcopy(program.graph_module)
    for node, own in zip(_nodes(module), _nodes(program.graph_module), strict=True):
        node.name = own.name  # a copy is renamed where that is Python's own, as `input` is
        _retype(node, found | inside, where)
    for part in _parts(module):
        part.recompile()
    replaced = ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=program.graph_signature,
        state_dict=_cast(program.state_dict),
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=pytree.tree_map_only(torch.Tensor, in_float32, program.example_inputs),
        constants=_cast(program.constants),
        verifiers=[program.verifier],
    )
    notes = converted([*held, *inputs])
    return replaced, notes or (f"what it computes in {_listed(inside)} is computed in float32",)


def _retype(node: Node, dtypes: set[torch.dtype], where: str) -> None:
    if node.target is torch.ops.aten.view.dtype and _dtypes([node.meta["val"], node.args]) & dtypes:
        raise UnsupportedError(
            f"it reads the bits of numbers that are not float32 ({node.name})",
            remedy="export the network in float32",
            where=where,
        )

    def leaf(value: Any) -> Any:
        if isinstance(value, float) and math.isfinite(value):
            return min(max(value, -_MOST), _MOST)
        return torch.float32 if isinstance(value, torch.dtype) and value in dtypes else value

    def tensor(value: torch.Tensor) -> torch.Tensor:
        return value.to(torch.float32) if value.dtype in dtypes else value

    node.args, node.kwargs = map_aggregate(node.args, leaf), map_aggregate(node.kwargs, leaf)
    if "val" in node.meta:
        node.meta["val"] = pytree.tree_map_only(torch.Tensor, tensor, node.meta["val"])


def _parts(module: GraphModule) -> list[GraphModule]:
    """A graph and those within it."""
    return [part for part in module.modules() if isinstance(part, GraphModule)]


def _nodes(module: GraphModule) -> list[Node]:
    return [node for part in _parts(module) for node in part.graph.nodes]


def _dtypes(values: Any) -> set[torch.dtype]:
    leaves = pytree.tree_leaves(values)
    return {one.dtype for one in leaves if isinstance(one, torch.Tensor)} | {
        one for one in leaves if isinstance(one, torch.dtype)
    }


def _cast(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name: in_float32(one) if isinstance(one, torch.Tensor) else one for name, one in tensors.items()}


def _listed(dtypes: set[torch.dtype]) -> str:
    return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
