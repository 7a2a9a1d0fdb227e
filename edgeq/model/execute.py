"""Runs a program's graph node by node, so that values can be seen and changed on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from edgeq.model.graph import Named, Node, Program, replaced
from edgeq.model.operators import constant_of, operator_of

Constant = torch.Tensor | Sequence[torch.Tensor]

Hook = Callable[[Node, list[Any]], list[Any]]
"""Sees a node and its value in each batch, returns the values to go on with. Values may be views of one another:
a hook replaces them and never writes into them."""

Functions = Mapping[str, Callable[..., Any]]

Reads = Mapping[tuple[str, str], Sequence[Callable[[Any], Any] | None]]
"""By the names of a node and of one that it reads, what is done to that value on its way, in each batch; None leaves it
as it is. Others read it without."""


def constants(program: Program) -> dict[str, torch.Tensor]:
    """Parameters, buffers and lifted constants by the name of their placeholder, in the memory of their arrays."""
    return {node: torch.from_numpy(array) for node, array in program.tensors().items()}


_RESHAPES = ("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default")
_RECURRENT = ("aten.lstm.input", "aten.gru.input", "aten.rnn_tanh.input", "aten.rnn_relu.input")


def execute(
    program: Program,
    batches: Sequence[Sequence[torch.Tensor]],
    hook: Hook | None = None,
    replace: Mapping[str, Constant] | None = None,
    reads: Reads | None = None,
    differentiable: bool = False,
) -> list[list[torch.Tensor]]:
    """Runs the graph on several batches in step: each node for all batches, then the next node.

    A hook therefore sees what a layer gives on all the data before any later layer runs. What several batches share
    is computed once: the same batch may be given several times, to change one layer in each.

    Args:
        program: a functional program with its parameters lifted to placeholders.
        batches: the user inputs in order, for each batch.
        hook: called for every user input and every computed node with the values of all batches.
        replace: values for constants, by placeholder name, in place of the program's own; a list holds one for each
            batch.
        reads: what is changed for one reader alone.
        differentiable: record what is needed for gradients.

    Returns:
        For each batch the user outputs, in order.
    """
    with torch.enable_grad() if differentiable else torch.inference_mode():
        return _execute(program, batches, hook, replace or {}, reads or {})


def _execute(
    program: Program,
    batches: Sequence[Sequence[torch.Tensor]],
    hook: Hook | None,
    replace: Mapping[str, Constant],
    reads: Reads,
) -> list[list[torch.Tensor]]:
    env: dict[Node, list[Any]] = {}
    values = {
        name: [_channels_last(value)] * len(batches)
        if isinstance(value, torch.Tensor)
        else _once(value, _channels_last)
        for name, value in {**constants(program), **replace}.items()
    }
    dies_at: dict[Node, list[Node]] = {}
    for used, last in {u: node for node in program.nodes for u in node.all_input_nodes}.items():
        dies_at.setdefault(last, []).append(used)

    position = 0
    functions = {n.target: operator_of(program, n.target) for n in program.nodes if n.op == "call_function"}
    for node in program.nodes:
        if node.op == "placeholder" and node.name in values:
            env[node] = list(values[node.name])
        elif node.op == "placeholder":
            given = _once([batch[position] for batch in batches], _channels_last)
            position += 1
            env[node] = hook(node, given) if hook else given
        elif node.op == "get_attr":
            env[node] = [program.functions[node.target]] * len(batches)
        elif node.op == "call_function":
            computed = _all_batches(node, functions, _read(node, env, reads), len(batches))
            env[node] = hook(node, computed) if hook else computed
        elif node.op == "output":
            return [[env[o][i] for o in node.args[0]] for i in range(len(batches))]
        for dead in dies_at.get(node, ()):
            del env[dead]
    raise AssertionError("a graph without an output node")


def _read(node: Node, env: Mapping[Node, list[Any]], reads: Reads) -> Mapping[Node, list[Any]]:
    """The values of all nodes as one of them reads them."""
    changed = {source: ways for source in node.all_input_nodes if (ways := reads.get((node.name, source.name)))}
    if not changed:
        return env
    found = dict(env)
    for source, ways in changed.items():
        done: dict[tuple[int, int], Any] = {}
        for value, way in zip(env[source], ways, strict=True):
            key = (id(value), id(way))
            if key not in done:
                done[key] = value if way is None else way(value)
        found[source] = [done[id(value), id(way)] for value, way in zip(env[source], ways, strict=True)]
    return found


def _once(given: Sequence[torch.Tensor], work: Callable[[torch.Tensor], torch.Tensor]) -> list[Any]:
    """One result for each tensor; those that are one and the same share it."""
    done = {id(tensor): work(tensor) for tensor in {id(t): t for t in given}.values()}
    return [done[id(tensor)] for tensor in given]


def _all_batches(node: Node, functions: Functions, env: Mapping[Node, list[Any]], count: int) -> list[Any]:
    if count == 1:
        return [_call(node, functions, env, 0)]
    done: dict[tuple[int, ...], Any] = {}
    result = []
    for batch in range(count):
        key = tuple(id(env[source][batch]) for source in node.all_input_nodes)
        if key not in done:
            done[key] = _call(node, functions, env, batch)
        result.append(done[key])
    return result


def _call(node: Node, functions: Functions, env: Mapping[Node, list[Any]], batch: int) -> Any:
    def leaf(of: Any) -> Any:
        return env[of][batch] if isinstance(of, Node) else constant_of(of) if isinstance(of, Named) else of

    args, kwargs = replaced(node.args, leaf), replaced(node.kwargs, leaf)
    if node.target in _RECURRENT:
        _check_states(node, *args[:2], batch_first=bool(args[8] if len(args) > 8 else kwargs.get("batch_first")))
    # a view of what lies channels last may need a copy; where it does not, reshape is a view
    function = torch.ops.aten.reshape.default if node.target in _RESHAPES else functions[node.target]
    return function(*args, **kwargs)


def _check_states(node: Node, value: torch.Tensor, states: Any, *, batch_first: bool) -> None:
    """PyTorch's recurrent kernels write past the end of states that are of fewer samples than their input.

    Raises:
        ValueError: they are of another batch.
    """
    samples = value.shape[0 if batch_first else 1] if value.dim() == 3 else 1
    for state in [states] if isinstance(states, torch.Tensor) else states:
        if state.dim() == 3 and state.shape[1] != samples:
            raise ValueError(f"{node.name}: states of {state.shape[1]} samples for an input of {samples}")


def _channels_last(value: torch.Tensor) -> torch.Tensor:
    """Images and convolution weights with channels innermost, in which CPU convolutions take half the time."""
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
