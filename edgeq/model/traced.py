"""From a program that `torch.export` traced to a graph that is read without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.fx import Node as Traced
from torch.utils import _pytree as pytree

from edgeq.model.graph import Described, Free, Named, Node, Program, Value, linked, replaced
from edgeq.model.names import ATEN, CONSTANTS, OPERATORS

_CONSTANTS = torch.dtype | torch.layout | torch.memory_format | torch.device


class _Wordless(Exception):
    """A program has something that plain data has no words for."""


def program_of(exported: ExportedProgram) -> Program:
    """The graph of a normalised program, with its tensors as they lie in memory.

    Args:
        exported: functional, with tensors that NumPy has types for.
    """
    functions: dict[str, Any] = {}
    made: dict[str, Node] = {}
    for node in exported.graph.nodes:
        target = _target(node, functions)
        if node.op == "get_attr":
            functions[target] = getattr(exported.graph_module, target)
        made[node.name] = Node(
            name=node.name,
            op=node.op,
            target=target,
            args=tuple(replaced(list(node.args), lambda leaf: _leaf(leaf, made))),
            kwargs=replaced(dict(node.kwargs), lambda leaf: _leaf(leaf, made)),
            value=None if node.op == "output" else _value(node.meta.get("val")),
            modules=tuple((key, *map(str, origin)) for key, origin in node.meta.get("nn_module_stack", {}).items()),
        )
    signature = exported.graph_signature
    calling: dict[str, Any] = {}
    wordless = f"{next(iter(functions))} is no operator of ATen" if functions else ""
    try:
        calling = _calling(exported)
    except _Wordless as error:
        wordless = str(error)
    return Program(
        nodes=linked(list(made.values())),
        inputs=tuple(map(str, signature.user_inputs)),
        outputs=tuple(map(str, signature.user_outputs)),
        lifted={s.arg.name: s.target or "" for s in signature.input_specs if s.kind is not InputKind.USER_INPUT},
        state=_arrays(exported.state_dict),
        constants=_arrays(exported.constants),
        calling=calling,
        functions=functions,
        wordless=wordless,
    )


def _target(node: Traced, functions: dict[str, Any]) -> str:
    """The name of an operator; what a name alone does not say is noted among the functions."""
    if node.op != "call_function":
        return str(node.target)
    function: Any = node.target
    if isinstance(function, OpOverload):
        name = str(function)
        plain = ATEN.fullmatch(name) is not None and not function._schema.is_mutable
    else:
        module, called = getattr(function, "__module__", None) or "torch", getattr(function, "__name__", str(function))
        name = f"{module.removeprefix('_')}.{called}"
        plain = module == "_operator" and called in OPERATORS
    if not plain:
        functions[name] = function
    return name


def _leaf(leaf: Any, made: Mapping[str, Node]) -> Any:
    if isinstance(leaf, Traced):
        return made[leaf.name]
    return Named(str(leaf)) if isinstance(leaf, _CONSTANTS) and str(leaf) in CONSTANTS else leaf


def _value(value: Any) -> Described:
    if isinstance(value, torch.Tensor):
        return Value(str(value.dtype).removeprefix("torch."), tuple(_size(size) for size in value.shape))
    if isinstance(value, list | tuple):
        return tuple(_value(one) for one in value)
    return _size(value) if isinstance(value, int | torch.SymInt) else None


def _size(size: int | torch.SymInt) -> int | Free:
    if isinstance(size, int):
        return size
    factor, symbol = size.node.expr.as_coeff_Mul()
    return Free(int(factor) if factor.is_Integer else 1, str(symbol), int(size.node.hint or 1))


def _arrays(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tensor.detach().numpy() for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}


def _calling(exported: ExportedProgram) -> dict[str, Any]:
    """The signature, the free sizes with their ranges, and how arguments and results lie in containers."""
    state, nodes = exported.state_dict, {node.name: node for node in exported.graph.nodes}
    free: dict[str, list[int | None]] = {}
    inputs = []
    for spec in exported.graph_signature.input_specs:
        if not isinstance(spec.arg, TensorArgument):
            raise _Wordless(f"the input {spec.arg.name!r} is no tensor")
        gradient = False
        if spec.target is None:
            free |= _free_sizes(exported, nodes[spec.arg.name].meta["val"])
        else:
            gradient = spec.target in state and bool(state[spec.target].requires_grad)
        inputs.append([spec.kind.name, spec.arg.name, spec.target, spec.persistent, spec.target in state, gradient])
    for out in exported.graph_signature.output_specs:
        if out.kind is not OutputKind.USER_OUTPUT or not isinstance(out.arg, TensorArgument):
            raise _Wordless(f"the output {out.arg.name!r} is no tensor")
    for tensor in (*state.values(), *exported.constants.values()):
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.device.type != "cpu":
            raise _Wordless(f"a {type(tensor).__name__} is among its constants")
    for node in exported.graph.nodes:
        _check_sizes(node.meta.get("val"), free)
    call = exported.module_call_graph[0].signature
    if call is None or call.in_spec is None or call.out_spec is None:
        raise _Wordless("nothing says how it is called")
    return {
        "inputs": inputs,
        "outputs": [out.arg.name for out in exported.graph_signature.output_specs],
        "free": free,
        "containers": [pytree.treespec_dumps(call.in_spec), pytree.treespec_dumps(call.out_spec)],
        "arguments": list(call.forward_arg_names or ()),
    }


def _free_sizes(exported: ExportedProgram, value: torch.Tensor) -> dict[str, list[int | None]]:
    """By symbol in the shape of an input, its least size, its largest, and the one that was traced."""
    if not value.is_contiguous():
        raise _Wordless("an input lies in memory in another order")
    found: dict[str, list[int | None]] = {}
    for size in value.shape:
        if not isinstance(size, int) and (symbol := size.node.expr).is_Symbol:
            lowest, highest = exported.range_constraints[symbol].lower, exported.range_constraints[symbol].upper
            most = int(highest) if highest.is_Integer else None
            found[symbol.name] = [int(lowest), most, int(size.node.hint)]
    return found


def _check_sizes(value: Any, free: Mapping[str, Any]) -> None:
    sizes = value.shape if isinstance(value, torch.Tensor) else [value]
    if isinstance(value, list | tuple):
        for one in value:
            _check_sizes(one, free)
        return
    for size in sizes:
        if isinstance(size, torch.SymInt):
            factor, symbol = size.node.expr.as_coeff_Mul()
            if not (factor.is_Integer and symbol.is_Symbol and symbol.name in free):
                raise _Wordless(f"the size {size} is no multiple of a free size of the inputs")
        elif not (size is None or isinstance(size, int)):
            raise _Wordless(f"a value is a {type(size).__name__}")
