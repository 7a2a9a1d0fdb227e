"""TFLite files: the writer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeq.cache import Cache, Entry, cached, content_key
from edgeq.export.stored import Stored
from edgeq.export.tflite import FloatTflite, export_float, export_quantized, stored
from edgeq.installed import installed
from edgeq.model.model import Model
from edgeq.quantization.quantized import Quantized

VERSION = 4
"""To be raised whenever what is converted to changes."""


def convert(model: Model, cache: Cache) -> FloatTflite:
    return cached(cache, "float-tflite", key(model), lambda: export_float(model), pack, unpack)


def write_float(model: Model, source: FloatTflite, path: Path, cache: Cache) -> None:
    path.write_bytes(source.data)


def write(model: Model, quantized: Quantized, source: FloatTflite, path: Path) -> None:
    export_quantized(model, quantized, source, path)


def read_back(model: Model, quantized: Quantized, source: FloatTflite, path: Path) -> Stored:
    return stored(model, quantized, source, path)


def labels(model: Model, source: FloatTflite) -> dict[str, str]:
    outputs = {group.output: group.name for group in model.groups}
    named = zip(model.output_nodes, model.output_names, strict=True)
    ends = {name: outputs[node] for node, name in named if node in outputs}
    return ends | {group.name: group.name for group in model.groups}


def key(model: Model) -> str:
    """The name that a conversion is kept by."""
    packages = installed("torch", "litert-torch", "ai-edge-litert")
    names = [[s.name for s in model.inputs], list(model.output_names)]
    found_by = model.example_hash
    return content_key(
        "float-tflite", VERSION, model=model.fingerprint, samples=found_by, names=names, packages=packages
    )


def pack(found: FloatTflite) -> Entry:
    nodes = [[index, node] for index, node in found.nodes.items()]
    return Entry(nodes, {"model": np.frombuffer(found.data, np.uint8)})


def unpack(entry: Entry) -> FloatTflite:
    return FloatTflite(entry.arrays["model"].tobytes(), {index: node for index, node in entry.values})
