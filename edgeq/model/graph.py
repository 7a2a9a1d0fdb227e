"""A network as a graph of named operators: all that is planned, quantized and written is read from this.

It stands apart from PyTorch, whose import takes seconds: `edgeq.model.traced` makes it of a program that `torch.export`
traced, `edgeq.model.plain` of what the cache kept, and `edgeq.model.execute` runs it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Free:
    """A size that the caller's data decides: `factor` times `symbol`, which is often the batch.

    Attributes:
        traced: what it was when the graph was made.
    """

    factor: int
    symbol: str
    traced: int


@dataclass(frozen=True)
class Value:
    """A tensor without its numbers.

    Attributes:
        dtype: `float32`, `int64`, ...
    """

    dtype: str
    shape: tuple[int | Free, ...]


Described: TypeAlias = "Value | Free | int | tuple[Any, ...] | None"
"""What an operator gives: a tensor, a size, several of them, or something that nobody asks for."""


@dataclass(frozen=True)
class Named:
    """A constant of PyTorch's among an operator's arguments, such as `torch.float32`."""

    name: str


@dataclass(eq=False)
class Node:
    """An input, a constant, an operator, or the outputs.

    Attributes:
        name: the only one of this name.
        op: `placeholder` for inputs and constants, `call_function` for operators; `get_attr` for what an operator is
            given as a whole, such as another graph.
        target: the operator's name, such as `aten.conv2d.default`.
        args, kwargs: with nodes for what is computed; those of `output` are a tuple of the outputs.
        value: what is known of what it gives, before it is computed.
        modules: where it was traced, outermost first: for each module a key, its path and its class.
        users: who reads it, each once.
    """

    name: str
    op: Literal["placeholder", "call_function", "get_attr", "output"]
    target: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    value: Described = None
    modules: tuple[tuple[str, str, str], ...] = ()
    users: list[Node] = field(default_factory=list, repr=False)

    @cached_property
    def all_input_nodes(self) -> list[Node]:
        """What it reads, each once, in the order of the arguments."""
        return list(dict.fromkeys(_nodes_in((self.args, self.kwargs))))


@dataclass(frozen=True, eq=False)
class Program:
    """A functional graph whose parameters, buffers and constants are placeholders.

    Attributes:
        nodes: in the order in which they run; the outputs are last.
        inputs, outputs: names of the nodes that the caller gives and gets.
        lifted: by the name of a placeholder, that of its tensor.
        state: parameters and buffers by name.
        constants: what is neither, and buffers that a state_dict leaves out.
        calling: what a caller gives and gets as PyTorch's exporters know it, in plain data.
        functions: by target, operators that their name alone does not say, and what `get_attr` gets.
        wordless: what of it plain data has no words for; empty if it has.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    lifted: Mapping[str, str]
    state: Mapping[str, Array]
    constants: Mapping[str, Array]
    calling: Mapping[str, Any]
    functions: Mapping[str, Any] = field(default_factory=dict)
    wordless: str = ""

    def tensors(self) -> dict[str, Array]:
        """Parameters, buffers and constants by the name of their placeholder."""
        held = {**self.constants, **self.state}
        return {node: held[name] for node, name in self.lifted.items() if name in held}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what is computed: the same graph with the same numbers has the same, wherever it came from."""
        steps = [[n.op, n.name, n.target, _told(n.args), _told(n.kwargs)] for n in self.nodes]
        digest = hashlib.sha256(json.dumps([steps, sorted(self.lifted.items())], allow_nan=True).encode())
        for name, array in sorted({**self.constants, **self.state}.items()):
            digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def linked(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes of a graph, each of which knows now who reads it."""
    for node in nodes:
        for source in node.all_input_nodes:
            source.users.append(node)
    return tuple(nodes)


def with_constants(
    program: Program, nodes: Sequence[Node], state: Mapping[str, Array], fresh: Mapping[Node, str]
) -> Program:
    """A program of other nodes and tensors.

    Args:
        program: one whose way of being called is known (`Program.calling`).
        nodes: new ones, without constants that are `fresh`.
        state: what takes the place of parameters or is new, by name.
        fresh: constants to put in front, each with the name of its tensor.
    """
    given: list[list[Any]] = []
    for node, name in fresh.items():
        kind, persistent = ("PARAMETER", None) if state[name].dtype.kind == "f" else ("BUFFER", True)
        given.append([kind, node.name, name, persistent, True, False])
    return replace(
        program,
        nodes=linked([*fresh, *nodes]),
        lifted={**{node.name: name for node, name in fresh.items()}, **program.lifted},
        state={**program.state, **state},
        calling={**program.calling, "inputs": [*given, *program.calling["inputs"]]},
    )


def constant(name: str, array: Array) -> Node:
    """The node of a tensor, by the tensor's name."""
    node = f"p_{node_name(name)}"
    return Node(node, "placeholder", node, value=Value(str(array.dtype), array.shape))


def node_name(name: str) -> str:
    """What a node is called after a tensor or layer: exporters print graphs as Python."""
    return re.sub(r"\W", "_", name)


def replaced(argument: Any, known: Callable[[Any], Any]) -> Any:
    """An argument with something else in place of each of its leaves: nodes, numbers, texts."""
    if isinstance(argument, list | tuple):
        found = [replaced(one, known) for one in argument]
        return found if isinstance(argument, list) else tuple(found)
    if isinstance(argument, Mapping):
        return {name: replaced(one, known) for name, one in argument.items()}
    if isinstance(argument, slice):
        return slice(*(replaced(end, known) for end in (argument.start, argument.stop, argument.step)))
    return known(argument)


def itemsize(dtype: str) -> int:
    """Bytes of one number of a type."""
    return 2 if dtype == "bfloat16" else 1 if dtype.startswith("float8") else np.dtype(dtype).itemsize


def _nodes_in(argument: Any) -> Iterator[Node]:
    if isinstance(argument, Node):
        yield argument
    elif isinstance(argument, list | tuple):
        for one in argument:
            yield from _nodes_in(one)
    elif isinstance(argument, Mapping):
        for one in argument.values():
            yield from _nodes_in(one)
    elif isinstance(argument, slice):
        yield from _nodes_in((argument.start, argument.stop, argument.step))


def _told(argument: Any) -> Any:
    """An argument for the fingerprint: tuples apart from lists, nodes by name, and anything strange as it shows."""
    if isinstance(argument, list):
        return [_told(one) for one in argument]
    if isinstance(argument, tuple):
        return {"tuple": [_told(one) for one in argument]}
    if isinstance(argument, Mapping):
        return {"mapping": [[name, _told(one)] for name, one in argument.items()]}
    if isinstance(argument, Node):
        return {"node": argument.name}
    return argument if argument is None or isinstance(argument, bool | int | float | str) else {"other": repr(argument)}
