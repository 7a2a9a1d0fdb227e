"""The artefact's answers beside the float model's, on the same samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import DeviceError, UsageError
from edgeq.evaluation.interval import paired_bootstrap, paired_drop
from edgeq.evaluation.metric import Metric, choose, in_groups, per_sample
from edgeq.evaluation.outputs import MASK, agreement, answers, blocks, class_axis, read_output, score_output
from edgeq.model.heads import Head
from edgeq.records.schema import Accuracy, Interval

Array = NDArray[Any]
Limits = tuple[float, float]

TOP_1 = "top-1"
AGREEMENT = "agreement with the float model"

_AT_END = 1e-6
"""Tolerance of "at the end", as a share of the range: far below one step of 16 bits, above float32 rounding."""


def compare(
    reference: Sequence[Array],
    measured: Sequence[Array],
    labels: Array | None = None,
    metric: Metric | None = None,
    limits: Sequence[Limits | None] | None = None,
    heads: Sequence[Head] = (),
    *,
    seed: int = 0,
    seconds: float = 15.0,
) -> Accuracy:
    """Judge an artefact's outputs against the float model's.

    With a metric: its score on both and the drop with a paired bootstrap interval. With labels alone: top-1 of the
    first output, with Tango's paired score interval. With neither: no score; agreement says how often the answers
    are the same. Each output is judged by what it is (see `edgeq.evaluation.outputs`): agreement of classes and scores,
    SQNR of numbers. Agreement, ties and saturation stand for themselves, too.

    Args:
        reference: per output, the float model's values [N, ...].
        measured: per output, the artefact's values [N, ...] from its own runtime, dequantized.
        labels: [N] class indices, or whatever the metric takes, N of them.
        metric: the user's measure, instead of top-1.
        limits: per output, the real values of the lowest and the highest integer of its quantized type, or None where
            the output is computed in float.
        heads: per output, its name and what the graph tells of it.
        seed: of the bootstrap.
        seconds: time for the bootstrap; a slow metric gets fewer resamples, and the interval's method says how many.

    Raises:
        DeviceError: the artefact's outputs have another count or shape than the model's, or hold NaN, or infinity where
            the model's do not.
        UsageError: no samples; the float model itself gives NaN or infinity; labels do not fit; the metric fails.
    """
    check_outputs(reference, measured)
    rows = []
    for i, (expected, got) in enumerate(zip(reference, measured, strict=True)):
        head = heads[i] if heads else None
        reading = read_output(expected, head, labelled=i == 0 and labels is not None and metric is None)
        rows.append(score_output(head.name if head else f"output {i}", expected, got, reading))
        if i == 0:
            tied = None if reading.kind == "numbers" else tied_percent(got, reading.axis)
    float_score, score, drop = _scores(reference, measured, labels, metric, seed, seconds)
    return Accuracy(
        metric=metric.name if metric else AGREEMENT if labels is None else TOP_1,
        unit=metric.unit if metric else "%",
        higher_is_better=metric.higher_is_better if metric else True,
        samples=len(reference[0]),
        float_score=float_score,
        score=score,
        drop=drop,
        agreement=rows[0].agreement,
        sqnr_db=min((row.sqnr_db for row in rows if row.sqnr_db is not None), default=None),
        tied_percent=tied,
        saturated_percent=_saturated(reference, measured, limits),
        outputs=rows,
    )


def _scores(
    reference: Sequence[Array],
    measured: Sequence[Array],
    labels: Array | None,
    metric: Metric | None,
    seed: int,
    seconds: float,
) -> tuple[float | None, float | None, Interval | None]:
    """The scores of the float model and of the artefact, and the drop between them; None where nothing gives one."""
    n = len(reference[0])
    if metric is not None:
        if labels is not None and len(labels) != n:
            raise UsageError(f"{len(labels)} labels for {n} samples")
        return _judge(metric, reference, measured, labels, seed, seconds)
    if labels is None:
        return None, None, None
    wanted = check_labels(labels, reference[0].shape, reference[0].dtype)
    before, after = (answers(o[0]).reshape(n) == wanted for o in (reference, measured))
    return 100 * float(before.mean()), 100 * float(after.mean()), paired_drop(before, after)


def quick_drop(
    reference: Sequence[Array],
    measured: Sequence[Array],
    labels: Array | None,
    metric: Metric | None,
    heads: Sequence[Head] = (),
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
    reading = read_output(reference[0], heads[0] if heads else None)
    if reading.kind == "numbers":
        return None
    return 100 - agreement(reference[0], measured[0], reading.axis).value


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
        whole = bool(np.all(wanted == labels.reshape(n)) and np.all((wanted < 0) == (labels.reshape(n) < 0)))
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
    before, after = (list(metric.prepared(per_sample(outputs), labels)) for outputs in (reference, measured))
    float_score = metric.score_prepared(before, labels)
    if float_score == metric.nothing:
        raise UsageError(
            f"the float model itself gets nothing right: its {metric.name} is {metric.nothing:g}",
            where="--eval",
            remedy="check the labels, the preprocessing, and how the metric reads the outputs",
        )
    if len(before) % metric.group:
        raise UsageError(
            f"{metric.name} judges {metric.group} samples together, and there are {len(before)}", where="--eval"
        )
    sign = 1.0 if metric.higher_is_better else -1.0

    def drop(groups: NDArray[np.intp]) -> float:
        indices = in_groups(groups, metric.group)
        chosen = None if labels is None else labels[indices]
        gap = metric.score_prepared(choose(before, indices), chosen) - metric.score_prepared(
            choose(after, indices), chosen
        )
        return sign * gap + 0.0  # + 0.0 turns -0.0 into 0.0

    interval = paired_bootstrap(drop, len(before) // metric.group, seed=seed, seconds=seconds)
    return float_score, metric.score_prepared(after, labels), interval


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
        if np.issubdtype(expected.dtype, np.floating):
            _check_finite(i, expected, got)


def _check_finite(output: int, expected: Array, got: Array) -> None:
    """Minus infinity is how networks mask values; a sample that is all masked says nothing, and any other infinity is
    an overflow."""
    where = f"output {output}"
    bad = _first(np.isnan(expected) | np.isposinf(expected))
    if bad is None and np.isneginf(expected).any():
        masked = np.isneginf(expected.reshape(len(expected), -1)).all(axis=1)
        bad = int(masked.argmax()) if masked.any() else None
    if bad is not None:
        raise UsageError(
            f"the float model itself gives NaN or infinity for sample {bad}",
            where=where,
            remedy="check the model and the preprocessing of the evaluation data",
        )
    bad = _first(np.isnan(got) | np.isposinf(got) | (np.isneginf(got) & (expected > -MASK)))
    if bad is None:
        return
    raise DeviceError(
        f"the artefact gives NaN or infinity for sample {bad}, where the float model does not",
        where=where,
        remedy="look at the per-layer table for float16 layers and scales near zero; try another runtime",
    )


def _first(wrong: NDArray[np.bool_]) -> int | None:
    """The first sample that has something wrong in it, [N, ...]."""
    found = wrong.reshape(len(wrong), -1).any(axis=1)
    return int(found.argmax()) if found.any() else None


def tied_percent(measured: Array, axis: int | None = None) -> float | None:
    """Percent of samples whose maximum is shared, for dense outputs, of positions; None where there are no answers.

    Args:
        measured: [N, ...].
        axis: of the classes, if not the usual one.
    """
    axis = class_axis(measured) if axis is None else axis
    if not np.issubdtype(measured.dtype, np.floating) or measured.ndim < 2 or measured.shape[axis] < 2:
        return None
    tied = 0.0
    for part in blocks(measured):
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
        for part in blocks(got):
            values = got[part].reshape(part.stop - part.start, -1)
            if not floor:
                hit[part] |= (values <= low + slack).any(axis=1)
            if not ceiling:
                hit[part] |= (values >= high - slack).any(axis=1)
    return 100 * float(hit.mean())
