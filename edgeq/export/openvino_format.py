"""OpenVINO IR files: the writer. They are made from ONNX, by OpenVINO's own reader."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from edgeq.cache import Cache, Entry, cached, content_key, read_folder, write_folder
from edgeq.errors import UnsupportedError
from edgeq.export import onnx_format
from edgeq.export.onnx_float import FloatOnnx
from edgeq.export.onnx_format import convert as convert
from edgeq.export.onnx_format import labels as labels
from edgeq.export.stored import Stored
from edgeq.installed import installed
from edgeq.model.model import Model
from edgeq.quantization.quantized import Quantized

VERSION = 2
"""To be raised whenever what is written in float changes."""


def write_float(model: Model, source: FloatOnnx, path: Path, cache: Cache) -> None:
    """Kept, since it is written while a plan's answers are waited for, and would take the processor from them."""

    def written() -> dict[str, NDArray[np.uint8]]:
        from edgeq.export.openvino import write_openvino

        with TemporaryDirectory(dir=path.parent) as folder:
            write_openvino(source.model, Path(folder) / path.name)
            return read_folder(Path(folder))

    key = content_key("float-openvino", VERSION, onnx=onnx_format.key(model), **installed("openvino"))
    files = cached(cache, "float-openvino", key, written, lambda some: Entry(None, some), lambda entry: entry.arrays)
    write_folder(files, path.parent)


def write(model: Model, quantized: Quantized, source: FloatOnnx, path: Path) -> None:
    from edgeq.export.onnx import quantize_onnx
    from edgeq.export.openvino import write_openvino

    write_openvino(quantize_onnx(model, quantized, source), path, _sharing(quantized))


def _sharing(quantized: Quantized) -> int:
    """How many numbers in a row share a scale where they are rounded in every call; 0 where none are.

    Raises:
        UnsupportedError: it is not the same number for all layers, or none.
    """
    found = {kernel.dynamic for kernel in quantized.assignment.dynamic.values()} or {0}
    (one, *others) = found
    if others or not isinstance(one, int):
        raise UnsupportedError(
            f"an OpenVINO file rounds by one number of values that share a scale, not by {sorted(map(str, found))}",
            remedy="mend the kernels of the target file",
        )
    return one


def read_back(model: Model, quantized: Quantized, source: FloatOnnx, path: Path) -> Stored:
    from edgeq.export.openvino_stored import read_openvino

    return read_openvino(model, path, source.values)
