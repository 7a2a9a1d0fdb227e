"""Samples from a folder of images."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from edgeq.data.boxes import Boxes, stack
from edgeq.data.check import fit, spread
from edgeq.data.dataset import Dataset, InputSpec, make_dataset
from edgeq.data.listing import list_images
from edgeq.data.preprocess import Preprocess
from edgeq.errors import UsageError

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
    """Read a folder: images with an optional `labels.txt`, one folder of images for each class, or images with boxes:
    in a COCO `annotations.json`, or in a folder `labels` beside a folder `images`, a `.txt` for each.

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
    listed = list_images(folder, role, notes)
    kept = spread(len(listed.files), limit)
    files, sizes = [listed.files[index] for index in kept], [(0, 0)] * len(kept)
    first, _ = _prepare(folder, files[0], preprocess)
    array = np.empty((len(files), *first.shape), np.float32)

    def fill(index: int) -> None:
        values, sizes[index] = _prepare(folder, files[index], preprocess)
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
    for file, told, size in zip(files, [listed.sizes[i] for i in kept] if listed.sizes else sizes, sizes, strict=True):
        if told != size:
            raise UsageError(
                f"{file} is {size[0]} x {size[1]}, and its labels are for {told[0]} x {told[1]}",
                remedy="give the image that was labelled; one that its EXIF turns has to be saved upright",
                where=where,
            )
    fitted, _ = fit({specs[0].name: array}, specs, limit=None, where=where, notes=notes)
    labels = None if listed.labels is None else _stacked([listed.labels[i] for i in kept], sizes, preprocess)
    return make_dataset(fitted, specs, labels=labels, source=f"{where} ({listed.layout})", notes=notes)


def _stacked(labels: Sequence[int | Boxes], sizes: Sequence[tuple[int, int]], preprocess: Preprocess) -> np.ndarray:
    """Class indices [N], or boxes [N, M, 6] where the images that the network sees have them."""
    if isinstance(labels[0], int):
        return np.array(labels, np.int64)
    own = (np.asarray(boxes) for boxes in labels)
    return stack([preprocess.boxes(boxes, size) for boxes, size in zip(own, sizes, strict=True)])


def _prepare(folder: Path, name: str, preprocess: Preprocess) -> tuple[np.ndarray, tuple[int, int]]:
    """The values of an image, and its width and height."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(folder / name, formats=_FORMATS) as file:
                if file.width * file.height > _MOST_PIXELS:
                    raise ValueError(
                        f"{file.width} x {file.height} pixels, and {_MOST_PIXELS // 1_000_000} million are the most"
                    )
                image = ImageOps.exif_transpose(file)
                return preprocess.apply(_rgb(image)), image.size
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
