"""The float ONNX model, as the cache keeps it: a conversion takes longest of all that an export does."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from edgeq.cache import Entry, content_key
from edgeq.export.onnx_float import FloatOnnx
from edgeq.installed import installed
from edgeq.model.model import Model

VERSION = 3
"""To be raised whenever what is converted to changes."""


def key(model: Model) -> str:
    """The name that it is kept by."""
    packages = installed("torch", "onnxscript", "onnx_ir", "onnxruntime")
    names = [[s.name for s in model.inputs], list(model.output_names)]
    found_by = model.example_hash
    return content_key("float-onnx", VERSION, model=model.fingerprint, samples=found_by, names=names, packages=packages)


def pack(found: FloatOnnx) -> Entry:
    content = ir.to_proto(found.model).SerializeToString(deterministic=True)
    return Entry(found.values, {"model": np.frombuffer(content, np.uint8)})


def unpack(entry: Entry) -> FloatOnnx:
    return FloatOnnx(ir.from_proto(onnx.load_model_from_string(entry.arrays["model"].tobytes())), entry.values)
