"""A graph as PyTorch's exporters take it: what `torch.export` would have made of the same network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import Graph
from torch.fx import Node as Traced
from torch.utils import _pytree as pytree

from edgeq.model.graph import Array, Free, Named, Node, Program, Value, replaced
from edgeq.model.operators import constant_of, operator_of


def exported_program(program: Program, example: Sequence[Array]) -> ExportedProgram:
    """The program with fake tensors as values, and sample inputs. It takes PyTorch's compiler, seconds of imports.

    Args:
        program: one that plain data has words for.
        example: an input for each argument.
    """
    import sympy  # type: ignore[import-untyped]
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv
    from torch.utils._sympy.numbers import int_oo
    from torch.utils._sympy.value_ranges import ValueRanges

    calling = program.calling
    sizes, symbols, ranges = ShapeEnv(assume_static_by_default=True), {}, {}
    for name, (lowest, highest, traced) in calling["free"].items():
        symbol = symbols[name] = sympy.Symbol(name, positive=True, integer=True)
        ranges[symbol] = ValueRanges(lowest, int_oo if highest is None else highest)
        sizes.add_backed_var_to_val(symbol, traced)
        sizes.constrain_symbol_range(symbol, ranges[symbol].lower, ranges[symbol].upper)

    def size(of: int | Free) -> Any:
        if isinstance(of, int):
            return of
        return sizes.create_symintnode(of.factor * symbols[of.symbol], hint=of.traced)

    def fake(value: Any) -> Any:
        if isinstance(value, Value):
            return torch.empty([size(s) for s in value.shape], dtype=getattr(torch, value.dtype))
        if isinstance(value, tuple):
            return tuple(map(fake, value))
        return None if value is None else size(value)

    graph, made = Graph(), dict[Node, Traced]()
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=sizes):
        for node in program.nodes:
            made[node] = _traced(program, graph, node, made)
            if node.op != "output":
                made[node].meta["val"] = fake(node.value)
    graph.lint()
    signature, state, constants = _signature(program)
    inward, outward = map(pytree.treespec_loads, calling["containers"])
    args, kwargs = pytree.tree_unflatten([torch.from_numpy(one) for one in example], inward)
    call = ModuleCallSignature([], [], inward, outward, calling["arguments"])
    return ExportedProgram(
        root=torch.nn.Module(),
        graph=graph,
        graph_signature=signature,
        state_dict=state,
        range_constraints=ranges,
        module_call_graph=[ModuleCallEntry("", call)],
        example_inputs=(args, kwargs),
        constants={**constants},
    )


def _traced(program: Program, graph: Graph, node: Node, made: dict[Node, Traced]) -> Traced:
    def leaf(of: Any) -> Any:
        return made[of] if isinstance(of, Node) else constant_of(of) if isinstance(of, Named) else of

    target = operator_of(program, node.target) if node.op == "call_function" else node.target
    found = graph.create_node(node.op, target, replaced(node.args, leaf), replaced(dict(node.kwargs), leaf), node.name)
    found.name = node.name  # inputs may have names that `create_node` gives to nothing, such as `input`
    if node.modules:
        found.meta["nn_module_stack"] = {key: (path, of) for key, path, of in node.modules}
    return found


def _signature(program: Program) -> tuple[ExportGraphSignature, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The signature, and the tensors that it names: of the state_dict, and constants."""
    specs: list[InputSpec] = []
    held: dict[bool, dict[str, torch.Tensor]] = {True: {}, False: {}}
    for kind, node, name, persistent, in_state, gradient in program.calling["inputs"]:
        specs.append(InputSpec(InputKind[kind], TensorArgument(node), name, persistent))
        if InputKind[kind] is not InputKind.USER_INPUT:
            tensor = torch.from_numpy((program.state if in_state else program.constants)[name])
            is_parameter = InputKind[kind] is InputKind.PARAMETER
            held[in_state][name] = torch.nn.Parameter(tensor, requires_grad=gradient) if is_parameter else tensor
    outputs = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node), None) for node in program.calling["outputs"]]
    return ExportGraphSignature(specs, outputs), held[True], held[False]
