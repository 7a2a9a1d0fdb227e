"""A normalised program as plain data: its graph as JSON, its tensors as arrays. Nothing in it can run.

`torch.export.load` takes seconds for what is read here in a moment: it imports PyTorch's compiler, which fake tensors
and symbolic sizes need. Here a value is described by its type and sizes. The exporters need more: for them, and not
before, `PlainProgram.exported` makes what `torch.export` would.

Operators are found by name, those of ATen that only compute and arithmetic on sizes. Names become part of Python code
that PyTorch generates, so that they are checked too: a cache may be shared, and its content is no more trusted than a
user's file.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch._ops import OpOverload
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
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from edgeq.model.loaded import sha256_program
from edgeq.model.values import Free, Value
from edgeq.model.vet import OPERATORS, is_container

Arrays = Mapping[str, NDArray[Any]]

_ATEN = re.compile(r"aten\.(?!save\b|from_file\b)(?!__)(\w+)\.(?!__)(\w+)")
_TORCH = [v for v in vars(torch).values() if isinstance(v, torch.dtype | torch.layout | torch.memory_format)]
_NAMED: dict[str, Any] = {str(v): v for v in (*_TORCH, torch.device("cpu"))}
_DTYPES = {name: v for name, v in _NAMED.items() if isinstance(v, torch.dtype)}
_STEPS = ("placeholder", "call_function", "output")
_HELD = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


class InexpressibleError(Exception):
    """A program has something that this form does not: another library's operator, sizes that are no multiples of one
    free size, tensors of a type that NumPy does not have, a graph within the graph."""


@dataclass(frozen=True, eq=False)
class PlainProgram:
    """A program that was read from plain data."""

    form: Mapping[str, Any]
    graph_module: GraphModule
    graph_signature: ExportGraphSignature
    state_dict: dict[str, torch.Tensor]
    constants: dict[str, torch.Tensor]

    @property
    def graph(self) -> Graph:
        return self.graph_module.graph

    def exported(self, example: Sequence[torch.Tensor]) -> ExportedProgram:
        """The same as PyTorch's exporters take it: with fake tensors as values, and sample inputs."""
        import sympy  # type: ignore[import-untyped]
        from torch._subclasses import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv
        from torch.utils._sympy.numbers import int_oo
        from torch.utils._sympy.value_ranges import ValueRanges

        sizes, symbols, ranges = ShapeEnv(assume_static_by_default=True), {}, {}
        for name, (lowest, highest, traced) in self.form["free"].items():
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
                return torch.empty([size(s) for s in value.shape], dtype=value.dtype)
            if isinstance(value, tuple):
                return tuple(map(fake, value))
            return None if value is None else size(value)

        with FakeTensorMode(allow_non_fake_inputs=True, shape_env=sizes):
            graph = _read_graph(self.form, fake)
        inward, outward = map(pytree.treespec_loads, self.form["containers"])
        args, kwargs = pytree.tree_unflatten(list(example), inward)
        call = ModuleCallSignature([], [], inward, outward, self.form["arguments"])
        return ExportedProgram(
            root=torch.nn.Module(),
            graph=graph,
            graph_signature=self.graph_signature,
            state_dict=self.state_dict,
            range_constraints=ranges,
            module_call_graph=[ModuleCallEntry("", call)],
            example_inputs=(args, kwargs),
            constants={**self.constants},
        )


def write(program: ExportedProgram | PlainProgram) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """A normalised program as what JSON has, and its tensors by name.

    Raises:
        InexpressibleError: it cannot be written in this form.
    """
    try:
        form = dict(program.form) if isinstance(program, PlainProgram) else _form(program)
        tensors = {**program.constants, **program.state_dict}
        arrays = {name: _array(tensors[name]) for _, _, name, *_ in form["inputs"] if name is not None}
        same = sha256_program(read(form, arrays)) == sha256_program(program)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InexpressibleError(str(error)) from error
    if not same:
        raise InexpressibleError("it does not come back as the same program")
    return form, arrays


def read(form: Mapping[str, Any], arrays: Arrays) -> PlainProgram:
    """What `write` wrote. The arrays become the tensors' memory.

    Raises:
        Exception: of any kind, where this is not what `write` writes.
    """
    specs: list[InputSpec] = []
    held: dict[bool, dict[str, torch.Tensor]] = {True: {}, False: {}}
    for kind, node, name, persistent, in_state, gradient in form["inputs"]:
        specs.append(InputSpec(InputKind[kind], TensorArgument(node), name, persistent))
        if InputKind[kind] in _HELD:
            tensor = torch.from_numpy(np.require(arrays[name], requirements=["C", "W"]))
            is_parameter = InputKind[kind] is InputKind.PARAMETER
            held[in_state][name] = torch.nn.Parameter(tensor, requires_grad=gradient) if is_parameter else tensor
        elif InputKind[kind] is not InputKind.USER_INPUT:
            raise ValueError(f"{node!r} is {kind}")
    outputs = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node), None) for node in form["outputs"]]
    for name in (*form["arguments"], *form["free"]):
        _identifier(name)
    if not all(map(is_container, form["containers"])):
        raise ValueError("containers of other kinds than PyTorch's own")
    graph = _read_graph(form, lambda value: value)
    *steps, last = graph.nodes
    placed = [node.name for node in steps if node.op == "placeholder"]
    if [spec.arg.name for spec in specs] != placed or [node.name for node in last.args[0]] != form["outputs"]:
        raise ValueError("inputs or outputs are not the graph's")
    return PlainProgram(
        form, GraphModule(torch.nn.Module(), graph), ExportGraphSignature(specs, outputs), held[True], held[False]
    )


def _form(program: ExportedProgram) -> dict[str, Any]:
    state, nodes = program.state_dict, {node.name: node for node in program.graph.nodes}
    free = _Free(program)
    inputs = []
    for spec in program.graph_signature.input_specs:
        if not isinstance(spec.arg, TensorArgument):
            raise InexpressibleError(f"the input {spec.arg.name!r} is no tensor")
        value, gradient = nodes[spec.arg.name].meta["val"], False
        if spec.target is None:
            free.declare(value)
        else:
            gradient = spec.target in state and bool(state[spec.target].requires_grad)
        inputs.append([spec.kind.name, spec.arg.name, spec.target, spec.persistent, spec.target in state, gradient])
    for out in program.graph_signature.output_specs:
        if out.kind is not OutputKind.USER_OUTPUT or not isinstance(out.arg, TensorArgument):
            raise InexpressibleError(f"the output {out.arg.name!r} is no tensor")
    call = program.module_call_graph[0].signature
    if call is None or call.in_spec is None or call.out_spec is None:
        raise InexpressibleError("nothing says how it is called")
    return {
        "nodes": [_write_node(node, free) for node in program.graph.nodes],
        "inputs": inputs,
        "outputs": [out.arg.name for out in program.graph_signature.output_specs],
        "free": free.symbols,
        "containers": [pytree.treespec_dumps(call.in_spec), pytree.treespec_dumps(call.out_spec)],
        "arguments": list(call.forward_arg_names or ()),
    }


class _Free:
    """The free sizes of a program: each is a symbol in the shape of an input, with its range and its traced size."""

    def __init__(self, program: ExportedProgram) -> None:
        self.ranges = program.range_constraints
        self.symbols: dict[str, list[int | None]] = {}

    def declare(self, value: torch.Tensor) -> None:
        if not value.is_contiguous():
            raise InexpressibleError("an input lies in memory in another order")
        for size in value.shape:
            if not isinstance(size, int) and (symbol := size.node.expr).is_Symbol:
                lowest, highest = self.ranges[symbol].lower, self.ranges[symbol].upper
                most = int(highest) if highest.is_Integer else None
                self.symbols[symbol.name] = [int(lowest), most, int(size.node.hint)]

    def write(self, size: Any) -> int | list[Any]:
        """A size as a number, or as a factor and its symbol."""
        if isinstance(size, int):
            return size
        factor, symbol = size.node.expr.as_coeff_Mul()
        if not (factor.is_Integer and symbol.is_Symbol and symbol.name in self.symbols):
            raise InexpressibleError(f"the size {size} is no multiple of a free size of the inputs")
        return [int(factor), symbol.name]


def _write_node(node: Node, free: _Free) -> dict[str, Any]:
    if node.op not in _STEPS:
        raise InexpressibleError(f"{node.name} is a {node.op}")
    target = str(node.target) if node.op != "call_function" else _target_name(node.target)
    return {
        "op": node.op,
        "name": node.name,
        "target": target,
        "args": [write_argument(a) for a in node.args],
        "kwargs": {name: write_argument(a) for name, a in node.kwargs.items()},
        "value": None if node.op == "output" else _write_value(node.meta.get("val"), free),
        "modules": [[key, *map(_text, origin)] for key, origin in node.meta.get("nn_module_stack", {}).items()],
    }


def _read_graph(form: Mapping[str, Any], known: Callable[[Any], Any]) -> Graph:
    graph = Graph()
    made: dict[str, Node] = {}
    for one in form["nodes"]:
        op, name, target = one["op"], _identifier(one["name"]), one["target"]
        if name in made or op not in _STEPS:
            raise ValueError(f"{name} is a second one or a {op}")
        target = _target(target) if op == "call_function" else _identifier(target)
        args = tuple(read_argument(a, made) for a in one["args"])
        kwargs = {_identifier(key): read_argument(a, made) for key, a in one["kwargs"].items()}
        made[name] = node = graph.create_node(op, target, args, kwargs, name)
        node.name = name  # inputs may have names that `create_node` gives to nothing, such as `input`
        if op != "output":
            node.meta["val"] = known(_read_value(one["value"], form["free"]))
        if one["modules"]:
            node.meta["nn_module_stack"] = {_text(key): (_text(path), _text(of)) for key, path, of in one["modules"]}
    graph.lint()
    return graph


def _target_name(target: Any) -> str:
    name = str(target) if isinstance(target, OpOverload) else f"operator.{target.__name__}"
    if _target(name) is not target:
        raise InexpressibleError(f"{target} cannot be found by its name")
    return name


def _target(name: str) -> Callable[..., Any]:
    owner, _, rest = name.partition(".")
    if owner == "operator" and rest in OPERATORS:
        found: Callable[..., Any] = getattr(operator, rest)
        return found
    parts = _ATEN.fullmatch(name)
    overload = parts and getattr(getattr(torch.ops.aten, parts[1]), parts[2])
    if not isinstance(overload, OpOverload) or overload._schema.is_mutable:
        raise ValueError(f"{name!r} is no operator that only computes")
    return overload


def write_argument(value: Any) -> Any:
    """An operator's argument as JSON has it: a list is a list; nodes, tuples and PyTorch's constants are named.

    Raises:
        InexpressibleError: it is of another kind.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, list):
        return [write_argument(v) for v in value]
    if type(value) is tuple:
        return {"tuple": [write_argument(v) for v in value]}
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format | torch.device) and str(value) in _NAMED:
        return {"named": str(value)}
    raise InexpressibleError(f"an argument is a {type(value).__name__}")


def read_argument(value: Any, made: Mapping[str, Node]) -> Any:
    """What `write_argument` wrote.

    Args:
        made: by name, the nodes in front of the operator.

    Raises:
        Exception: of any kind, where this is not what `write_argument` writes.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [read_argument(v, made) for v in value]
    ((kind, inner),) = value.items()
    if kind == "node":
        return made[inner]
    if kind == "tuple":
        return tuple(read_argument(v, made) for v in inner)
    if kind == "named":
        return _NAMED[inner]
    raise ValueError(f"an argument is a {kind}")


def _write_value(value: Any, free: _Free) -> Any:
    if isinstance(value, torch.Tensor):
        return {"dtype": str(value.dtype), "shape": [free.write(size) for size in value.shape]}
    if isinstance(value, list | tuple):
        return {"several": [_write_value(v, free) for v in value]}
    if value is None or isinstance(value, int | torch.SymInt):
        return None if value is None else {"size": free.write(value)}
    raise InexpressibleError(f"a value is a {type(value).__name__}")


def _read_value(value: Any, free: Mapping[str, Sequence[int]]) -> Value | Free | int | tuple[Any, ...] | None:
    def size(of: Any) -> int | Free:
        if type(of) is int:
            return of
        factor, symbol = of
        return Free(int(factor), symbol, int(factor) * int(free[symbol][2]))

    if value is None:
        return None
    if "several" in value:
        return tuple(_read_value(v, free) for v in value["several"])
    return size(value["size"]) if "size" in value else Value(_DTYPES[value["dtype"]], tuple(map(size, value["shape"])))


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.device.type != "cpu":
        raise InexpressibleError(f"a {type(tensor).__name__} on {tensor.device}")
    array: NDArray[Any] = tensor.detach().numpy()  # TypeError for what NumPy has no type for
    return array


def _identifier(name: str) -> str:
    if not (isinstance(name, str) and name.isidentifier() and not iskeyword(name)):
        raise ValueError(f"{name!r} is no name")
    return name


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
