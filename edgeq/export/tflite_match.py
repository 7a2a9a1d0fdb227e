"""Which tensor of a converted file holds which value of the model: found by running both on the same samples.

Names do not survive a conversion, and layouts change. What a tensor's values add up to does not depend on the order
in which they are stored, and along which of its axes they lie where does not depend on the order of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgeq.errors import UnsupportedError
from edgeq.export.hidden_rows import refuse_hidden_rows
from edgeq.export.tflite_graph import Graph
from edgeq.export.tflite_run import run
from edgeq.model.graph import Node
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.model.ops import is_float, op_class, shape_of

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-3
"""Largest difference of two statistics of one value, relative to its root mean square: kernels add in other orders."""

SHIFT = 1e-4
"""Largest distance of two centres of one value along an axis, relative to the length of the axis."""

ALIKE = 1e-2
"""Largest root mean square of the error of a float output, relative to that of the output."""

KNOWN = "value of "
"""In front of a graph node's name: a tensor that is called so is known to hold its value."""

MOVERS = frozenset(
    {"TRANSPOSE", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "PAD", "PADV2", "MIRROR_PAD", "SLICE", "STRIDED_SLICE", "SPLIT",
     "SPLIT_V", "UNPACK", "PACK", "CONCATENATION", "GATHER", "GATHER_ND", "TILE", "BROADCAST_TO", "MAX_POOL_2D",
     "RESIZE_NEAREST_NEIGHBOR", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND"}
)  # fmt: skip
"""Operators whose output values are values of their inputs, or zero: they carry a scale and do not change it."""

_LAYS_OUT = frozenset({"TRANSPOSE", "RESHAPE", "SQUEEZE", "EXPAND_DIMS"})

_REARRANGES = frozenset({"reshape", "transpose", "slice", "concat", "pad"})


def match(model: Model, data: bytes, inputs: Sequence[torch.Tensor]) -> dict[int, str]:
    """The graph node that each computed float tensor of a file stands for; tensors in between have none.

    Nodes that only rearrange a value (a reshape, a transpose) are the same value: the tensor is given the node that
    computed it (see `origins`).

    Args:
        data: a float `.tflite` file.
        inputs: one for each argument, of the shapes that the file is made for.

    Raises:
        UnsupportedError: the file computes something else than the model, or LiteRT cannot run it.
    """
    graph, same = Graph(data), origins(model)
    given = samples(model, inputs)
    ours, answers = _ours(model, given, same)
    computed = {*graph.inputs} | {int(i) for op in graph.operators for i in op.outputs}
    wanted = sorted(i for i in computed if graph.is_float(i))
    runs = run(graph, data, [[x.numpy() for x in sample] for sample in given], [*wanted, *graph.outputs])
    theirs = {index: _seen([seen[place] for seen in runs]) for place, index in enumerate(wanted)}
    _expect_same(model, given, answers, [seen[len(wanted) :] for seen in runs])
    return _assign(model, graph, ours, theirs, same)


def samples(model: Model, inputs: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Two samples to tell values apart by: two of the model's own examples, or one and what is near to it.

    Args:
        inputs: one for each argument, of the shapes that the file is made for.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    rows = [torch.from_numpy(array[-1:]) for array in model.example] if model.dynamic_batch else list(inputs)
    if any(x.is_floating_point() and not torch.equal(x, y) for x, y in zip(inputs, rows, strict=True)):
        return [list(inputs), rows]

    def near(x: torch.Tensor) -> torch.Tensor:
        if not x.is_floating_point():
            return x
        noise = torch.randn(x.shape, generator=generator)
        return x * (1 + 0.1 * noise) if x.any() else noise

    return [list(inputs), [near(x) for x in inputs]]


def _expect_same(
    model: Model,
    given: list[list[torch.Tensor]],
    ours: list[list[torch.Tensor]],
    theirs: list[list[np.ndarray]],
) -> None:
    """Outputs come in the model's order: they are compared number by number, also those that are integers."""
    for place, name in enumerate(model.output_names):
        a = np.concatenate([answer[place].numpy().ravel() for answer in ours])
        b = np.concatenate([np.asarray(answer[place]).ravel() for answer in theirs])
        if a.shape != b.shape or not _alike(a, b):
            refuse_hidden_rows(model, given)
            raise UnsupportedError(
                "the TFLite converter changed what the model computes",
                where=f"output {name}",
                remedy="choose another format for this model",
            )


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype.kind != "f":
        return bool(np.mean(a != b) <= ALIKE) if a.size else True
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False
    error, size = (float(np.sqrt(np.sum(x[finite] ** 2))) for x in (a - b, a))
    return bool(error <= ALIKE * size + 1e-6 * np.sqrt(finite.sum()))


def origins(model: Model) -> dict[str, str]:
    """For each node, the node that computed its values: itself, or what reshapes and transposes lead back to."""
    found: dict[str, str] = {}
    for node in model.program.nodes:
        found[node.name] = node.name
        sources = [n for n in node.all_input_nodes if n.name in found and is_float(n)]
        if node.op != "call_function" or op_class(node) not in _REARRANGES or not is_float(node) or len(sources) != 1:
            continue
        if int(np.prod(shape_of(sources[0]))) == int(np.prod(shape_of(node))):
            found[node.name] = found[sources[0].name]
    return found


def owners(model: Model) -> dict[str, Group]:
    """The group of each root and activation node."""
    return {member: group for group in model.groups for member in group.members}


def makers(graph: Graph) -> dict[int, Any]:
    """The operator that writes each tensor."""
    return {int(i): op for op in graph.operators for i in op.outputs}


def source(graph: Graph, makers: Mapping[int, Any], nodes: Mapping[int, str], index: int) -> str | None:
    """The node whose values a tensor carries, also through movers that the converter put in (a padding)."""
    while index not in nodes:
        maker = makers.get(index)
        if maker is None or graph.kind(maker) not in MOVERS:
            return None
        floats = [int(i) for i in maker.inputs if graph.is_float(int(i))]
        if len(floats) != 1:
            return None
        (index,) = floats
    return nodes[index]


class _Seen(NamedTuple):
    """What tells a value from others.

    Attributes:
        sums: of its numbers, whatever their order (see `_statistics`).
        lengths: of its axes, but for those of 1, in ascending order.
        centres: for each sample and axis, where along it the squares of the numbers have their centre.
    """

    sums: np.ndarray
    lengths: tuple[int, ...]
    centres: np.ndarray


def _seen(values: list[np.ndarray]) -> _Seen:
    shape = np.squeeze(values[0]).shape
    return _Seen(_statistics(values), tuple(sorted(shape)), np.array([_centres(v, shape) for v in values]))


def _centres(values: np.ndarray, shape: tuple[int, ...]) -> list[float]:
    """Of each axis, relative to its length; in ascending order of the lengths, then of the centres."""
    squares = np.square(values.astype(np.float64)).reshape(shape)
    found = []
    for axis, length in enumerate(shape):
        along = squares.sum(axis=tuple(i for i in range(squares.ndim) if i != axis))
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append((length, float(along @ np.arange(length) / along.sum() / length)))
    return [centre for _, centre in sorted(found)]


def _elsewhere(one: _Seen, other: _Seen) -> bool:
    """Whether the same numbers certainly lie at other places: rolled, flipped, or put together anew.

    Where axes were split or merged it cannot be told.
    """
    if one.lengths != other.lengths:
        return False
    return bool((np.abs(one.centres - other.centres) > SHIFT).any())  # never true of NaN


def _ours(
    model: Model, given: list[list[torch.Tensor]], same: Mapping[str, str]
) -> tuple[dict[str, _Seen], list[list[torch.Tensor]]]:
    found: dict[str, _Seen] = {}

    def see(node: Node, values: list[Any]) -> list[Any]:
        if is_float(node) and same[node.name] == node.name:
            found[node.name] = _seen([v.numpy() for v in values])
        return values

    return found, model.run(given, see)


def _statistics(seen: list[np.ndarray]) -> np.ndarray:
    """Size, root mean square, and what tells values apart whatever their order; float64 [2 + 5 * samples].

    NaN stands for what a sample cannot say, because it gives numbers that are not finite.
    """
    flat = [s.astype(np.float64).ravel() for s in seen]
    finite = [f for f in flat if f.size and np.isfinite(f).all()]
    if not finite:
        return np.array([-1.0])
    rms = max(float(np.sqrt(np.mean(np.concatenate(finite) ** 2))), 1e-12)
    parts = [
        [f.min(), f.max(), f.mean(), np.abs(f).mean(), (f**3).mean() / rms**2] if np.isfinite(f).all() else [np.nan] * 5
        for f in flat
    ]
    return np.array([flat[0].size, rms, *np.ravel(parts)])


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    if a[0] != b[0] or a.size < 2 or not np.array_equal(np.isnan(a), np.isnan(b)):
        return False
    return bool(np.nanmax(np.abs(a[1:] - b[1:])) <= TOLERANCE * max(a[1], b[1]))


def _assign(
    model: Model,
    graph: Graph,
    ours: Mapping[str, _Seen],
    theirs: Mapping[int, _Seen],
    same: Mapping[str, str],
) -> dict[int, str]:
    found = dict(zip(graph.inputs, model.input_nodes, strict=True))
    groups, made_by = owners(model), makers(graph)
    by_size: dict[float, list[str]] = {}
    for node, seen in ours.items():
        by_size.setdefault(float(seen.sums[0]), []).append(node)
    known = _known(model, graph, made_by, theirs)
    used = set(known.values())
    for operator in graph.operators:
        floats = [int(i) for i in operator.inputs if graph.is_float(int(i))]
        for index in (int(i) for i in operator.outputs):
            if index not in theirs:
                continue
            if index in known:
                found[index] = same[known[index]]
                continue
            near = [
                n for n in by_size.get(float(theirs[index].sums[0]), []) if _close(ours[n].sums, theirs[index].sums)
            ]
            here = [n for n in near if not _elsewhere(ours[n], theirs[index])]
            moved = near if graph.kind(operator) in _LAYS_OUT else here if graph.kind(operator) in MOVERS else []
            if len(floats) == 1 and found.get(floats[0]) in moved:
                found[index] = found[floats[0]]
            elif here:
                read = {source(graph, made_by, found, i) for i in floats}
                fits = [n for n in here if _reads(groups.get(n), n, same) == read] or here
                found[index] = next((n for n in fits if n not in used), fits[0])
                used.add(found[index])
    return found


def _known(model: Model, graph: Graph, made_by: Mapping[int, Any], theirs: Mapping[int, Any]) -> dict[int, str]:
    """Nodes of tensors that are known by their name, or by their place among the outputs."""
    known = {i: name.removeprefix(KNOWN) for i in theirs if (name := graph.name(i)).startswith(KNOWN)}
    for index, node in zip(graph.outputs, model.output_nodes, strict=True):
        first = laid_out(graph, made_by, index)
        if index in made_by and index in theirs and first in theirs and first in made_by:
            known.setdefault(first, node)
    return known


def laid_out(graph: Graph, made_by: Mapping[int, Any], index: int) -> int:
    """The tensor that holds a value first, before it is only laid out anew."""
    while (maker := made_by.get(index)) is not None and graph.kind(maker) in _LAYS_OUT:
        index = int(maker.inputs[0])
    return index


def _reads(group: Group | None, node: str, same: Mapping[str, str]) -> set[str | None]:
    """What the operator that computes a node would read."""
    if group is None:
        return set()
    separate = node == group.activation
    direct = {group.root} if separate else set(group.inputs)
    return {same[name] for name in direct}
