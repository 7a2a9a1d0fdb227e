"""A graph as plain data: its nodes as JSON, its tensors as arrays. Nothing in it can run, and reading it takes no
PyTorch.

Operators are named, those of ATen that only compute and arithmetic on sizes. Names become part of Python code where
PyTorch's exporters are given the program (`edgeq.model.rebuilt`), so that all of them are checked: a cache may be
shared, and its content is no more trusted than a user's file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from keyword import iskeyword
from typing import Any

import numpy as np

from edgeq.model.containers import is_container
from edgeq.model.graph import Array, Described, Free, Named, Node, Program, Value, linked
from edgeq.model.names import ATEN, CONSTANTS, DTYPES, OPERATORS

_STEPS = ("placeholder", "call_function", "output")
_HELD = ("PARAMETER", "BUFFER", "CONSTANT_TENSOR")


class InexpressibleError(Exception):
    """A program has something that this form does not: another library's operator, sizes that are no multiples of one
    free size, a graph within the graph."""


def write(program: Program) -> tuple[dict[str, Any], dict[str, Array]]:
    """A graph as what JSON has, and its tensors by name.

    Raises:
        InexpressibleError: it cannot be written in this form.
    """
    if program.wordless:
        raise InexpressibleError(program.wordless)
    try:
        form = {**program.calling, "nodes": [_write_node(node) for node in program.nodes]}
        tensors = {**program.constants, **program.state}
        arrays = {name: tensors[name] for _, _, name, *_ in form["inputs"] if name is not None}
        same = read(form, arrays).fingerprint == program.fingerprint
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InexpressibleError(str(error)) from error
    if not same:
        raise InexpressibleError("it does not come back as the same program")
    return form, arrays


def read(form: Mapping[str, Any], arrays: Mapping[str, Array]) -> Program:
    """What `write` wrote. The arrays become the tensors' memory.

    Raises:
        Exception: of any kind, where this is not what `write` writes.
    """
    state: dict[str, Array] = {}
    constants: dict[str, Array] = {}
    lifted: dict[str, str] = {}
    for kind, node, name, _, in_state, _ in form["inputs"]:
        if kind in _HELD:
            lifted[node] = name
            (state if in_state else constants)[name] = np.require(arrays[name], requirements=["C", "W"])
        elif kind != "USER_INPUT":
            raise ValueError(f"{node!r} is {kind}")
    for name in (*form["arguments"], *form["free"]):
        _identifier(name)
    if not all(map(is_container, form["containers"])):
        raise ValueError("containers of other kinds than PyTorch's own")
    nodes = _read_nodes(form)
    placed = [node.name for node in nodes if node.op == "placeholder"]
    given = [node for _, node, *_ in form["inputs"]]
    if given != placed or [node.name for node in nodes[-1].args[0]] != form["outputs"] or nodes[-1].op != "output":
        raise ValueError("inputs or outputs are not the graph's")
    return Program(
        nodes=nodes,
        inputs=tuple(node for kind, node, *_ in form["inputs"] if kind == "USER_INPUT"),
        outputs=tuple(form["outputs"]),
        lifted=lifted,
        state=state,
        constants=constants,
        calling={name: value for name, value in form.items() if name != "nodes"},
    )


def _write_node(node: Node) -> dict[str, Any]:
    if node.op not in _STEPS:
        raise InexpressibleError(f"{node.name} is a {node.op}")
    return {
        "op": node.op,
        "name": node.name,
        "target": node.target,
        "args": [write_argument(a) for a in node.args],
        "kwargs": {name: write_argument(a) for name, a in node.kwargs.items()},
        "value": _write_value(node.value),
        "modules": [list(module) for module in node.modules],
    }


def _read_nodes(form: Mapping[str, Any]) -> tuple[Node, ...]:
    made: dict[str, Node] = {}
    for one in form["nodes"]:
        op, name, target = one["op"], _identifier(one["name"]), one["target"]
        if name in made or op not in _STEPS:
            raise ValueError(f"{name} is a second one or a {op}")
        made[name] = Node(
            name=name,
            op=op,
            target=_target(target) if op == "call_function" else _identifier(target),
            args=tuple(read_argument(a, made) for a in one["args"]),
            kwargs={_identifier(key): read_argument(a, made) for key, a in one["kwargs"].items()},
            value=_read_value(one["value"], form["free"]),
            modules=tuple((_text(key), _text(path), _text(of)) for key, path, of in one["modules"]),
        )
    return linked(list(made.values()))


def _target(name: str) -> str:
    owner, _, rest = name.partition(".")
    if (owner == "operator" and rest in OPERATORS) or ATEN.fullmatch(name):
        return name
    raise ValueError(f"{name!r} is no operator that only computes")


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
    if isinstance(value, Named) and value.name in CONSTANTS:
        return {"named": value.name}
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
    if kind == "named" and inner in CONSTANTS:
        return Named(inner)
    raise ValueError(f"an argument is a {kind}")


def _write_value(value: Described) -> Any:
    if isinstance(value, Value):
        return {"dtype": value.dtype, "shape": [_write_size(size) for size in value.shape]}
    if isinstance(value, tuple):
        return {"several": [_write_value(v) for v in value]}
    return None if value is None else {"size": _write_size(value)}


def _write_size(size: int | Free) -> int | list[Any]:
    return [size.factor, size.symbol] if isinstance(size, Free) else size


def _read_value(value: Any, free: Mapping[str, Sequence[int]]) -> Described:
    def size(of: Any) -> int | Free:
        if type(of) is int:
            return of
        factor, symbol = of
        return Free(int(factor), symbol, int(factor) * int(free[symbol][2]))

    if value is None:
        return None
    if "several" in value:
        return tuple(_read_value(v, free) for v in value["several"])
    if "size" in value:
        return size(value["size"])
    if value["dtype"] not in DTYPES:
        raise ValueError(f"{value['dtype']!r} is no type")
    return Value(value["dtype"], tuple(map(size, value["shape"])))


def _identifier(name: str) -> str:
    if not (isinstance(name, str) and name.isidentifier() and not iskeyword(name)):
        raise ValueError(f"{name!r} is no name")
    return name


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
