"""What a folder of images holds: the files, and their labels in whatever way they are given."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edgeq.data.boxes import COCO, Boxes, read_coco, read_yolo
from edgeq.errors import UsageError
from edgeq.reading import read_text, refuse_special, within

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_LABELS = "labels.txt"
_LABEL = re.compile(r"-?[0-9]{1,18}")


class Listed(NamedTuple):
    """The images of a folder.

    Attributes:
        files: relative to the folder.
        labels: of each, its class, or its boxes; None where there are none, or none are wanted.
        sizes: of each, the width and height that the labels are for; empty where they do not say it.
        layout: of the folder, for people.
    """

    files: list[str]
    labels: Sequence[int] | Sequence[Boxes] | None
    layout: str
    sizes: Sequence[tuple[int, int]] = ()


def list_images(folder: Path, role: str, notes: list[str]) -> Listed:
    """Which layout a folder has, and what lies in it.

    Args:
        role: labels are read for `evaluation` only.
        notes: receives what is not used.

    Raises:
        UsageError: no images, two layouts at once, or labels that do not match.
    """
    where = folder.name
    if (with_boxes := _with_boxes(folder, role, notes)) is not None:
        return with_boxes
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    files = [entry.name for entry in entries if entry.is_file() and entry.suffix.lower() in _SUFFIXES]
    classes = {entry.name: _images(entry) for entry in entries if entry.is_dir()}
    refuse_special(folder / _LABELS)
    listed = (folder / _LABELS).is_file()
    others = [e.name for e in entries if e.is_file() and e.name not in files and e.name != _LABELS]
    if others:
        notes.append(f"{where}: not images, not used: {', '.join(others[:3])}{' ...' if len(others) > 3 else ''}")
    if listed:
        known = set(files) | {f"{name}/{image}" for name, images in classes.items() for image in images}
        table = _read_labels(folder / _LABELS, known, where)
        return Listed(
            list(table), list(table.values()) if role == "evaluation" else None, f"images listed in {_LABELS}"
        )
    found = {name: images for name, images in classes.items() if images}
    if files and found:
        raise UsageError(
            f"it holds images ({files[0]}) as well as folders of images ({next(iter(found))})",
            remedy=f"keep one layout: images with {_LABELS}, or a folder for each class",
            where=where,
        )
    if found:
        empty = [name for name, images in classes.items() if not images]
        if empty and role == "evaluation":
            # An empty class would shift the number of every class after it if it were left out.
            notes.append(f"{where}: classes without images, counted all the same: {', '.join(empty[:3])}")
        paths = [f"{name}/{image}" for name, images in classes.items() for image in images]
        numbers = [number for number, images in enumerate(classes.values()) for _ in images]
        kind = f"images in {len(classes)} class folders, sorted by name"
        return Listed(paths, numbers if role == "evaluation" else None, kind)
    if files:
        return Listed(files, None, "images")
    raise UsageError(
        "the folder holds no images", remedy=f"put images into it ({' '.join(sorted(_SUFFIXES))})", where=where
    )


def _with_boxes(folder: Path, role: str, notes: list[str]) -> Listed | None:
    """The layouts whose labels are boxes; None where it is another."""
    where, labels = folder.name, folder / "labels"
    if (folder / COCO).exists():
        boxes = read_coco(folder / COCO)
        missing = [name for name in boxes if not within(folder, name, f"{where}/{COCO}").is_file()]
        if missing or not boxes:
            raise UsageError(
                f"{COCO} names {f'{missing[0]!r}, which is not there' if missing else 'no images'}",
                remedy="put the images that it names beside it",
                where=where,
            )
        if role != "evaluation":
            return Listed(list(boxes), None, f"images with {COCO}")
        of_each = list(boxes.values())
        return Listed(list(boxes), [one.boxes for one in of_each], f"images with {COCO}", [one.size for one in of_each])
    if not (labels.is_dir() and (folder / "images").is_dir() and any(labels.glob("*.txt"))):
        return None
    names = _images(folder / "images")
    if not names:
        raise UsageError("its folder images holds no images", remedy="put images into it", where=where)
    known = {Path(name).stem for name in names}
    stray = [path.name for path in sorted(labels.glob("*.txt")) if path.stem not in known]
    if stray:
        notes.append(f"{where}: labels of no image, not used: {', '.join(stray[:3])}{' ...' if len(stray) > 3 else ''}")
    if all(not (labels / f"{name}.txt").exists() for name in known):
        raise UsageError(
            f"no image has a file of its name in labels, as {Path(names[0]).stem}.txt",
            remedy="name the files in labels after the images",
            where=where,
        )
    own = [read_yolo(labels / f"{Path(name).stem}.txt") for name in names] if role == "evaluation" else None
    return Listed([f"images/{name}" for name in names], own, "images with boxes in labels")


def _images(folder: Path) -> list[str]:
    there = (e for e in folder.iterdir() if not e.name.startswith(".") and e.suffix.lower() in _SUFFIXES)
    return sorted(entry.name for entry in there if entry.is_file())


def _read_labels(path: Path, known: set[str], where: str) -> dict[str, int]:
    """Lines of `file label`. Every line must name an image, and every image must be named."""
    table: dict[str, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        name = name.strip()
        at = f"{where}/{path.name}, line {number}"
        if not name or not _LABEL.fullmatch(label):
            raise UsageError(f"{line.strip()[:60]!r} is not 'file label'", remedy="write: image.jpg 3", where=at)
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(
                f"there is no image {name!r}",
                remedy=f"did you mean {near[0]}?" if near else "remove the line or add the image",
                where=at,
            )
        if name in table:
            raise UsageError(f"{name!r} is listed twice", remedy="remove one of the lines", where=at)
        table[name] = int(label)
    unlisted = sorted(known - table.keys())
    if unlisted:
        raise UsageError(
            f"{len(unlisted)} images have no label, {unlisted[0]} among them",
            remedy=f"add them to {path.name}, or remove them",
            where=where,
        )
    return table
