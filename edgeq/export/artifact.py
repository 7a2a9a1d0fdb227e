"""From a quantized model to files: one call for every format, and what is shared between formats made once."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from edgeq.cache import Cache, cached
from edgeq.errors import UnsupportedError
from edgeq.export import kept, onnx_float
from edgeq.export.onnx import quantize_onnx
from edgeq.export.onnx_names import labels, name_operators
from edgeq.export.onnx_stored import read_onnx
from edgeq.export.openvino import write_openvino
from edgeq.export.openvino_stored import read_openvino
from edgeq.export.stored import Stored
from edgeq.model.model import Model
from edgeq.quantization.quantize import Quantized

FILE_NAMES = {"onnx": "model.onnx", "openvino": "model.xml", "tflite": "model.tflite"}


@dataclass
class Exporter:
    """Writes one model in any format. Conversions of the float model are kept, because they take longest.

    Attributes:
        model: what is exported.
        cache: where conversions of earlier runs are found.
        scratch: a folder for intermediate files; the float models stay there as baselines.
    """

    model: Model
    scratch: Path
    cache: Cache = field(default_factory=lambda: Cache(None))
    _floats: dict[str, Path] = field(default_factory=dict)

    @cached_property
    def _onnx(self) -> onnx_float.FloatOnnx:
        def convert() -> onnx_float.FloatOnnx:
            exported = onnx_float.export_float(self.model)
            name_operators(self.model, exported)
            return exported

        return cached(self.cache, "float-onnx", kept.onnx_key(self.model), convert, kept.pack_onnx, kept.unpack_onnx)

    @cached_property
    def _tflite(self) -> Any:
        from edgeq.export import tflite

        path = self.scratch / "float.tflite"
        return cached(
            self.cache,
            "float-tflite",
            kept.tflite_key(self.model),
            lambda: tflite.export_float(self.model, path),
            kept.pack_tflite,
            lambda entry: kept.unpack_tflite(entry, path),
        )

    def float_model(self, form: str) -> list[Path]:
        """The files of the unquantized model in the same format, the one that a runtime opens first: the baseline.

        Raises:
            UnsupportedError: the format cannot hold the model.
            MissingExtraError: the converter is not installed.
        """
        if form not in self._floats:
            path = self.scratch / f"float{Path(FILE_NAMES[form]).suffix}"
            if form == "onnx":
                onnx_float.save(self._onnx.model, path)
            elif form == "openvino":
                write_openvino(self._onnx.model, path)
            else:
                path = self._tflite.path
            self._floats[form] = path
        weights = self._floats[form].with_suffix(".bin")
        return [self._floats[form], *([weights] if form == "openvino" else [])]

    def write(self, quantized: Quantized, folder: Path) -> list[Path]:
        """Writes the artefact into `folder` and returns its files, the one that a runtime opens first.

        Raises:
            UnsupportedError: the format cannot hold the model.
            MissingExtraError: the converter is not installed.
        """
        path = folder / FILE_NAMES[quantized.runtime.format]
        match quantized.runtime.format:
            case "onnx":
                onnx_float.save(quantize_onnx(self.model, quantized, self._onnx), path)
                return [path]
            case "openvino":
                write_openvino(quantize_onnx(self.model, quantized, self._onnx), path)
                return [path, path.with_suffix(".bin")]
            case "tflite":
                from edgeq.export import tflite

                tflite.export_quantized(self.model, quantized, self._tflite, path)
                return [path]
        raise UnsupportedError(f"there is no exporter for {quantized.runtime.format}")

    def labels(self, form: str) -> dict[str, str]:
        """By each name that a runtime may give an operator of a file, its layer."""
        if form == "tflite":
            outputs = {g.output: g.name for g in self.model.groups}
            named = zip(self.model.output_nodes, self.model.output_names, strict=True)
            ends = {name: outputs[node] for node, name in named if node in outputs}
            return ends | {group.name: group.name for group in self.model.groups}
        return labels(self.model, self._onnx)

    def read_back(self, quantized: Quantized, path: Path) -> Stored:
        """What the written file stores."""
        match quantized.runtime.format:
            case "onnx":
                return read_onnx(self.model, path, self._onnx.values)
            case "openvino":
                return read_openvino(self.model, path, self._onnx.values)
            case _:
                from edgeq.export import tflite

                return tflite.stored(self.model, quantized, self._tflite, path)
