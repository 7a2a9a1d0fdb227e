"""How a detector's outputs become boxes: a TOML file with its head, the lowest score, and what overlaps too much."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeq.errors import UsageError
from edgeq.evaluation.detection.heads import Head
from edgeq.evaluation.detection.suppression import Found, suppress
from edgeq.reading import read_bytes, within
from edgeq.toml import read_toml

Score = Literal["mAP", "mAP50"]


class Detector(BaseModel):
    """A detector, as its file says it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    score: Score = "mAP"
    """Averaged over overlaps of 0.50 to 0.95, or at 0.50 alone."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Lowest score of a box."""
    nms: Annotated[float, Field(gt=0, le=1)] = 0.65
    """Intersection over union, above which the worse of two boxes of a class is left out."""
    head: Head

    def detect(self, outputs: Sequence[NDArray[Any]], folder: Path) -> Found:
        """Boxes of one image.

        Args:
            outputs: of the model, without the batch axis.
            folder: of the file.
        """
        return suppress(self.head.decode(outputs, folder), self.threshold, self.nms)


def read_detector(path: Path) -> tuple[Detector, str]:
    """A detector's file, and the hash of all that it says.

    Raises:
        UsageError: there is no such file, or it says something else.
    """
    try:
        detector = Detector.model_validate(read_toml(path))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"{field + ': ' if field else ''}{first['msg']}",
            remedy="docs/metrics.md shows a file for each kind of head",
            where=path.name,
        ) from error
    digest = hashlib.sha256(read_bytes(path))
    for name in detector.head.files():
        digest.update(read_bytes(within(path.parent, name, path.name)))
    return detector, digest.hexdigest()
