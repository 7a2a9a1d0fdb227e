"""TFLite files: the float model as the baseline, and the quantized one with exactly the planned integers in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeq.data.dataset import show_shape
from edgeq.errors import UnsupportedError
from edgeq.export.stored import Stored
from edgeq.export.tflite_graph import Graph
from edgeq.export.tflite_match import match
from edgeq.export.tflite_quantize import planned_values, quantize
from edgeq.export.tflite_run import can_run
from edgeq.export.tflite_stored import read_tflite
from edgeq.export.tflite_tidy import (
    average_without_transpose,
    cancel_transposes,
    keep_int64_ends,
    product_of_values,
    separate_activations,
)
from edgeq.export.tflite_transposed import cut_inside
from edgeq.model.model import Model
from edgeq.model.values import tensor_of
from edgeq.quantization.quantized import Quantized


@dataclass(frozen=True)
class FloatTflite:
    """A float `.tflite` file, and which value of the model each of its tensors holds.

    Attributes:
        data: the file, with the user's input and output names; for a batch of one where the model's batch is dynamic.
        nodes: graph node by tensor index, after `separate_activations`; tensors that stand for no node are absent.
    """

    data: bytes
    nodes: dict[int, str]


def export_float(model: Model) -> FloatTflite:
    """Converts the normalised model and proves, by running both, that the file computes the same.

    Raises:
        MissingExtraError: litert-torch is not installed.
        UnsupportedError: the converter refuses an operator, or changes what the model computes.
    """
    from edgeq.export.tflite_apart import merged_layers
    from edgeq.export.tflite_convert import example

    _refuse_free_sizes(model)
    apart: list[str] = []
    while True:
        data = _float_file(model, apart)
        nodes = match(model, _separated(data), example(model))
        # one merge may hide another
        merged = [n for n in merged_layers(model, _separated(data), nodes) if n not in apart]
        if not merged:
            return FloatTflite(data, nodes)
        apart += merged


def export_quantized(model: Model, quantized: Quantized, float_file: FloatTflite, path: Path) -> None:
    """Writes the integer file: the planned integers, scales and zero points, and no others.

    Operators that stay in float stand between DEQUANTIZE and QUANTIZE. Tensors carry the names of their groups.

    Raises:
        UnsupportedError: the converter changed a layer's weights, a type has no place in a `.tflite` file, or LiteRT
            cannot run the file.
    """
    graph = Graph(_separated(float_file.data))
    quantize(model, quantized, graph, float_file.nodes)
    data = graph.bytes()
    if quantized.runtime.name == "litert":
        can_run(data)
    path.write_bytes(data)


def stored(model: Model, quantized: Quantized, float_file: FloatTflite, path: Path) -> Stored:
    """What the written file stores, read back from it alone."""
    graph = Graph(_separated(float_file.data))
    held = planned_values(model, quantized, graph, float_file.nodes)
    return read_tflite(model, path, held, quantized.assignment.reasons)


def _refuse_free_sizes(model: Model) -> None:
    for spec in model.inputs:
        sizes = spec.shape[1:] if model.dynamic_batch else spec.shape
        if None in sizes:
            raise UnsupportedError(
                f"a .tflite file has fixed sizes, and {show_shape(spec.shape)} leaves some free",
                where=f"input {spec.name}",
                remedy="export the model for one size, or choose another format for it",
            )


def _float_file(model: Model, layers: Sequence[str]) -> bytes:
    from edgeq.export.tflite_apart import Apart, take_out_zeros
    from edgeq.export.tflite_convert import convert

    apart = Apart(model, layers)
    graph = Graph(convert(model, apart))
    take_out_zeros(graph, apart)
    cancel_transposes(graph)
    cut_inside(graph)
    average_without_transpose(graph)
    product_of_values(graph)
    outputs = ["" if (value := tensor_of(model.nodes[name])) is None else value.dtype for name in model.output_nodes]
    keep_int64_ends(graph, [spec.dtype for spec in model.inputs], outputs)
    _name_ends(model, graph)
    return graph.bytes()


def _separated(data: bytes) -> bytes:
    graph = Graph(data)
    separate_activations(graph)
    return graph.bytes()


def _name_ends(model: Model, graph: Graph) -> None:
    """Gives the file's inputs and outputs the user's names."""
    inputs, outputs = [spec.name for spec in model.inputs], list(model.output_names)
    for index, name in [*zip(graph.inputs, inputs, strict=True), *zip(graph.outputs, outputs, strict=True)]:
        graph.tensors[index].name = name.encode()
    graph.set_ends(graph.inputs, graph.outputs, (inputs, outputs))
