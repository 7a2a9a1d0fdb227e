"""Layers that a converter would merge with what is beside them, kept apart.

The converter moves factors and shifts into the layers beside them. The planned integers would be wrong there. So what
such a layer reads and writes is converted with a number added that only the caller knows, and nothing can be moved past
it. The number is zero, and taken out of the file; the tensor that it was added to is known to be the value that the
layer writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeq.export.tflite_forms import INTEGER_FORMS
from edgeq.export.tflite_graph import Graph
from edgeq.export.tflite_match import KNOWN, laid_out, makers, origins
from edgeq.export.tflite_tidy import ACTIVATIONS, drop_dead
from edgeq.export.tflite_weights import merged_into
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.model.ops import WEIGHTED, shape_of

if TYPE_CHECKING:
    import torch

_FUSED = frozenset({"relu", "relu6"})


def merged_layers(model: Model, data: bytes, nodes: Mapping[int, str]) -> list[str]:
    """Names of the layers that the file does not hold as the model has them, each in an operator of its own.

    Args:
        data: a float `.tflite` file, its activations separated.
        nodes: graph node by tensor index (see `edgeq.export.tflite_match.match`).
    """
    graph, same = Graph(data), origins(model)
    # the first operator with a value computes it, those after it move it
    made = {nodes[int(i)]: op for op in reversed(graph.operators) for i in op.outputs if int(i) in nodes}
    found: list[str] = []
    taken: set[int] = set()
    for group in model.groups:
        if group.op not in WEIGHTED or group.weight is None or group.bias is None or not group.inputs:
            continue
        computes = [made.get(same[value]) for value in (group.output, group.root)]
        operator = next((op for op in computes if op is not None and graph.kind(op) in INTEGER_FORMS[group.op]), None)
        if operator is None or id(operator) in taken or merged_into(model, group, graph, operator):
            found.append(group.name)
            continue
        taken.add(id(operator))
    return found


class Apart:
    """Zeros for the ends of layers, each to be added at one place.

    Attributes:
        layers: names of groups.
        count: how many zeros there are.
        written_by: for each of them, the graph node that it is added to for everybody; empty for what is read.
    """

    def __init__(self, model: Model, layers: Sequence[str]) -> None:
        groups = [group for group in model.groups if group.name in set(layers)]
        places: list[tuple[str, str | None]] = []
        for group in groups:
            places += [(group.root, name) for name in group.inputs]
            places.append((_end(group), None))
        self._place = {place: number for number, place in enumerate(places)}
        self.count = len(places)
        self.written_by = [name if read is None else "" for name, read in places]
        self._ranks = [len(shape_of(model.nodes[read or name])) for name, read in places]

    def zeros(self) -> list[torch.Tensor]:
        """Each of as many axes as what it is added to, so that a layout can be given to both."""
        import torch

        return [torch.zeros((1,) * rank) for rank in self._ranks]

    def read(self, reader: str, name: str, value: Any, zeros: Sequence[torch.Tensor]) -> Any:
        """A node's value as a reader is given it."""
        return self._added((reader, name), value, zeros)

    def written(self, name: str, value: Any, zeros: Sequence[torch.Tensor]) -> Any:
        """A node's value as everybody is given it."""
        return self._added((name, None), value, zeros)

    def _added(self, place: tuple[str, str | None], value: Any, zeros: Sequence[torch.Tensor]) -> Any:
        number = self._place.get(place)
        return value if number is None else value + zeros[number]


def _end(group: Group) -> str:
    """The value that leaves the layer's kernel."""
    return group.output if group.activation_op in _FUSED else group.root


def take_out_zeros(graph: Graph, apart: Apart) -> None:
    """Takes the last inputs of a file out of it, and the additions that read them.

    What a layer writes is named so that `edgeq.export.tflite_match` knows it.
    """
    count = apart.count
    if not count:
        return
    zeros, inputs = dict(zip(graph.inputs[-count:], apart.written_by, strict=True)), graph.inputs[:-count]
    made_by = makers(graph)
    operators: list[Any] = []
    stands_for: dict[int, int] = {}
    for operator in graph.operators:
        reads = [stands_for.get(int(i), int(i)) for i in operator.inputs]
        operator.inputs = np.array(reads, dtype=np.int32)
        live = [i for i in reads if i >= 0 and i not in zeros and graph.constant(i) is None]
        added = [i for i in reads if i in zeros]
        if added and not live:  # a zero, spread to a shape
            zeros |= {int(i): zeros[added[0]] for i in operator.outputs}
            operators.append(operator)
        elif added and graph.kind(operator) == "ADD":
            (value,), (output,) = live, (int(i) for i in operator.outputs)
            if node := zeros[added[0]]:
                graph.tensors[laid_out(graph, made_by, value)].name = f"{KNOWN}{node}".encode()
            activation = ACTIVATIONS.get(operator.builtinOptions.fusedActivationFunction)
            if activation is not None:
                between = graph.tensor(graph.name(output), "float32", graph.shape(value))
                operators.append(graph.operator(activation, [value], [between]))
                value = between
            if graph.shape(value) == graph.shape(output):
                stands_for[output] = value
            else:  # a reshape went past it
                operators.append(_reshape(graph, value, output))
        else:
            operators.append(operator)
    for index in graph.inputs[-count:]:  # whatever still reads one
        graph.set_constant(index, np.zeros(graph.shape(index), np.float32))
    graph.set_operators(operators)
    outputs = [stands_for.get(i, i) for i in graph.outputs]
    graph.set_ends(inputs, outputs, ([graph.name(i) for i in inputs], [graph.name(i) for i in outputs]))
    drop_dead(graph)


def _reshape(graph: Graph, value: int, output: int) -> Any:
    shape = np.array(graph.shape(output), np.int32)
    options = schema.ReshapeOptionsT()
    options.newShape = shape
    return graph.operator("RESHAPE", [value, graph.tensor("shape", "int32", shape.shape, shape)], [output], options)
