"""From the pixels of one image to the values that a network was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgeq.data.boxes import Boxes
from edgeq.errors import UsageError
from edgeq.toml import read_toml

_Side = Annotated[int, Field(ge=1)]
_Size = _Side | tuple[_Side, _Side]
_RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def read_preprocess(text: str) -> Preprocess:
    """A preset by name, or a TOML file with the fields of `Preprocess`.

    Raises:
        UsageError: no such preset or file, no TOML, or a field that is unknown or wrong.
    """
    if text in PRESETS:
        return PRESETS[text]
    path = Path(text)
    if not path.is_file():
        raise UsageError(
            f"there is no preprocessing {text!r}",
            remedy=f"give a preset ({', '.join(PRESETS)}) or a TOML file",
            where="--preprocess",
        )
    try:
        table = read_toml(path)
    except UsageError as error:
        raise UsageError(f"this is no TOML ({error.cause})", remedy="mend the file", where=path.name) from error
    try:
        return Preprocess.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"{field + ': ' if field else ''}{first['msg']}",
            remedy=f"the fields are {', '.join(Preprocess.model_fields)}",
            where=path.name,
        ) from error


def _target_size(size: tuple[int, int], wanted: int | tuple[int, int]) -> tuple[int, int]:
    """Width and height to resize to. The longer side is rounded down, as torchvision does."""
    if isinstance(wanted, tuple):
        return wanted[1], wanted[0]
    width, height = size
    if width <= height:
        return wanted, max(1, int(wanted * height / width))
    return max(1, int(wanted * width / height)), wanted


def _within(boxes: Boxes) -> Boxes:
    """What of boxes lies between 0 and 1."""
    low, high = ((boxes[:, 1:3] + sign * boxes[:, 3:5] / 2).clip(0, 1) for sign in (-1, 1))
    cut = boxes.copy()
    cut[:, 1:3], cut[:, 3:5] = (low + high) / 2, high - low
    seen: Boxes = cut[(cut[:, 3:5] > 0).all(axis=1)]
    return seen


def _sides(wanted: int | tuple[int, int]) -> tuple[int, int]:
    """Width and height."""
    return (wanted[1], wanted[0]) if isinstance(wanted, tuple) else (wanted, wanted)


def _start(whole: int, part: int) -> int:
    """Where a part begins that is cut out of the middle."""
    return round((whole - part) / 2)


def _centre(image: Image.Image, wanted: int | tuple[int, int]) -> Image.Image:
    width, height = _sides(wanted)
    if image.width < width or image.height < height:
        raise ValueError(f"it is {image.width}x{image.height}, smaller than the crop of {width}x{height}")
    left, top = _start(image.width, width), _start(image.height, height)
    return image.crop((left, top, left + width, top + height))


def _boxed(image: Image.Image, whole: tuple[int, int], fill: int) -> Image.Image:
    """The image in the middle of a larger one."""
    larger = Image.new(image.mode, whole, (fill,) * len(image.getbands()))
    larger.paste(image, ((whole[0] - image.width) // 2, (whole[1] - image.height) // 2))
    return larger


class Preprocess(BaseModel):
    """What is done to each image, in the order of the fields: `(pixels / scale - mean) / std` after resizing.

    Pixels are 8-bit values from 0 to 255.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: _Size | None = None
    """Resize: one number for the shorter side, keeping the shape; `[height, width]` for exactly that."""
    letterbox: Annotated[int, Field(ge=0, le=255)] | None = None
    """Keep the shape: the image is fitted into `size`, in its middle, and what is left is filled with this value."""
    resample: Literal["nearest", "box", "bilinear", "bicubic", "lanczos"] = "bilinear"
    crop: _Size | None = None
    """Cut out the centre: a square, or `[height, width]`."""
    order: Literal["RGB", "BGR", "gray"] = "RGB"
    """Order of the colour channels; `gray` gives one channel."""
    scale: Annotated[float, Field(gt=0)] = 255.0
    """Pixels are divided by this; 1 keeps them from 0 to 255."""
    mean: tuple[float, ...] = (0.0,)
    """Subtracted after scaling: one value, or one for each channel in `order`."""
    std: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)
    """Divided by after subtracting the mean: one value, or one for each channel in `order`."""
    layout: Literal["NCHW", "NHWC"] = "NCHW"

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> Preprocess:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(f"{name} has {len(values)} values for {self.channels} channels")
        return self

    @model_validator(mode="after")
    def _box_has_sides(self) -> Preprocess:
        if self.letterbox is not None and not isinstance(self.size, tuple):
            raise ValueError("letterbox needs size = [height, width]")
        return self

    @property
    def channels(self) -> int:
        return 1 if self.order == "gray" else 3

    def apply(self, image: Image.Image) -> np.ndarray:
        """One upright RGB image to float32 `[C, H, W]`, or `[H, W, C]` where `layout` says so.

        Raises:
            ValueError: the image is smaller than the crop.
        """
        if self.size is not None:
            image = image.resize(self._resized(image.size), _RESAMPLE[self.resample])
        if self.letterbox is not None:
            image = _boxed(image, self._whole(image.size), self.letterbox)
        if self.crop is not None:
            image = _centre(image, self.crop)
        pixels = np.asarray(image.convert("L") if self.order == "gray" else image, np.float32)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if self.order == "BGR":
            pixels = pixels[..., ::-1]
        values = (pixels / np.float32(self.scale) - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(values.transpose(2, 0, 1) if self.layout == "NCHW" else values, np.float32)

    def boxes(self, boxes: Boxes, size: tuple[int, int]) -> Boxes:
        """Boxes [M, 6] of an image (see `edgeq.data.boxes`) in parts of what `apply` makes of it: those that a crop
        cuts end at its edge, and those outside of it are gone.

        Args:
            size: width and height of the upright image.
        """
        resized = self._resized(size)
        whole = self._whole(resized)
        cropped = _sides(self.crop) if self.crop is not None else whole
        moved: Boxes = boxes.copy()
        for axis in (0, 1):
            start = (whole[axis] - resized[axis]) // 2 - _start(whole[axis], cropped[axis])
            moved[:, 1 + axis] = (boxes[:, 1 + axis] * resized[axis] + start) / cropped[axis]
            moved[:, 3 + axis] = boxes[:, 3 + axis] * resized[axis] / cropped[axis]
        return moved if self.crop is None else _within(moved)

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height behind the resizing."""
        if self.size is None:
            return size
        wanted = _target_size(size, self.size)
        if self.letterbox is None:
            return wanted
        share = min(wanted[0] / size[0], wanted[1] / size[1])
        return max(1, round(size[0] * share)), max(1, round(size[1] * share))

    def _whole(self, resized: tuple[int, int]) -> tuple[int, int]:
        """Width and height with what the letterbox adds."""
        return resized if self.letterbox is None or self.size is None else _target_size(resized, self.size)


PRESETS = {
    "imagenet": Preprocess(size=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "cifar10": Preprocess(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    "[0,1]": Preprocess(),
}
