"""`.tflite` files: every quantized tensor that an operator writes is watched."""

from __future__ import annotations

from pathlib import Path

from edgeq.export.tflite_graph import Graph
from edgeq.preflight.watch import Layer


def watch_tflite(path: Path, copy: Path) -> list[Layer]:
    """Layers have the names of the tensors that they write. Weights are left out: sums of products of 8 bits fit in
    LiteRT's kernels, so that there is nothing to count."""
    graph = Graph(path.read_bytes())
    written = [int(i) for operator in graph.operators for i in operator.outputs]
    watched = [i for i in written if graph.dtype(i) in ("int8", "uint8", "int16") and graph.quantization(i)]
    inputs, outputs = graph.names()
    names = outputs | {i: f"watched_{i}" for i in watched if i not in outputs}
    graph.set_ends(list(inputs), list(names), (list(inputs.values()), list(names.values())))
    copy.write_bytes(graph.packed())
    return [Layer(graph.name(i), names[i]) for i in watched]
