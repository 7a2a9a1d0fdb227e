"""The measures that edgeq brings, by the names that `--metric` takes (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.evaluation.metric import Metric


def top_5(outputs: Sequence[NDArray[Any]], labels: NDArray[Any]) -> float:
    """Percent of samples whose class is among the five of the highest scores.

    Args:
        outputs: [C] scores each, of more than five classes.
        labels: [N] class indices.
    """
    scores = np.stack(outputs).reshape(len(outputs), -1)
    if scores.shape[1] <= 5:
        raise ValueError(f"there are {scores.shape[1]} classes")
    best = np.argpartition(-scores, 5, axis=1)[:, :5]
    return 100 * float((best == np.asarray(labels).reshape(-1, 1)).any(axis=1).mean())


def mean_iou(outputs: Sequence[NDArray[Any]], labels: NDArray[Any]) -> float:
    """Percent that predicted and true areas share of what they cover together, as a mean over the classes that occur in
    either; over all samples at once, as PASCAL VOC and Cityscapes have it.

    Args:
        outputs: [C, H, W] scores each.
        labels: [N, H, W] class indices; positions with another number than those of the C classes do not count.
    """
    scores = np.stack(outputs)
    classes, found, wanted = scores.shape[1], scores.argmax(axis=1), np.asarray(labels)
    if wanted.shape != found.shape or not np.issubdtype(wanted.dtype, np.integer):
        raise ValueError(f"labels are {wanted.dtype} {wanted.shape}, and have to be integers {found.shape}")
    counts = (wanted >= 0) & (wanted < classes)
    both = np.bincount(classes * wanted[counts].astype(np.int64) + found[counts], minlength=classes**2)
    confusion = both.reshape(classes, classes).astype(np.float64)
    together = confusion.sum(axis=0) + confusion.sum(axis=1) - confusion.diagonal()
    occurs = together > 0
    return 100 * float((confusion.diagonal()[occurs] / together[occurs]).mean())


def _coco(spec: str) -> Metric:
    from edgeq.evaluation.detection.coco import coco  # late: an extra

    return coco(spec)


METRICS = {name: Metric(name, function, unit="%") for name, function in (("top-5", top_5), ("mean-iou", mean_iou))}

MADE: dict[str, Callable[[str], Metric]] = {"coco": _coco}
"""Those that need a file or a function of the user's, behind a colon: `coco:detector.toml`."""
