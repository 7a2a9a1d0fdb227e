"""From a quantized model to files: one call for every format, and what is shared between formats made once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

from edgeq.cache import Cache
from edgeq.errors import foreseen
from edgeq.export.audit import audit
from edgeq.export.conformance import conformance
from edgeq.export.stored import Stored
from edgeq.export.writers import writer
from edgeq.formats import FORMATS
from edgeq.model.model import Model
from edgeq.quantization.quantized import Quantized
from edgeq.records.schema import Audit

JUDGES = ("scipy.special", "scipy.optimize")
"""What intervals of answers are computed with."""


def import_ahead(formats: Iterable[str], also: Sequence[str] = ()) -> None:
    """Imports in the background what formats are written with, for a caller that is going to wait for data or another
    process: beside work in Python it would only take turns with it.

    Args:
        also: other modules, which come first.
    """
    modules = dict.fromkeys((*also, *(FORMATS[form].writer for form in formats)))

    def go() -> None:
        for module in modules:
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
    _converted: dict[Any, Any] = field(default_factory=dict)
    _floats: set[str] = field(default_factory=set)

    def conversion(self, form: str) -> Any:
        """The float model in a format, which every artefact of that format is made from (see `Writer.convert`).

        Raises:
            UnsupportedError: the format cannot hold the model.
            MissingExtraError: the converter is not installed.
            InternalError: the converter failed in a way that nobody foresaw, here as everywhere below.
        """
        with foreseen(f"conversion to {form}"):
            convert = writer(form).convert  # formats may share it
            if convert not in self._converted:
                self._converted[convert] = convert(self.model, self.cache)
            return self._converted[convert]

    def float_model(self, form: str) -> list[Path]:
        """The files of the unquantized model in the same format, the one that a runtime opens first: the baseline.

        Raises:
            UnsupportedError: the format cannot hold the model.
            MissingExtraError: the converter is not installed.
        """
        files = artifact_files(form, self.scratch / f"float-{form}")
        if form not in self._floats:
            files[0].parent.mkdir(exist_ok=True)
            with foreseen(f"float {form}"):
                writer(form).write_float(self.model, self.conversion(form), files[0], self.cache)
            self._floats.add(form)
        return files

    def write(self, quantized: Quantized, folder: Path) -> list[Path]:
        """`write_artifact` from this model's conversion."""
        return write_artifact(self.model, quantized, self.conversion(quantized.runtime.format), folder)

    def labels(self, form: str) -> dict[str, str]:
        """By each name that a runtime may give an operator of a file, its layer."""
        return writer(form).labels(self.model, self.conversion(form))

    def read_back(self, quantized: Quantized, path: Path) -> Stored:
        """What the written file stores."""
        return read_artifact(self.model, quantized, self.conversion(quantized.runtime.format), path)

    def audit(self, quantized: Quantized, path: Path) -> Audit:
        """`audit_artifact` with this model's conversion."""
        return audit_artifact(self.model, quantized, self.conversion(quantized.runtime.format), path)


def artifact_files(form: str, folder: Path) -> list[Path]:
    """The files of an artefact in its folder, the one that a runtime opens first."""
    return [folder / name for name in FORMATS[form].files]


def write_artifact(model: Model, quantized: Quantized, conversion: Any, folder: Path) -> list[Path]:
    """Writes the artefact into `folder` and returns its files, the one that a runtime opens first.

    Raises:
        UnsupportedError: the format cannot hold the model.
        MissingExtraError: the converter is not installed.
    """
    form = quantized.runtime.format
    files = artifact_files(form, folder)
    with foreseen(f"export {form}"):
        writer(form).write(model, quantized, conversion, files[0])
    return files


def read_artifact(model: Model, quantized: Quantized, conversion: Any, path: Path) -> Stored:
    """What a written file stores."""
    with foreseen(f"reading {path.name} back"):
        return writer(quantized.runtime.format).read_back(model, quantized, conversion, path)


def audit_artifact(model: Model, quantized: Quantized, conversion: Any, path: Path) -> Audit:
    """A written file against the plan, and against the documented rules of a runtime that is not run here.

    Raises:
        AuditError: it does not store what was planned.
        ConformanceError: the runtime would refuse it, by its documentation.
    """
    found = audit(model, quantized, read_artifact(model, quantized, conversion, path))
    return found.model_copy(update={"conformance": conformance(quantized.runtime.name, path)})
