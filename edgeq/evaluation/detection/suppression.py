"""From the boxes that a head gives to those that it means: non-maximum suppression, class by class."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MOST_BOXES = 100
"""Of an image: as many as COCO's measure looks at."""


CANDIDATES = 10_000
"""Of an image: so many of the highest scores are looked at, which a network that finds anything never reaches."""


class Found(NamedTuple):
    """Boxes of one image.

    Attributes:
        corners: [K, 4], left, top, right, bottom in parts of the image.
        scores: [K].
        classes: [K], from 0.
        kinds: how many classes there are; None where that is not known.
    """

    corners: Array
    scores: Array
    classes: NDArray[np.int64]
    kinds: int | None = None


def suppress(found: Found, threshold: float, most_overlap: float) -> Found:
    """The best boxes, the highest score first, without those of the same class that overlap a better one.

    Args:
        threshold: lowest score of a box.
        most_overlap: intersection over union, above which the worse of two is left out.
    """
    order = np.argsort(-found.scores, kind="stable")
    fits = (found.scores > threshold) & np.isfinite(found.corners).all(axis=1)
    best: list[int] = []
    for one in order[fits[order]][:CANDIDATES]:
        rivals = [other for other in best if found.classes[other] == found.classes[one]]
        if not rivals or overlaps(found.corners[one], found.corners[rivals]).max() <= most_overlap:
            best.append(one)
        if len(best) == MOST_BOXES:
            break
    return Found(found.corners[best], found.scores[best], found.classes[best], found.kinds)


def overlaps(box: Array, others: Array) -> Array:
    """Intersection over union of one box [4] with others [K, 4]."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=1)
    together = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - both
    shares: Array = np.divide(both, together, out=np.zeros(len(others)), where=together > 0)
    return shares
