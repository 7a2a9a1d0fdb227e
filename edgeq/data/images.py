"""Samples from a folder of images."""

from __future__ import annotations

import difflib
import os
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from edgeq.data.check import fit, fit_labels, spread
from edgeq.data.dataset import Dataset, InputSpec, make_dataset
from edgeq.data.preprocess import Preprocess
from edgeq.errors import UsageError
from edgeq.reading import read_text, refuse_special

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_LABELS = "labels.txt"
_LABEL = re.compile(r"-?[0-9]{1,18}")
# By content, whatever the suffix says: Pillow knows others too, and runs another program for some of them.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_MOST_PIXELS = 100_000_000
"""Of one image; a larger one takes gigabytes while it is prepared."""


def load_images(
    folder: Path,
    specs: Sequence[InputSpec],
    preprocess: Preprocess,
    *,
    role: Literal["calibration", "evaluation"],
    limit: int | None,
    notes: list[str],
) -> Dataset:
    """Read a folder: images with an optional `labels.txt`, or one folder of images for each class.

    Images are turned upright by their EXIF orientation and converted to RGB; transparency is dropped, 16-bit grey is
    reduced to 8 bits. The result does not depend on the number of threads.

    Raises:
        UsageError: no images, an unreadable one, labels that do not match, or images that do not fit the model.
    """
    where = folder.name
    if len(specs) != 1:
        raise UsageError(
            f"images feed one input and the model takes {len(specs)} ({', '.join(spec.name for spec in specs)})",
            remedy="give a .npz with an array for each input, or package.module:function",
            where=where,
        )
    files, labels, kind = _listing(folder, role, notes)
    kept = spread(len(files), limit)
    files = [files[index] for index in kept]
    first = _prepare(folder, files[0], preprocess)
    array = np.empty((len(files), *first.shape), np.float32)

    def fill(index: int) -> None:
        values = _prepare(folder, files[index], preprocess)
        if values.shape != first.shape:
            raise UsageError(
                f"{files[index]} is prepared to {list(values.shape)} and {files[0]} to {list(first.shape)}",
                remedy="set size = [height, width], or a crop, in the preprocessing",
                where=where,
            )
        array[index] = values

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for _ in pool.map(fill, range(len(files))):
            pass
    fitted, _ = fit({specs[0].name: array}, specs, limit=None, where=where, notes=notes)
    chosen = fit_labels(np.array(labels), len(labels), where=where)[kept] if labels is not None else None
    return make_dataset(fitted, specs, labels=chosen, source=f"{where} ({kind})", notes=notes)


def _listing(folder: Path, role: str, notes: list[str]) -> tuple[list[str], list[int] | None, str]:
    """Image files relative to the folder, their labels where they are wanted, and which layout the folder has."""
    where = folder.name
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
        return list(table), list(table.values()) if role == "evaluation" else None, f"images listed in {_LABELS}"
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
        return paths, numbers if role == "evaluation" else None, kind
    if files:
        return files, None, "images"
    raise UsageError(
        "the folder holds no images", remedy=f"put images into it ({' '.join(sorted(_SUFFIXES))})", where=where
    )


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


def _prepare(folder: Path, name: str, preprocess: Preprocess) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(folder / name, formats=_FORMATS) as file:
                if file.width * file.height > _MOST_PIXELS:
                    raise ValueError(
                        f"{file.width} x {file.height} pixels, and {_MOST_PIXELS // 1_000_000} million are the most"
                    )
                image = ImageOps.exif_transpose(file)
                return preprocess.apply(_rgb(image))
    except (ValueError, Image.DecompressionBombError) as error:
        raise UsageError(
            f"the image {name} cannot be used ({error})",
            remedy="scale it down or remove it, or change the preprocessing",
            where=folder.name,
        ) from error
    except (OSError, SyntaxError, EOFError) as error:
        raise UsageError(
            f"the image {name} is unreadable or cut short ({type(error).__name__})",
            remedy="copy it again, or remove it",
            where=folder.name,
        ) from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image, np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are not 8-bit (mode {image.mode})")
    return image.convert("RGB")
