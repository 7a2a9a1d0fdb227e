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


def moved(reference: Sequence[Array], other: Sequence[Array]) -> Array:
    """[samples], the largest difference in any output, infinite where one alone is no number."""
    found: Array = np.max([_gaps(a, b) for a, b in zip(reference, other, strict=True)], axis=0)
    return found


def differing(reference: Sequence[Array], other: Sequence[Array]) -> list[int]:
    """Samples that are answered otherwise.

    An output that holds an answer a sample, such as the scores of classes, answers otherwise when that changes. Where
    it holds many, as a segmentation does, it may change in a hundredth of them. Numbers may move by a hundredth of the
    range that the reference gives them.
    """
    found: set[int] = set()
    for one, another in zip(reference, other, strict=True):
        reading = read_output(one)
        whole = reading.kind == "classes" or (reading.axis is not None and answers(one[:1], reading.axis).shape[1] == 1)
        if whole or reading.kind == "scores":
            changed = (answers(one, reading.axis) != answers(another, reading.axis)).mean(axis=1) > LITTLE
        else:
            fine = one[np.isfinite(one)]
            changed = _gaps(one, another) > LITTLE * (np.ptp(fine) if fine.size else 0.0)
        changed |= np.isinf(_gaps(one, another))
        found |= set(np.flatnonzero(changed).tolist())
    return sorted(found)


def _gaps(one: Array, other: Array) -> Array:
    """[samples], of one output."""
    with np.errstate(invalid="ignore"):
        gap = np.abs(one.astype(np.float64) - other.astype(np.float64))
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    gap = np.where(same, 0.0, np.where(np.isnan(gap), np.inf, gap))
    found: Array = gap.reshape(len(gap), -1).max(axis=1, initial=0.0)
    return found
