"""From a quantized model to files: one call for every format, and what is shared between formats made once.

A format's code is imported where the format is written: its libraries take a second, and a plan whose costs are all
kept writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeq.cache import Cache, Entry, cached, content_key, read_folder, write_folder
from edgeq.errors import foreseen
from edgeq.export.onnx_names import labels, name_operators
from edgeq.export.stored import Stored
from edgeq.installed import installed
from edgeq.model.model import Model
from edgeq.quantization.quantize import Quantized

FLOAT_OPENVINO_VERSION = 1
"""To be raised whenever what `write_openvino` writes changes."""

FILE_NAMES = {"onnx": "model.onnx", "openvino": "model.xml", "tflite": "model.tflite"}


if TYPE_CHECKING:
    from edgeq.export.onnx_float import FloatOnnx
    from edgeq.export.tflite import FloatTflite

Converted: TypeAlias = "FloatOnnx | FloatTflite"
"""The float model in a format: what its artefacts are made from."""


JUDGES = ("scipy.special", "scipy.optimize")
"""What intervals of answers are computed with."""


def import_ahead(formats: Iterable[str], also: Sequence[str] = ()) -> None:
    """Imports in the background what formats are written with, for a caller that is going to wait for data or another
    process: beside work in Python it would only take turns with it.

    Args:
        also: other modules, which come first.
    """
    writers = dict.fromkeys("edgeq.export.kept_tflite" if f == "tflite" else "edgeq.export.kept_onnx" for f in formats)

    def go() -> None:
        for module in (*also, *writers):
            with suppress(ImportError):  # told when it is needed
                import_module(module)

    Thread(target=go).start()  # no daemon: an interpreter that ends amid an import aborts


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
    def _onnx(self) -> FloatOnnx:
        from edgeq.export import kept_onnx

        def convert() -> FloatOnnx:
            from edgeq.export.onnx_convert import export_float

            exported = export_float(self.model)
            name_operators(self.model, exported)
            return exported

        key = kept_onnx.key(self.model)
        return cached(self.cache, "float-onnx", key, convert, kept_onnx.pack, kept_onnx.unpack)

    @cached_property
    def _tflite(self) -> FloatTflite:
        from edgeq.export import kept_tflite, tflite

        key = kept_tflite.key(self.model)
        return cached(
            self.cache,
            "float-tflite",
            key,
            lambda: tflite.export_float(self.model),
            kept_tflite.pack,
            kept_tflite.unpack,
        )

    def conversion(self, form: str) -> Converted:
        """The float model in a format, which every artefact of that format is made from.

        Raises:
            UnsupportedError: the format cannot hold the model.
            MissingExtraError: the converter is not installed.
            InternalError: the converter failed in a way that nobody foresaw, here as everywhere below.
        """
        with foreseen(f"conversion to {form}"):
            return self._tflite if form == "tflite" else self._onnx

    def float_model(self, form: str) -> list[Path]:
        """The files of the unquantized model in the same format, the one that a runtime opens first: the baseline.

        Raises:
            UnsupportedError: the format cannot hold the model.
            MissingExtraError: the converter is not installed.
        """
        if form not in self._floats:
            folder = self.scratch / f"float-{form}"
            folder.mkdir(exist_ok=True)
            path = folder / FILE_NAMES[form]
            with foreseen(f"float {form}"):
                self._float_to(form, path)
            self._floats[form] = path
        return artifact_files(form, self._floats[form].parent)

    def _float_to(self, form: str, path: Path) -> None:
        if form == "onnx":
            from edgeq.export.onnx_float import save

            save(self._onnx.model, path)
        elif form == "openvino":
            self._openvino_to(path)
        else:
            path.write_bytes(self._tflite.data)

    def _openvino_to(self, path: Path) -> None:
        """Kept, since it is written while a plan's answers are waited for, and would take the processor from them."""

        def converted() -> dict[str, NDArray[np.uint8]]:
            from edgeq.export.openvino import write_openvino

            with TemporaryDirectory(dir=self.scratch) as folder:
                write_openvino(self._onnx.model, Path(folder) / path.name)
                return read_folder(Path(folder))

        from edgeq.export import kept_onnx

        key = content_key(
            "float-openvino", FLOAT_OPENVINO_VERSION, onnx=kept_onnx.key(self.model), **installed("openvino")
        )
        files = cached(
            self.cache, "float-openvino", key, converted, lambda some: Entry(None, some), lambda entry: entry.arrays
        )
        write_folder(files, path.parent)

    def write(self, quantized: Quantized, folder: Path) -> list[Path]:
        """`write_artifact` from this model's conversion."""
        return write_artifact(self.model, quantized, self.conversion(quantized.runtime.format), folder)

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
        return read_artifact(self.model, quantized, self.conversion(quantized.runtime.format), path)


def artifact_files(form: str, folder: Path) -> list[Path]:
    """The files of an artefact in its folder, the one that a runtime opens first."""
    path = folder / FILE_NAMES[form]
    return [path, path.with_suffix(".bin")] if form == "openvino" else [path]


def write_artifact(model: Model, quantized: Quantized, conversion: Converted, folder: Path) -> list[Path]:
    """Writes the artefact into `folder` and returns its files, the one that a runtime opens first.

    Raises:
        UnsupportedError: the format cannot hold the model.
        MissingExtraError: the converter is not installed.
    """
    form = quantized.runtime.format
    path = folder / FILE_NAMES[form]
    with foreseen(f"export {form}"):
        return _write(model, quantized, conversion, path)


def _write(model: Model, quantized: Quantized, conversion: Converted, path: Path) -> list[Path]:
    form = quantized.runtime.format
    if form == "tflite":
        from edgeq.export.tflite import FloatTflite, export_quantized

        assert isinstance(conversion, FloatTflite)
        export_quantized(model, quantized, conversion, path)
        return [path]
    from edgeq.export.onnx import quantize_onnx
    from edgeq.export.onnx_float import FloatOnnx, save

    assert isinstance(conversion, FloatOnnx)
    if form == "onnx":
        save(quantize_onnx(model, quantized, conversion), path)
    else:
        from edgeq.export.openvino import write_openvino

        write_openvino(quantize_onnx(model, quantized, conversion), path)
    return artifact_files(form, path.parent)


def read_artifact(model: Model, quantized: Quantized, conversion: Converted, path: Path) -> Stored:
    """What a written file stores."""
    with foreseen(f"reading {path.name} back"):
        return _read(model, quantized, conversion, path)


def _read(model: Model, quantized: Quantized, conversion: Converted, path: Path) -> Stored:
    if quantized.runtime.format == "tflite":
        from edgeq.export.tflite import FloatTflite, stored

        assert isinstance(conversion, FloatTflite)
        return stored(model, quantized, conversion, path)
    from edgeq.export.onnx_float import FloatOnnx
    from edgeq.export.onnx_stored import read_onnx
    from edgeq.export.openvino_stored import read_openvino

    assert isinstance(conversion, FloatOnnx)
    read = read_onnx if quantized.runtime.format == "onnx" else read_openvino
    return read(model, path, conversion.values)
