"""Values of the model that a converted file no longer holds, though its layers are to be written from them.

The converter merges a factor in front of a layer into its weights, and a shift behind it into its bias: the 3 in
hardsigmoid(x) = relu6(x + 3) / 6 goes into the convolution that computes x. Our integers would be wrong there. What is
an output of the graph is left alone, so that such values are made outputs for the conversion.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgeq.export.tflite_graph import Graph
from edgeq.export.tflite_match import origins
from edgeq.export.tflite_quantize import INTEGER_FORMS
from edgeq.export.tflite_stored import twins
from edgeq.export.tflite_weights import merged_into
from edgeq.model.model import Model
from edgeq.model.ops import WEIGHTED

_FUSED = frozenset({"relu", "relu6"})


def merged_values(model: Model, data: bytes, nodes: Mapping[int, str]) -> list[str]:
    """Graph nodes to keep, in the order of the model's layers; empty where the file holds each layer as it is.

    Args:
        data: a float `.tflite` file, its activations separated.
        nodes: graph node by tensor index (see `edgeq.export.tflite_match.match`).
    """
    graph, same = Graph(data), origins(model)
    # the first operator with a value computes it, those after it move it
    made = {nodes[int(i)]: op for op in reversed(graph.operators) for i in op.outputs if int(i) in nodes}
    found: dict[str, None] = {}
    for group in model.groups:
        if group.op not in WEIGHTED or group.weight is None or group.bias is None:
            continue
        value = group.output if group.activation_op in _FUSED else group.root
        operator = made.get(same[value])
        if operator is None:
            if not any(twins(model, group, other) for other in model.groups if other is not group):
                found[value] = None
        elif graph.kind(operator) in INTEGER_FORMS[group.op] and merged_into(model, group, graph, operator):
            found.update(dict.fromkeys(n for n in group.inputs if n not in model.input_nodes))
            found[value] = None
    return list(found)
