"""ONNX files: the writer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from edgeq.cache import Cache, Entry, cached, content_key
from edgeq.errors import UnsupportedError
from edgeq.export.onnx_float import FloatOnnx, save
from edgeq.export.onnx_names import labels as labels
from edgeq.export.stored import Stored
from edgeq.installed import installed
from edgeq.model.model import Model
from edgeq.quantization.quantized import Quantized

VERSION = 3
"""To be raised whenever what is converted to changes."""


def convert(model: Model, cache: Cache) -> FloatOnnx:
    def converted() -> FloatOnnx:
        from edgeq.export.onnx_convert import export_float
        from edgeq.export.onnx_names import name_operators

        exported = export_float(model)
        name_operators(model, exported)
        return exported

    return cached(cache, "float-onnx", key(model), converted, pack, unpack)


def write_float(model: Model, source: FloatOnnx, path: Path, cache: Cache) -> None:
    save(source.model, path)


def write(model: Model, quantized: Quantized, source: FloatOnnx, path: Path) -> None:
    from edgeq.export.onnx import quantize_onnx

    for name, kernel in quantized.assignment.dynamic.items():
        if kernel.dynamic != "tensor":
            raise UnsupportedError(
                "ONNX has no operator that rounds parts of a tensor in every call",
                where=f"layer {name}",
                remedy='write dynamic = "tensor" into the target file',
            )
    save(quantize_onnx(model, quantized, source), path)


def read_back(model: Model, quantized: Quantized, source: FloatOnnx, path: Path) -> Stored:
    from edgeq.export.onnx_stored import read_onnx

    return read_onnx(model, path, source.values, low_bits=quantized.runtime.reads_low_bits)


def key(model: Model) -> str:
    """The name that a conversion is kept by."""
    packages = installed("torch", "onnxscript", "onnx_ir", "onnxruntime")
    names = [[s.name for s in model.inputs], list(model.output_names)]
    found_by = model.example_hash
    return content_key("float-onnx", VERSION, model=model.fingerprint, samples=found_by, names=names, packages=packages)


def pack(found: FloatOnnx) -> Entry:
    content = ir.to_proto(found.model).SerializeToString(deterministic=True)
    return Entry(found.values, {"model": np.frombuffer(content, np.uint8)})


def unpack(entry: Entry) -> FloatOnnx:
    return FloatOnnx(ir.from_proto(onnx.load_model_from_string(entry.arrays["model"].tobytes())), entry.values)
