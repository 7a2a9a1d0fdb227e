"""What the outputs of detectors mean: a head for each family, which turns the outputs for one image into boxes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from edgeq.evaluation.detection.suppression import Found
from edgeq.reading import within

Array = NDArray[Any]
_LEAST = 1e-3
"""Of a score: what is below it changes no average precision that anybody reports, and there are many."""
_Sides = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]


class _Head(BaseModel, ABC):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def files(self) -> list[str]:
        """Those that it reads, relative to the folder of the file that describes it."""
        return []

    @abstractmethod
    def decode(self, outputs: Sequence[Array], folder: Path) -> Found:
        """Boxes of one image, before any are left out.

        Args:
            outputs: of the model, without the batch axis.
            folder: of the file that describes the head.

        Raises:
            ValueError: the outputs have other shapes than this head has.
        """


class FastestDet(_Head):
    """[5 + C, H, W]: objectness, the centre's offset, the size, and the classes of each cell. Its scores are
    objectness^0.6 times class^0.4. Source: dog-qiuqiu/FastestDet, utils/tool.py."""

    kind: Literal["fastestdet"]

    def decode(self, outputs: Sequence[Array], folder: Path) -> Found:
        (grid,) = _count(outputs, 1)
        values = _columns(_rank(grid, 3))
        x, y = _cells(grid.shape[1:])
        centre = np.stack([x + np.tanh(values[:, 1]), y + np.tanh(values[:, 2])], 1) / grid.shape[:0:-1]
        scores = values[:, :1].clip(0) ** 0.6 * values[:, 5:].clip(0) ** 0.4
        return _best(_corners(centre, _sigmoid(values[:, 3:5])), scores)


class Yolo(_Head):
    """[4 + C, A]: centre and size in pixels, then the scores of the classes, as YOLOv8, v9, 11 and 12 are exported;
    with `objectness`, [A, 5 + C], as YOLOv5, v7 and YOLOX are when they decode themselves."""

    kind: Literal["yolo"]
    size: _Sides
    """[height, width] of the network's input."""
    objectness: bool = False
    boxes_first: bool | None = None
    """Whether the table is [A, ...]; with `objectness` it is, and without it is not, if not given."""

    def decode(self, outputs: Sequence[Array], folder: Path) -> Found:
        (table,) = _count(outputs, 1)
        values = _rank(table, 2)
        values = values if (self.objectness if self.boxes_first is None else self.boxes_first) else values.T
        sides = np.array(self.size[::-1], np.float64)
        scores = values[:, 5:] * values[:, 4:5] if self.objectness else values[:, 4:]
        return _all(_corners(values[:, :2] / sides, values[:, 2:4] / sides), scores)


class YoloAnchors(_Head):
    """[B * (5 + C), H, W] for each stride, as logits: B boxes a cell, by anchors. `v3` is YOLOv4-tiny as well, `v5`
    YOLOv5 and v7. Sources: Redmon and Farhadi 2018, YOLOv3, section 2.1; ultralytics/yolov5, models/yolo.py."""

    kind: Literal["yolo-anchors"]
    size: _Sides
    anchors: list[list[tuple[float, float]]]
    """For each output its anchors, [width, height] in pixels."""
    form: Literal["v3", "v5"] = "v5"

    def decode(self, outputs: Sequence[Array], folder: Path) -> Found:
        parts = []
        sides = np.array(self.size[::-1], np.float64)
        for grid, anchors in zip(_count(outputs, len(self.anchors)), self.anchors, strict=True):
            cells = np.stack(_cells(_rank(grid, 3).shape[1:]), 1)
            for values, anchor in zip(np.split(grid, len(anchors)), anchors, strict=True):
                logits = _columns(values)
                at, scores = _sigmoid(logits[:, :2]), _sigmoid(logits[:, 4:5]) * _sigmoid(logits[:, 5:])
                if self.form == "v3":
                    centre, size = at + cells, np.exp(logits[:, 2:4]) * anchor
                else:
                    centre, size = 2 * at - 0.5 + cells, (2 * _sigmoid(logits[:, 2:4])) ** 2 * anchor
                parts.append(_all(_corners(centre / grid.shape[:0:-1], size / sides), scores))
        return _together(parts)


class YoloDistances(_Head):
    """[4 * R + C, H, W] for each stride, as logits: distances of a cell's middle from the box's sides, each the mean
    of a distribution over R bins, then the classes: YOLOv8, v9, 11 and 12 cut before their decoding. Boxes and classes
    may be outputs of their own, boxes first. Source: Li et al. 2020, Generalized Focal Loss, equation 6."""

    kind: Literal["yolo-distances"]
    bins: Annotated[int, Field(ge=1)] = 16

    def decode(self, outputs: Sequence[Array], folder: Path) -> Found:
        by_size: dict[tuple[int, ...], list[Array]] = {}
        for grid in outputs:
            by_size.setdefault(_rank(grid, 3).shape[1:], []).append(grid)
        parts = []
        for shape, grids in by_size.items():
            values = _columns(np.concatenate(grids))
            if values.shape[1] <= 4 * self.bins:
                raise ValueError(f"{values.shape[1]} channels of {list(shape)} are no 4 x {self.bins} bins and classes")
            cells, sides = np.stack(_cells(shape), 1) + 0.5, np.array(shape[::-1], np.float64)
            chances = values[:, : 4 * self.bins].reshape(-1, 4, self.bins)
            away = _softmax(chances) @ np.arange(self.bins)
            corners = np.concatenate([(cells - away[:, :2]) / sides, (cells + away[:, 2:]) / sides], 1)
            parts.append(_all(corners, _sigmoid(values[:, 4 * self.bins :])))
        return _together(parts)


class YoloX(_Head):
    """[A, 5 + C]: offset from the cell, logarithm of the size, objectness and scores, stride after stride, as YOLOX is
    exported without its decoding. Source: Ge et al. 2021, YOLOX, section 2.1; Megvii-BaseDetection/YOLOX,
    models/yolo_head.py."""

    kind: Literal["yolox"]
    size: _Sides
    strides: list[Annotated[int, Field(ge=1)]] = [8, 16, 32]

    def decode(self, outputs: Sequence[Array], folder: Path) -> Found:
        (table,) = _count(outputs, 1)
        values = _rank(table, 2).astype(np.float64)
        shapes = [(self.size[0] // stride, self.size[1] // stride) for stride in self.strides]
        cells = np.concatenate([np.stack(_cells(shape), 1) for shape in shapes])
        strides = np.repeat(self.strides, [rows * columns for rows, columns in shapes])[:, None]
        if len(cells) != len(values):
            raise ValueError(f"there are {len(values)} boxes, and strides {self.strides} make {len(cells)} cells")
        sides = np.array(self.size[::-1], np.float64)
        centre, size = (values[:, :2] + cells) * strides / sides, np.exp(values[:, 2:4]) * strides / sides
        return _best(_corners(centre, size), values[:, 5:] * values[:, 4:5])


class Ssd(_Head):
    """Two outputs, boxes [A, 4] and scores [A, 1 + C] with the background first. With `priors`, a `.npy` [A, 4] of
    centre and size in parts of the image, boxes are offsets from them; without, they are corners in parts of the image.
    Source: Liu et al. 2016, SSD, equation 2."""

    kind: Literal["ssd"]
    priors: str | None = None
    variances: tuple[float, float] = (0.1, 0.2)
    softmax: bool = False
    """Scores are logits."""
    scores_first: bool = False

    def files(self) -> list[str]:
        return [] if self.priors is None else [self.priors]

    def decode(self, outputs: Sequence[Array], folder: Path) -> Found:
        two = [_rank(output, 2).astype(np.float64) for output in _count(outputs, 2)]
        boxes, scores = reversed(two) if self.scores_first else two
        if boxes.shape[1] != 4:
            raise ValueError(f"the boxes are {list(boxes.shape)}, and have to be [A, 4]")
        scores = _softmax(scores) if self.softmax else scores
        if self.priors is not None:
            priors = np.load(within(folder, self.priors, "priors"), allow_pickle=False)
            if priors.shape != boxes.shape:
                raise ValueError(f"the priors are {list(priors.shape)}, and the boxes {list(boxes.shape)}")
            centre = priors[:, :2] + boxes[:, :2] * self.variances[0] * priors[:, 2:]
            boxes = _corners(centre, priors[:, 2:] * np.exp(boxes[:, 2:] * self.variances[1]))
        return _all(boxes, scores[:, 1:])


Head = Annotated[FastestDet | Yolo | YoloAnchors | YoloDistances | YoloX | Ssd, Field(discriminator="kind")]
"""All that there are."""


def _count(outputs: Sequence[Array], wanted: int) -> Sequence[Array]:
    if len(outputs) != wanted:
        raise ValueError(f"the model has {len(outputs)} outputs, and this head has {wanted}")
    return outputs


def _rank(output: Array, wanted: int) -> Array:
    if output.ndim != wanted:
        raise ValueError(f"an output has the shape {list(output.shape)}, and this head's have {wanted} axes")
    return output


def _columns(grid: Array) -> Array:
    """[C, H, W] as a row for each cell, [H * W, C]."""
    rows: Array = grid.reshape(len(grid), -1).T.astype(np.float64)
    return rows


def _cells(shape: Sequence[int]) -> tuple[Array, Array]:
    """Column and row of each cell, [H * W] each."""
    y, x = np.mgrid[: shape[0], : shape[1]].reshape(2, -1)
    return x, y


def _corners(centre: Array, size: Array) -> Array:
    return np.concatenate([centre - size / 2, centre + size / 2], axis=1)


def _all(corners: Array, scores: Array) -> Found:
    """Each box with each class that has a chance: [A, 4] and [A, C]. The least of chances are left out early."""
    box, label = np.nonzero(_some(scores) > _LEAST)
    return Found(corners[box].astype(np.float64), scores[box, label].astype(np.float64), label, scores.shape[1])


def _best(corners: Array, scores: Array) -> Found:
    """Each box with its best class."""
    return Found(corners, _some(scores).max(axis=1), scores.argmax(axis=1), scores.shape[1])


def _some(scores: Array) -> Array:
    if scores.shape[1] < 1:
        raise ValueError("nothing is left for the scores of classes")
    return scores


def _together(parts: Sequence[Found]) -> Found:
    corners, scores, classes = (np.concatenate([part[column] for part in parts]) for column in range(3))
    return Found(corners, scores, classes, parts[0].kinds)


def _sigmoid(values: Array) -> Array:
    chances: Array = 0.5 * (1 + np.tanh(values / 2))
    return chances


def _softmax(values: Array) -> Array:
    grown = np.exp(values - values.max(axis=-1, keepdims=True))
    chances: Array = grown / grown.sum(axis=-1, keepdims=True)
    return chances
