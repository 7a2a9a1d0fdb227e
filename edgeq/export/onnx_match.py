"""Finds the values of a model in its exported ONNX model: by what they are on samples, and by their place.

Values alone do not tell: an output may be given twice, or be the same as what it is computed from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from edgeq.errors import UnsupportedError
from edgeq.export.hidden_rows import refuse_hidden_rows
from edgeq.model.graph import Node
from edgeq.model.model import Model
from edgeq.model.ops import is_float

CLOSE = 1e-3
"""Largest error of a value that is taken for the same, relative to its own root mean square."""

_NOTHING = 1e-6
"""Root mean square of what is only the rounding of a zero."""


def match(model: Model, exported: ir.Model) -> dict[str, str]:
    """Graph nodes to the names of ONNX values, each of which stands for one node.

    A node is looked for among the values with the same numbers. Those come first that are computed from the same found
    values as it is, then those of its own name, then what is computed earlier. Every output gets a value of its own:
    one that is given twice, or is no more than an input, a constant or an inner value, is copied by an Identity.

    Raises:
        UnsupportedError: the exported model does not run, or computes something else.
    """
    graph = exported.graph
    _own_outputs(graph)
    ours, answers = _ours(model)
    theirs = _theirs(exported, [x.numpy() for x in _example(model)])
    for name, value, answer in zip(model.output_names, graph.outputs, answers, strict=True):
        if not same(answer, theirs[str(value.name)]):
            refuse_hidden_rows(model, [_example(model)])
            raise UnsupportedError(
                "the ONNX exporter changed what the model computes", where=f"output {name}", remedy="report this model"
            )
    result = {node: str(v.name) for node, v in zip(model.input_nodes, graph.inputs, strict=True)}
    _find(model, graph, ours, theirs, result)
    _settle_outputs(model, graph, result)
    return result


def copied(value: ir.Value) -> ir.Value:
    """What a value is a copy of, behind any number of Identities; the value itself where it is none."""
    while (node := value.producer()) is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two arrays are the same up to rounding. Integers and truth values have to be equal."""
    if ours.shape != theirs.shape or (ours.dtype.kind == "f") != (theirs.dtype.kind == "f"):
        return False
    if ours.dtype.kind != "f":
        return np.array_equal(ours, theirs)
    finite = np.isfinite(ours)
    if not np.array_equal(finite, np.isfinite(theirs)) or not np.array_equal(
        ours[~finite], theirs[~finite], equal_nan=True
    ):
        return False
    a, b = ours[finite].astype(np.float64), theirs[finite].astype(np.float64)
    # the largest value is taken out of the squares, which would overflow for masks of the lowest float
    largest = max(float(np.abs(a).max(initial=0.0)), 1e-30)
    power, error = np.sum((a / largest) ** 2), np.sum(((a - b) / largest) ** 2)
    return bool(np.sqrt(error) <= CLOSE * np.sqrt(power) + _NOTHING * np.sqrt(a.size) / largest)


def _find(
    model: Model,
    graph: ir.Graph,
    ours: Mapping[str, np.ndarray],
    theirs: Mapping[str, np.ndarray],
    result: dict[str, str],
) -> None:
    values = {str(v.name): v for node in graph for v in node.outputs if str(v.name) in theirs}
    position = {name: i for i, name in enumerate(values)}
    # an output's own value is another node's last resort
    leaving = {str(copied(v).name): node for node, v in reversed(_ends(model, graph))}
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, value in values.items():
        if copied(value) is value:
            by_shape.setdefault(theirs[name].shape, []).append(name)
    ours_known, theirs_known = _vectors(model, graph)
    ours_known |= result
    theirs_known |= {name: name for name in result.values()}
    found = set(result.values())
    for node, array in ours.items():
        if node in result:
            continue
        fit = [n for n in by_shape.get(array.shape, []) if n not in found and same(array, theirs[n])]
        if not fit:
            continue
        wanted = _before(model.nodes[node], lambda n: n.all_input_nodes, ours_known, lambda n: n.name)

        def rank(name: str, node: str = node, wanted: set[str] = wanted) -> tuple[bool, bool, bool, int]:
            placed = wanted == _before(values[name], _sources, theirs_known, lambda v: str(v.name))
            return leaving.get(name, node) != node, not placed, name != node, position[name]

        result[node] = ours_known[node] = min(fit, key=rank)
        theirs_known[result[node]] = result[node]
        found.add(result[node])


def _vectors(model: Model, graph: ir.Graph) -> tuple[dict[str, str], dict[str, str]]:
    """The constant vectors that both have, by their names here and there, each under the name of the numbers in it.

    A bias of zeros changes no value: that it is read tells what is behind its addition from what is in front of it.
    """

    state = model.state

    def vectors(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
        return {
            name: hashlib.sha256(a.tobytes()).hexdigest()
            for name, a in arrays.items()
            if a.ndim == 1 and a.dtype == "f4"
        }

    ours = vectors({name: state[held] for name, held in model.program.lifted.items() if held in state})
    theirs = vectors({n: v.const_value.numpy() for n, v in graph.initializers.items() if v.const_value is not None})
    both = set(ours.values()) & set(theirs.values())
    kept = ({name: numbers for name, numbers in one.items() if numbers in both} for one in (ours, theirs))
    return next(kept), next(kept)


def _before(
    start: Any, sources: Callable[[Any], Sequence[Any]], known: Mapping[str, str], name: Callable[[Any], str]
) -> set[str]:
    """What something is computed from: on each way back the first that is known, by what that is known as."""
    ends: set[str] = set()
    seen: set[str] = set()
    waiting = list(sources(start))
    while waiting:
        one = waiting.pop()
        if name(one) in seen:
            continue
        seen.add(name(one))
        if name(one) in known:
            ends.add(known[name(one)])
        else:
            waiting.extend(sources(one))
    return ends


def _sources(value: ir.Value) -> list[ir.Value]:
    producer = value.producer()
    return [v for v in producer.inputs if v is not None] if producer is not None else []


def _ends(model: Model, graph: ir.Graph) -> list[tuple[str, ir.Value]]:
    return list(zip(model.output_nodes, graph.outputs, strict=True))


def _settle_outputs(model: Model, graph: ir.Graph, result: dict[str, str]) -> None:
    """Every output's node stands for its value, or for what that is a copy of."""
    taken = set(result.values())
    for index, (node, value) in enumerate(_ends(model, graph)):
        if result.get(node) in (value.name, copied(value).name):
            continue
        if value.name in taken:  # by an inner node that is the same
            value = _copy(graph, index)
        result[node] = str(value.name)
        taken.add(result[node])


def _own_outputs(graph: ir.Graph) -> None:
    seen: set[int] = set()
    for index, value in enumerate(list(graph.outputs)):
        if value.producer() is None or id(value) in seen:
            value = _copy(graph, index)
        seen.add(id(value))


def _copy(graph: ir.Graph, index: int) -> ir.Value:
    """Puts an Identity before an output."""
    source = graph.outputs[index]
    node = ir.Node("", "Identity", [source], name=f"{source.name}_copy_{index}")
    value = node.outputs[0]
    value.name, value.shape = f"{source.name}_copy_{index}", source.shape
    if source.dtype is not None:
        value.dtype = source.dtype
    graph.append(node)
    graph.outputs[index] = value
    return value


def _ours(model: Model) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """The float values of the graph's nodes, and the outputs."""
    found: dict[str, np.ndarray] = {}

    def see(node: Node, values: list[Any]) -> list[Any]:
        if is_float(node):
            found[node.name] = values[0].numpy()
        return values

    (outputs,) = model.run([_example(model)], see)
    return found, [x.numpy() for x in outputs]


def _example(model: Model) -> list[torch.Tensor]:
    """One sample, where the model takes any number."""
    return [torch.from_numpy(x[:1] if model.dynamic_batch else x) for x in model.example]


def _theirs(exported: ir.Model, inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    import onnxruntime

    proto = ir.to_proto(exported)
    present = {o.name for o in proto.graph.output}
    for node in proto.graph.node:
        for name in node.output:
            if name and name not in present:
                proto.graph.output.add().name = name
                present.add(name)
    options = onnxruntime.SessionOptions()
    # optimizations would remove the very values that are asked for
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        feed = {i.name: array for i, array in zip(session.get_inputs(), inputs, strict=True)}
        names = [o.name for o in session.get_outputs()]
        return {n: v for n, v in zip(names, session.run(names, feed), strict=True) if isinstance(v, np.ndarray)}
    except Exception as error:  # the runtime's own kinds, which share no base
        raise UnsupportedError(
            f"the exported ONNX model does not run: {' '.join(str(error).split())[:300]}",
            remedy="choose another format, or report this model",
        ) from error
