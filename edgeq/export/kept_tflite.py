"""The float TFLite model, as the cache keeps it: a conversion takes longest of all that an export does."""

from __future__ import annotations

import numpy as np

from edgeq.cache import Entry, content_key
from edgeq.export.tflite import FloatTflite
from edgeq.installed import installed
from edgeq.model.model import Model

VERSION = 4
"""To be raised whenever what is converted to changes."""


def key(model: Model) -> str:
    """The name that it is kept by."""
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
