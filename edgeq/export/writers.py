"""What a writer of a file format has to do."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from edgeq.cache import Cache
from edgeq.export.stored import Stored
from edgeq.formats import FORMATS
from edgeq.model.model import Model
from edgeq.quantization.quantized import Quantized


class Writer(Protocol):
    """One file format (docs/runtimes.md): a module with these functions.

    Each of them may raise an UnsupportedError where the format cannot hold the model, and a MissingExtraError where a
    library is not installed. `source` is whatever `convert` returned.
    """

    def convert(self, model: Model, cache: Cache) -> Any:
        """The float model in the format, or in what artefacts are made from. It takes longest, so that it is kept; it
        may be sent to other processes."""

    def write_float(self, model: Model, source: Any, path: Path, cache: Cache) -> None:
        """Writes the float model: the baseline of every artefact.

        Args:
            path: of the file that a runtime opens first; others go beside it.
        """

    def write(self, model: Model, quantized: Quantized, source: Any, path: Path) -> None:
        """Writes an artefact, as `write_float` does."""

    def read_back(self, model: Model, quantized: Quantized, source: Any, path: Path) -> Stored:
        """What a written file stores, read from the file alone: `edgeq.export.audit` compares it with the plan."""

    def labels(self, model: Model, source: Any) -> dict[str, str]:
        """By each name that a runtime may give an operator of a file, its layer."""


def writer(form: str) -> Writer:
    """The writer of a format, with its libraries."""
    return cast(Writer, import_module(FORMATS[form].writer))
