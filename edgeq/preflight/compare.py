"""Whether two CPUs answer the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.evaluation.outputs import answers, read_output

Array = NDArray[Any]

LITTLE = 0.01
"""Of the answers of one sample, or of the range of an output's numbers: what may differ unnoticed. A step of 8 bits is
0.004 of a range."""


def moved(reference: Sequence[Array], other: Sequence[Array], samples: int) -> Array:
    """[samples], the largest difference in any output, infinite where one alone is no number, or has another shape."""
    if len(reference) != len(other):
        return np.full(samples, np.inf)
    found: Array = np.max([_gaps(a, b, samples) for a, b in zip(reference, other, strict=True)], axis=0)
    return found


def differing(reference: Sequence[Array], other: Sequence[Array], samples: int) -> list[int]:
    """Samples that are answered otherwise.

    An output that holds an answer a sample, such as the scores of classes, answers otherwise when that changes. Where
    it holds many, as a segmentation does, it may change in a hundredth of them. Numbers may move by a hundredth of the
    range that the reference gives them.

    Args:
        reference, other: outputs, each [samples x rows, ...].
    """
    found = np.isinf(moved(reference, other, samples))
    if not found.all():
        for one, another in zip(reference, other, strict=True):
            if one.size and one.shape == another.shape:
                found |= _otherwise(one, another, samples)
    indices: list[int] = np.flatnonzero(found).tolist()
    return indices


def _otherwise(one: Array, another: Array, samples: int) -> Array:
    """[samples], of one output."""
    one, another = (_by_sample(values, samples) for values in (one, another))
    reading = read_output(one)
    whole = reading.kind == "classes" or (reading.axis is not None and answers(one[:1], reading.axis).shape[1] == 1)
    if whole or reading.kind == "scores":
        changed = (answers(one, reading.axis) != answers(another, reading.axis)).mean(axis=1) > LITTLE
    else:
        fine = one[np.isfinite(one)]
        changed = _gaps(one, another, samples) > LITTLE * (np.ptp(fine) if fine.size else 0.0)
    found: Array = changed
    return found


def _by_sample(values: Array, samples: int) -> Array:
    """[samples, ...]: a call may give several rows, or an output whose first axis is another."""
    return values if len(values) == samples else values.reshape(samples, len(values) // samples, *values.shape[1:])


def _gaps(one: Array, other: Array, samples: int) -> Array:
    """[samples], of one output."""
    if one.shape != other.shape:
        return np.full(samples, np.inf)
    with np.errstate(invalid="ignore"):
        gap = np.abs(one.astype(np.float64) - other.astype(np.float64))
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    gap = np.where(same, 0.0, np.where(np.isnan(gap), np.inf, gap))
    found: Array = gap.reshape(samples, gap.size // samples).max(axis=1, initial=0.0)
    return found
