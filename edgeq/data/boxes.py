"""Labels that are boxes: a `.txt` for each image as YOLO's tools write them, or one `annotations.json` in COCO's form.

An image's boxes are an array [M, 6]: class, centre x, centre y, width, height in parts of the image, and 1 where the
box holds a crowd, in which nothing counts as wrong. Those of several images are [N, M, 6], filled up with the class -1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import UsageError
from edgeq.reading import read_json, read_text

Boxes = NDArray[np.float64]

COCO = "annotations.json"
COLUMNS = 6
_OUTSIDE = 0.5
"""Of the image: how far a box may reach over its edge. Beyond that, it is in pixels."""
_FORM = (
    "it needs images (id, file_name, width, height), categories (id) and annotations (image_id, category_id, bbox), "
    "as pycocotools reads them"
)


def read_yolo(path: Path) -> Boxes:
    """The lines `class x y width height` of a file, in parts of the image; none where there is no such file, which is
    how an image without objects is written.

    Raises:
        UsageError: a line is something else.
    """
    if not path.exists():
        return np.empty((0, COLUMNS))
    rows = []
    for number, line in enumerate(read_text(path).removeprefix("\ufeff").splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = [float(part) for part in line.split()]
        except ValueError:
            values = []
        if not _fits(values):
            raise UsageError(
                f"{line.strip()[:60]!r} is no box",
                remedy="write: class x y width height, the centre and the size in parts of the image, from 0 to 1",
                where=f"{path.parent.name}/{path.name}, line {number}",
            )
        rows.append([*values, 0.0])
    return np.array(rows).reshape(-1, COLUMNS)


def _fits(values: Sequence[float]) -> bool:
    """Whether they are a class, and a box that lies in the image but for a little."""
    return (
        len(values) == 5
        and all(map(math.isfinite, values))
        and values[0] >= 0
        and values[0].is_integer()
        and all(-_OUTSIDE <= value <= 1 + _OUTSIDE for value in values[1:])
        and min(values[3:]) >= 0
    )


class Labelled(NamedTuple):
    """An image's boxes, and the width and height that it is said to have."""

    boxes: Boxes
    size: tuple[int, int]


def read_coco(path: Path) -> dict[str, Labelled]:
    """By file name, what is said of each image. Classes are numbered in the order of the category ids, from 0.

    Raises:
        UsageError: the file is not in COCO's form.
    """
    found = read_json(path, "a file of labels in COCO's form", _FORM)
    try:
        classes = {one: place for place, one in enumerate(sorted({int(c["id"]) for c in found["categories"]}))}
        images = {int(image["id"]): image for image in found["images"]}
        sizes = {one: (int(image["width"]), int(image["height"])) for one, image in images.items()}
        if any(min(size) < 1 for size in sizes.values()):
            raise ValueError("an image without width or height")
        if len({image["file_name"] for image in images.values()}) < len(found["images"]):
            raise ValueError("two images of one id or file_name")
        rows: dict[int, list[list[float]]] = {one: [] for one in images}
        for box in found["annotations"]:
            of = int(box["image_id"])
            rows[of].append(_row(classes[int(box["category_id"])], box, sizes[of]))
        return {
            str(image["file_name"]): Labelled(np.array(rows[one]).reshape(-1, COLUMNS), sizes[one])
            for one, image in images.items()
        }
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(
            f"it is not in COCO's form ({type(error).__name__}: {error})",
            remedy=_FORM,
            where=path.name,
        ) from error


def _row(label: int, box: dict[str, Any], size: tuple[int, int]) -> list[float]:
    left, top, width, height = (float(value) for value in box["bbox"])
    across, down = size
    row = [float(label), (left + width / 2) / across, (top + height / 2) / down, width / across, height / down]
    if not _fits(row):
        raise ValueError(f"bbox {box['bbox']} in an image of {across} x {down}")
    return [*row, float(bool(box.get("iscrowd", 0)))]


def stack(boxes: Sequence[Boxes]) -> Boxes:
    """Those of several images as one array, [N, M, 6]."""
    most = max(map(len, boxes), default=0)
    stacked = np.full((len(boxes), most, COLUMNS), -1.0)
    for row, own in zip(stacked, boxes, strict=True):
        row[: len(own)] = own
    return stacked
