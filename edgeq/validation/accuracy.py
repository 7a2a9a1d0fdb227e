"""The artefact's answers beside the float model's, on the same samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import DeviceError, UsageError
from edgeq.numerics import sqnr_db
from edgeq.report.schema import Accuracy, Interval
from edgeq.validation.interval import paired_bootstrap, paired_drop, share
from edgeq.validation.metric import Metric, choose, per_sample

Array = NDArray[Any]
Limits = tuple[float, float]

TOP_1 = "top-1"
AGREEMENT = "agreement with the float model"

_AT_END = 1e-6
"""Tolerance of "at the end", as a share of the range: far below one step of 16 bits, above float32 rounding."""

_BLOCK = 1 << 22
"""Elements looked at together, so that large outputs are never copied whole."""


def compare(
    reference: Sequence[Array],
    measured: Sequence[Array],
    labels: Array | None = None,
    metric: Metric | None = None,
    limits: Sequence[Limits | None] | None = None,
    *,
    seed: int = 0,
    seconds: float = 15.0,
) -> Accuracy:
    """Judge an artefact's outputs against the float model's.

    With a metric: its score on both and the drop with a paired bootstrap interval. With labels alone: top-1 of the
    first output, with Tango's paired score interval. With neither: no score; agreement says how often the answers
    are the same. Agreement, SQNR, ties and saturation are always there.

    The answer of an output is the index of its largest value (the lowest index where several tie): one answer for
    [N, C] and [N, C, 1, 1], one per position over the last axis of [N, T, C] and over axis 1 of [N, C, H, W, ...].
    An output of integers is its own answer (class numbers from an argmax within the model). An output of one real
    number per sample has no answer, thus no agreement and no ties.

    Args:
        reference: per output, the float model's values [N, ...].
        measured: per output, the artefact's values [N, ...] from its own runtime, dequantized.
        labels: [N] class indices, or whatever the metric takes, N of them.
        metric: the user's measure, instead of top-1.
        limits: per output, the real values of the lowest and the highest integer of its quantized type, or None where
            the output is computed in float.
        seed: of the bootstrap.
        seconds: time for the bootstrap; a slow metric gets fewer resamples, and the interval's method says how many.

    Raises:
        DeviceError: the artefact's outputs have another count or shape than the model's, or hold NaN or infinity.
        UsageError: no samples; the float model itself gives NaN or infinity; labels do not fit; the metric fails.
    """
    check_outputs(reference, measured)
    n = len(reference[0])
    score: float | None = None
    float_score: float | None = None
    drop: Interval | None = None
    name, unit, higher_is_better = AGREEMENT, "%", True
    if metric is not None:
        if labels is not None and len(labels) != n:
            raise UsageError(f"{len(labels)} labels for {n} samples")
        name, unit, higher_is_better = metric.name, metric.unit, metric.higher_is_better
        float_score, score, drop = _judge(metric, reference, measured, labels, seed, seconds)
    elif labels is not None:
        name = TOP_1
        wanted = check_labels(labels, reference[0].shape, reference[0].dtype)
        before, after = (answers(o[0]).reshape(n) == wanted for o in (reference, measured))
        float_score, score = 100 * float(before.mean()), 100 * float(after.mean())
        drop = paired_drop(before, after)
    has_answers = _has_answers(reference[0])
    return Accuracy(
        metric=name,
        unit=unit,
        higher_is_better=higher_is_better,
        samples=n,
        float_score=float_score,
        score=score,
        drop=drop,
        agreement=_agreement(reference[0], measured[0]) if has_answers else None,
        sqnr_db=min(sqnr_db(r, m) for r, m in zip(reference, measured, strict=True)),
        tied_percent=tied_percent(measured[0]),
        saturated_percent=_saturated(reference, measured, limits),
    )


def quick_drop(
    reference: Sequence[Array], measured: Sequence[Array], labels: Array | None, metric: Metric | None
) -> float | None:
    """The drop that `compare` shows, without its interval: of the metric, or top-1, or agreement with the float model.

    None where the outputs have no answers to compare.
    """
    if metric is not None:
        sign = 1.0 if metric.higher_is_better else -1.0
        return sign * (metric.score(per_sample(reference), labels) - metric.score(per_sample(measured), labels))
    if labels is not None:
        wanted = check_labels(labels, reference[0].shape, reference[0].dtype)
        before, after = (answers(o[0]).reshape(len(wanted)) == wanted for o in (reference, measured))
        return 100 * (float(before.mean()) - float(after.mean()))
    if not _has_answers(reference[0]):
        return None
    return 100 - _agreement(reference[0], measured[0]).value


def check_labels(labels: Array, shape: Sequence[int], dtype: Any = np.float32) -> NDArray[np.int64]:
    """Labels as [N] class indices that fit a classifier's output; to be called before any long work, too.

    Args:
        labels: [N] or [N, 1], whole numbers.
        shape: of the model's first output, [N, C] or [N, C, 1, 1]; [N] where `dtype` is an integer.
        dtype: of that output.

    Raises:
        UsageError: the output is no classifier's, or labels are missing, fractional or out of range.
    """
    n = int(shape[0])
    per_position = math.prod(shape[1:])
    numbers = np.issubdtype(dtype, np.integer)
    classes = None if numbers else int(shape[1]) if len(shape) > 1 else 1
    if (numbers and per_position != 1) or (classes is not None and (classes < 2 or classes != per_position)):
        raise UsageError(
            f"the first output has the shape {tuple(shape)}, which is not one score for each of several classes",
            remedy="pass --metric package.module:function to judge it, or leave the labels out",
        )
    labels = np.asarray(labels)
    if labels.size != n or len(labels) != n:
        raise UsageError(
            f"the labels have the shape {labels.shape} for {n} samples",
            remedy="give one class index for each sample (not one-hot)",
        )
    try:
        wanted = labels.reshape(n).astype(np.int64)
        whole = bool(np.all(wanted == labels.reshape(n)))
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise UsageError("the labels are not whole numbers", remedy="give one class index for each sample")
    if wanted.min() < 0 or (classes is not None and wanted.max() >= classes):
        raise UsageError(
            f"labels lie between {wanted.min()} and {wanted.max()}, classes between 0 and "
            f"{'the last' if classes is None else classes - 1}",
            remedy="class indices start at 0, in the order of the model's outputs",
        )
    return wanted


def _judge(
    metric: Metric,
    reference: Sequence[Array],
    measured: Sequence[Array],
    labels: Array | None,
    seed: int,
    seconds: float,
) -> tuple[float, float, Interval]:
    """The metric's score for the float model and the artefact, and its drop."""
    before, after = per_sample(reference), per_sample(measured)
    sign = 1.0 if metric.higher_is_better else -1.0

    def drop(indices: NDArray[np.intp]) -> float:
        chosen = None if labels is None else labels[indices]
        gap = metric.score(choose(before, indices), chosen) - metric.score(choose(after, indices), chosen)
        return sign * gap + 0.0  # + 0.0 turns -0.0 into 0.0

    interval = paired_bootstrap(drop, len(before), seed=seed, seconds=seconds)
    return metric.score(before, labels), metric.score(after, labels), interval


def check_outputs(reference: Sequence[Array], measured: Sequence[Array]) -> None:
    """Refuses what cannot be compared.

    Raises:
        DeviceError, UsageError: see `compare`.
    """
    if not reference or reference[0].ndim == 0 or len(reference[0]) == 0:
        raise UsageError("there are no samples to compare", remedy="give evaluation data, or fewer skipped samples")
    if len(reference) != len(measured):
        raise DeviceError(f"the artefact has {len(measured)} outputs, the float model has {len(reference)}")
    for i, (expected, got) in enumerate(zip(reference, measured, strict=True)):
        if expected.ndim == 0 or len(expected) != len(reference[0]):
            raise UsageError(
                f"an output of the shape {expected.shape} has no entry for each of {len(reference[0])} samples",
                where=f"output {i}",
                remedy="drop this output from the model, or keep its batch axis",
            )
        if expected.shape != got.shape:
            raise DeviceError(
                f"the artefact's output has the shape {got.shape}, the float model's {expected.shape}",
                where=f"output {i}",
            )
        if (bad := _first_not_finite(expected)) is not None:
            raise UsageError(
                f"the float model itself gives NaN or infinity for sample {bad}",
                where=f"output {i}",
                remedy="check the model and the preprocessing of the evaluation data",
            )
        if (bad := _first_not_finite(got)) is not None:
            raise DeviceError(
                f"the artefact gives NaN or infinity for sample {bad}, where the float model does not",
                where=f"output {i}",
                remedy="look at the per-layer table for float16 layers and scales near zero; try another runtime",
            )


def _first_not_finite(values: Array) -> int | None:
    for part in _blocks(values):
        fine = np.isfinite(values[part].reshape(part.stop - part.start, -1)).all(axis=1)
        if not fine.all():
            return int(part.start) + int(np.argmin(fine))
    return None


def _has_answers(output: Array) -> bool:
    return bool(np.issubdtype(output.dtype, np.integer)) or (output.ndim > 1 and output.shape[_axis(output)] > 1)


def _axis(output: Array) -> int:
    """The axis of the classes: [N, C], [N, T, C], [N, C, H, W]."""
    return output.ndim - 1 if output.ndim == 3 and output.shape[2] != 1 else 1


def answers(output: Array) -> Array:
    """[N, positions], the answer at each position; one position for a classifier."""
    found = output if np.issubdtype(output.dtype, np.integer) else output.argmax(axis=_axis(output))
    return found.reshape(len(output), -1)


def _agreement(reference: Array, measured: Array) -> Interval:
    same = sum(
        float((answers(reference[part]) == answers(measured[part].astype(reference.dtype))).mean(axis=1).sum())
        for part in _blocks(reference)
    )
    n = len(reference)
    positions = answers(reference[:1]).shape[1]
    method = "Wilson score interval"
    if positions > 1:
        # Positions of one sample are not independent. A mean of values within 0..1 varies at most as much as a share
        # with the same mean does, so that counting samples alone is safe.
        method = f"share of {positions} positions a sample; Wilson score interval over samples, on the safe side"
    return share(same, n, method)


def tied_percent(measured: Array) -> float | None:
    """Percent of samples whose maximum is shared, for dense outputs, of positions; None where there are no answers.

    Args:
        measured: [N, ...].
    """
    if not _has_answers(measured) or (np.issubdtype(measured.dtype, np.integer) and measured[0].size == 1):
        return None
    axis = _axis(measured)
    tied = 0.0
    for part in _blocks(measured):
        values = measured[part]
        shared = (values == values.max(axis=axis, keepdims=True)).sum(axis=axis) > 1
        tied += float(shared.reshape(len(values), -1).mean(axis=1).sum())
    return 100 * tied / len(measured)


def _saturated(
    reference: Sequence[Array], measured: Sequence[Array], limits: Sequence[Limits | None] | None
) -> float | None:
    """Percent of samples with a value at an end of its quantized range; None where no output is quantized.

    An end at zero that the float model never passes is not counted: after ReLU or softmax, zero is an answer.
    """
    if limits is None or all(limit is None for limit in limits):
        return None
    hit = np.zeros(len(measured[0]), dtype=bool)
    for expected, got, limit in zip(reference, measured, limits, strict=True):
        if limit is None:
            continue
        low, high = limit
        slack = _AT_END * (high - low)
        floor = abs(low) <= slack and float(expected.min()) >= low - slack
        ceiling = abs(high) <= slack and float(expected.max()) <= high + slack
        for part in _blocks(got):
            values = got[part].reshape(part.stop - part.start, -1)
            if not floor:
                hit[part] |= (values <= low + slack).any(axis=1)
            if not ceiling:
                hit[part] |= (values >= high - slack).any(axis=1)
    return 100 * float(hit.mean())


def _blocks(values: Array) -> Iterator[slice]:
    """Slices of samples with at most about `_BLOCK` elements."""
    n = len(values)
    length = max(1, _BLOCK * n // max(1, values.size))
    for start in range(0, n, length):
        yield slice(start, min(n, start + length))
