"""Float conversions, as the cache keeps them: they take longest of all that an export does."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from edgeq.cache import Entry, content_key
from edgeq.export.onnx_float import FloatOnnx
from edgeq.model.model import Model

if TYPE_CHECKING:
    from edgeq.export.tflite import FloatTflite

ONNX_VERSION = 1
TFLITE_VERSION = 1
"""To be raised whenever what is converted to changes."""


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # the conversion itself says so, and what to install
        return ""


def onnx_key(model: Model) -> str:
    packages = {name: _installed(name) for name in ("torch", "onnxscript", "onnx_ir", "onnxruntime")}
    names = [[s.name for s in model.inputs], list(model.output_names)]
    return content_key("float-onnx", ONNX_VERSION, model=model.fingerprint, names=names, packages=packages)


def pack_onnx(found: FloatOnnx) -> Entry:
    content = ir.to_proto(found.model).SerializeToString(deterministic=True)
    return Entry(found.values, {"model": np.frombuffer(content, np.uint8)})


def unpack_onnx(entry: Entry) -> FloatOnnx:
    return FloatOnnx(ir.from_proto(onnx.load_model_from_string(entry.arrays["model"].tobytes())), entry.values)


def tflite_key(model: Model) -> str:
    packages = {name: _installed(name) for name in ("torch", "litert-torch", "ai-edge-litert")}
    names = [[s.name for s in model.inputs], list(model.output_names)]
    return content_key("float-tflite", TFLITE_VERSION, model=model.fingerprint, names=names, packages=packages)


def pack_tflite(found: FloatTflite) -> Entry:
    nodes = [[index, node] for index, node in found.nodes.items()]
    return Entry(nodes, {"model": np.frombuffer(found.data, np.uint8)})


def unpack_tflite(entry: Entry) -> FloatTflite:
    from edgeq.export.tflite import FloatTflite

    return FloatTflite(entry.arrays["model"].tobytes(), {index: node for index, node in entry.values})
