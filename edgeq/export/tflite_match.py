"""Which tensor of a converted file holds which value of the model: found by running both on the same input.

Names do not survive a conversion, and layouts change. What a tensor's values add up to does not depend on the order
in which they are stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeq.errors import UnsupportedError
from edgeq.export.tflite_graph import Graph
from edgeq.model.graph import Node
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.model.ops import is_float, op_class, shape_of

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-3
"""Largest difference of two statistics of one value, relative to its root mean square: kernels add in other orders."""

SAMPLES = 2

MOVERS = frozenset(
    {"TRANSPOSE", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "PAD", "PADV2", "MIRROR_PAD", "SLICE", "STRIDED_SLICE", "SPLIT",
     "SPLIT_V", "UNPACK", "PACK", "CONCATENATION", "GATHER", "GATHER_ND", "TILE", "BROADCAST_TO", "MAX_POOL_2D",
     "RESIZE_NEAREST_NEIGHBOR", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND"}
)  # fmt: skip
"""Operators whose output values are values of their inputs, or zero: they carry a scale and do not change it."""

_REARRANGES = frozenset({"reshape", "transpose", "slice", "concat", "pad"})


def match(model: Model, data: bytes, inputs: Sequence[torch.Tensor]) -> dict[int, str]:
    """The graph node that each computed float tensor of a file stands for; tensors in between have none.

    Nodes that only rearrange a value (a reshape, a transpose) are the same value: the tensor is given the node that
    computed it (see `origins`).

    Args:
        data: a float `.tflite` file.
        inputs: for the shapes; floats are drawn at random, integers taken as they are.

    Raises:
        UnsupportedError: the file computes something else than the model.
    """
    import torch

    graph = Graph(data)
    generator = torch.Generator().manual_seed(0)
    samples = [
        [torch.randn(x.shape, generator=generator) if x.is_floating_point() else x for x in inputs]
        for _ in range(SAMPLES)
    ]
    same = origins(model)
    ours = _ours(model, samples, same)
    theirs = _theirs(graph, data, samples)
    found = _assign(model, graph, ours, theirs, same)
    for index, node in zip(graph.outputs, model.output_nodes, strict=True):
        if is_float(model.nodes[node]) and not _close(ours[same[node]], theirs[index]):
            raise UnsupportedError(
                "the TFLite converter changed what the model computes",
                where=f"output {node}",
                remedy="choose another format for this model",
            )
    return found


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


def _ours(model: Model, samples: list[list[torch.Tensor]], same: Mapping[str, str]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def see(node: Node, values: list[Any]) -> list[Any]:
        if is_float(node) and same[node.name] == node.name:
            found[node.name] = _statistics([v.numpy() for v in values])
        return values

    model.run(samples, see)
    return found


def _theirs(graph: Graph, data: bytes, samples: list[list[torch.Tensor]]) -> dict[int, np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=data,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    wanted = {*graph.inputs} | {int(i) for op in graph.operators for i in op.outputs}
    values: dict[int, list[np.ndarray]] = {i: [] for i in sorted(wanted) if graph.is_float(i)}
    for sample in samples:
        for index, value in zip(graph.inputs, sample, strict=True):
            interpreter.set_tensor(index, value.numpy().astype(graph.dtype(index)))
        interpreter.invoke()
        for index, seen in values.items():
            seen.append(interpreter.get_tensor(index))
    return {index: _statistics(seen) for index, seen in values.items()}


def _statistics(samples: list[np.ndarray]) -> np.ndarray:
    """Size, root mean square, and what tells values apart whatever their order; float64 [2 + 5 * samples]."""
    flat = [s.astype(np.float64).ravel() for s in samples]
    if flat[0].size == 0 or not all(np.isfinite(f).all() for f in flat):
        return np.array([-1.0])
    rms = max(float(np.sqrt(np.mean(np.concatenate(flat) ** 2))), 1e-12)
    parts = [[f.min(), f.max(), f.mean(), np.abs(f).mean(), (f**3).mean() / rms**2] for f in flat]
    return np.array([flat[0].size, rms, *np.ravel(parts)])


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    return _distance(a, b) <= TOLERANCE


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    if a[0] != b[0] or a.size < 2:
        return float("inf")
    return float(np.abs(a[1:] - b[1:]).max() / max(a[1], b[1]))


def _assign(
    model: Model,
    graph: Graph,
    ours: Mapping[str, np.ndarray],
    theirs: Mapping[int, np.ndarray],
    same: Mapping[str, str],
) -> dict[int, str]:
    found = dict(zip(graph.inputs, model.input_nodes, strict=True))
    groups, made_by = owners(model), makers(graph)
    by_size: dict[float, list[str]] = {}
    for node, seen in ours.items():
        by_size.setdefault(float(seen[0]), []).append(node)
    used: set[str] = set()
    for operator in graph.operators:
        floats = [int(i) for i in operator.inputs if graph.is_float(int(i))]
        for index in (int(i) for i in operator.outputs):
            if index not in theirs:
                continue
            near = [n for n in by_size.get(float(theirs[index][0]), []) if _close(ours[n], theirs[index])]
            if graph.kind(operator) in MOVERS and len(floats) == 1 and found.get(floats[0]) in near:
                found[index] = found[floats[0]]
            elif near:
                read = {source(graph, made_by, found, i) for i in floats}
                fits = [n for n in near if _reads(groups.get(n), n, same) == read] or near
                found[index] = next((n for n in fits if n not in used), fits[0])
                used.add(found[index])
    return found


def _reads(group: Group | None, node: str, same: Mapping[str, str]) -> set[str | None]:
    """What the operator that computes a node would read."""
    if group is None:
        return set()
    separate = node == group.activation
    direct = {group.root} if separate else set(group.inputs)
    return {same[name] for name in direct}
