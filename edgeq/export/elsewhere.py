"""Artefacts that are written by workers, which may be on other machines."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from edgeq.export.artifact import audit_artifact, write_artifact
from edgeq.model.model import Model
from edgeq.quantization.quantized import Quantized


class Written(NamedTuple):
    """What a worker wrote.

    Attributes:
        names: of the files, the one that a runtime opens first.
        content: of each file where the worker does not see the folder that they belong in.
    """

    names: list[str]
    content: list[bytes] | None


def write_for(model: Model, quantized: Quantized, conversion: Any, place: Path | None) -> Written:
    """Writes an artefact and audits it: in a worker.

    Args:
        place: the folder, or None where it is on another machine.

    Raises:
        AuditError: the file does not store what was planned.
        UnsupportedError: the format cannot hold the model, or its runtime would refuse the file by its documentation.
    """
    with contextlib.ExitStack() as stack:
        folder = place or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeq-")))
        files = write_artifact(model, quantized, conversion, folder)
        audit_artifact(model, quantized, conversion, files[0])
        return Written([file.name for file in files], None if place else [file.read_bytes() for file in files])


def fetch(written: Written, place: Path) -> list[Path]:
    """The files of an artefact in their folder, wherever they were written."""
    files = [place / name for name in written.names]
    for file, content in zip(files, written.content or (), strict=written.content is not None):
        file.write_bytes(content)
    return files
