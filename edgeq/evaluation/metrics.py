"""The measures that edgeq brings, by the names that `--metric` takes (docs/metrics.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import UsageError
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


def spearman(cosines: Sequence[float], labels: NDArray[Any]) -> float:
    """Spearman's rank correlation of two texts' likeness with the score that people gave it, times 100.

    Args:
        cosines: [2 N], of each text, that of its pair (see `_cosines`).
        labels: [2 N], of each text, the score of its pair.
    """
    from scipy.stats import spearmanr  # late: it takes a second to import

    return 100 * float(spearmanr(cosines[::2], labels[::2]).statistic)


def _cosines(outputs: Sequence[NDArray[Any]], labels: NDArray[Any]) -> list[Any]:
    """For each of two embeddings in a row, the cosine of the angle between them."""
    _check_pairs(labels)
    vectors = np.stack(outputs).astype(np.float64)
    if vectors.ndim != 2:
        raise ValueError(f"the outputs are {list(vectors.shape[1:])} for a text, and have to be one vector")
    one, other = vectors[::2], vectors[1::2]
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return list(np.repeat((one * other).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny), 2))


def _check_pairs(labels: NDArray[Any] | None) -> None:
    """Refuses labels that are not the same for the two samples of each pair."""
    paired = labels is not None and labels.ndim == 1 and len(labels) % 2 == 0
    if labels is None or not paired or not bool((labels[::2] == labels[1::2]).all()):
        raise UsageError(
            "spearman judges pairs of texts: two samples in a row, with the score of the pair for both",
            where="--eval",
            remedy="give a .tsv with the columns text_a, text_b and score",
        )


def perplexity(losses: Sequence[tuple[float, int]], labels: NDArray[Any]) -> float:
    """The exponential of the mean negative log-likelihood of a token.

    Args:
        losses: of each sample, the sum of its tokens' negative log-likelihoods, and their number (see `_losses`).
        labels: not looked at again.
    """
    total, tokens = (sum(column) for column in zip(*losses, strict=True))
    return math.exp(total / tokens)


def _losses(outputs: Sequence[NDArray[Any]], labels: NDArray[Any]) -> list[Any]:
    """Sums of negative log-likelihoods, with the number of tokens.

    Args:
        outputs: [T, V] logits each; those at a position are of the token that the label at that position names.
        labels: [N, T] token numbers; those below 0 do not count.
    """
    if labels is None or labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError("labels have to be integers [N, T], the token at each position")
    found = []
    for logits, wanted in zip(outputs, labels, strict=True):
        if logits.ndim != 2 or len(logits) != len(wanted) or wanted.max(initial=0) >= logits.shape[1]:
            raise ValueError(
                f"outputs are {list(logits.shape)}, and labels up to {wanted.max()} for {len(wanted)} tokens"
            )
        at = np.flatnonzero(wanted >= 0)
        scores = logits[at].astype(np.float64)
        most = scores.max(axis=1, initial=-math.inf, keepdims=True)
        whole = most[:, 0] + np.log(np.exp(scores - most).sum(axis=1))
        found.append((float((whole - scores[np.arange(len(at)), wanted[at]]).sum()), len(at)))
    return found


def _coco(spec: str) -> Metric:
    from edgeq.evaluation.detection.coco import coco  # late: an extra

    return coco(spec)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("top-5", top_5, unit="%"),
        Metric("mean-iou", mean_iou, unit="%"),
        Metric("spearman", spearman, unit="%", prepare=_cosines, check=_check_pairs, group=2),
        Metric("perplexity", perplexity, higher_is_better=False, prepare=_losses),
    )
}

MADE: dict[str, Callable[[str], Metric]] = {"coco": _coco}
"""Those that need a file or a function of the user's, behind a colon: `coco:detector.toml`."""
