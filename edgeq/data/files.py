"""A dataset's inputs in files: linked where they lie in files of their own, or else written once."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np

from edgeq.data.dataset import Dataset
from edgeq.data.place import Place


def in_files(data: Dataset, folder: Path) -> dict[str, Path | Place]:
    """By input, its file below a folder, which may have been made by an earlier call."""
    own = folder / data.sha256[:16]
    own.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path | Place] = {}
    for number, name in enumerate(data.inputs):
        file = own / f"{number}.npy"
        found[name] = place = _linked(data.places.get(name), own / f"{number}.link") or file
        if place is file and not file.exists():
            part = own / f"{number}.part.npy"
            np.save(part, data.inputs[name], allow_pickle=False)
            part.replace(file)
    return found


def _linked(place: Place | None, link: Path) -> Place | None:
    """The place in a link that stays when the file is replaced; None if there is none, or the file was written to since
    it was read: what is in memory counts."""
    if place is None:
        return None
    if not link.exists():
        with contextlib.suppress(OSError):  # another file system, or links are not allowed
            os.link(place.path, link)
    kept = place._replace(path=link)
    return kept if kept.unchanged() else None
