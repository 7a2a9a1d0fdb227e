"""Cuts a `.tflite` file into one small file for each layer: its runtime profiles no operator that a delegate took over,
and so a layer is timed by running it alone."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeq.export.tflite_graph import Graph


@dataclass(frozen=True)
class Slice:
    """One layer as a file of its own.

    Attributes:
        layer: its name.
        data: the file.
        shapes: shape and dtype of each input.
    """

    layer: str
    data: bytes
    shapes: tuple[tuple[tuple[int, ...], str], ...]

    @cached_property
    def digest(self) -> str:
        """Equal for files that are."""
        return hashlib.sha256(self.data).hexdigest()[:24]

    def inputs(self) -> dict[str, np.ndarray]:
        """One sample of noise by input name, [1, ...]."""
        rng = np.random.default_rng(0)
        found: dict[str, np.ndarray] = {}
        for number, (shape, dtype) in enumerate(self.shapes):
            # integers may be rows of a table, of which the first is always there
            values = rng.standard_normal(shape) if dtype.startswith("float") else np.zeros(shape)
            found[f"in{number}"] = values.astype(dtype)
        return found


def slices(data: bytes, labels: Mapping[str, str]) -> list[Slice]:
    """The layers of a file in the order in which they run, each as a file of its own.

    Operators that belong to no layer, such as the quantization of an input, go with the next one that does; the last
    ones with the last layer.

    Args:
        labels: by tensor name, the layer that computes it.

    A layer that the converter made several operators of comes once for each stretch of them that nothing else
    interrupts.
    """
    graph = Graph(data)
    stretches: list[tuple[str, list[Any]]] = []
    waiting: list[Any] = []
    for operator in graph.operators:
        waiting.append(operator)
        layer = _layer(graph, operator, labels)
        if layer is None:
            continue
        if stretches and stretches[-1][0] == layer:
            stretches[-1][1].extend(waiting)
        else:
            stretches.append((layer, waiting))
        waiting = []
    if stretches:
        stretches[-1][1].extend(waiting)
    return [_cut(graph, layer, operators) for layer, operators in stretches]


def _layer(graph: Graph, operator: Any, labels: Mapping[str, str]) -> str | None:
    for index in operator.outputs:
        name = graph.name(int(index))
        while name not in labels:
            cut = max(name.rfind(mark) for mark in ("/", "#", "_"))
            if cut <= 0:
                break
            name = name[:cut]
        if name in labels:
            return labels[name]
    return None


def _cut(whole: Graph, layer: str, operators: list[Any]) -> Slice:
    written = {int(i) for op in operators for i in op.outputs if i >= 0}
    read = {int(i) for op in operators for i in op.inputs if i >= 0}
    inside = {id(op) for op in operators}
    wanted_later = {int(i) for op in whole.operators if id(op) not in inside for i in op.inputs if i >= 0}
    inputs = sorted(i for i in read - written if whole.constant(i) is None)
    outputs = sorted(i for i in written if i in wanted_later or i in whole.outputs)
    order = sorted(read | written)
    place = {old: new for new, old in enumerate(order)} | {-1: -1}

    model, main = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, model.signatureDefs = whole.model.version, [main], []
    model.operatorCodes = whole.model.operatorCodes
    model.buffers = [schema.BufferT()]
    main.tensors, main.operators = [], []
    for old in order:
        tensor = copy.copy(whole.tensors[old])
        if whole.constant(old) is not None:
            model.buffers.append(whole.model.buffers[tensor.buffer])
            tensor.buffer = len(model.buffers) - 1
        else:
            tensor.buffer = 0
        main.tensors.append(tensor)
    for operator in operators:
        moved = copy.copy(operator)
        moved.inputs = np.array([place[int(i)] for i in operator.inputs], np.int32)
        moved.outputs = np.array([place[int(i)] for i in operator.outputs], np.int32)
        main.operators.append(moved)
    part = Graph.of(model)
    ends = [place[i] for i in inputs], [place[i] for i in outputs]
    part.set_ends(*ends, ([f"in{n}" for n in range(len(inputs))], [f"out{n}" for n in range(len(outputs))]))
    shapes = tuple((whole.shape(i), whole.dtype(i)) for i in inputs)
    return Slice(layer, part.bytes(), shapes)
