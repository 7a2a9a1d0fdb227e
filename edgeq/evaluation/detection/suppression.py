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
    """

    corners: Array
    scores: Array
    classes: NDArray[np.int64]


def suppress(found: Found, threshold: float, most_overlap: float) -> Found:
    """The best boxes, the highest score first, without those of the same class that overlap a better one.

    Args:
        threshold: lowest score of a box.
        most_overlap: intersection over union, above which the worse of two is left out.
    """
    order = np.argsort(-found.scores, kind="stable")
    order = order[found.scores[order] > threshold][:CANDIDATES]
    corners, classes = found.corners[order], found.classes[order]
    kept = np.zeros(len(order), bool)
    for label in np.unique(classes):
        rest = np.flatnonzero(classes == label)
        while len(rest):
            kept[rest[0]] = True
            rest = rest[1:][overlaps(corners[rest[0]], corners[rest[1:]]) <= most_overlap]
    best = np.flatnonzero(kept)[:MOST_BOXES]
    return Found(corners[best], found.scores[order][best], classes[best])


def overlaps(box: Array, others: Array) -> Array:
    """Intersection over union of one box [4] with others [K, 4]."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=1)
    together = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - both
    shares: Array = np.divide(both, together, out=np.zeros(len(others)), where=together > 0)
    return shares
