"""What an output is - classes, scores of classes, or plain numbers - and how like the float model's it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeq.evaluation.interval import share
from edgeq.limits import LEAST_AGREEMENT, LEAST_SQNR
from edgeq.model.heads import Head
from edgeq.numerics import sqnr_db
from edgeq.records.schema import Interval, Output, OutputKind

Array = NDArray[Any]

TIED_SQNR = 10.0
"""dB, over the spread of the values at a position: above it, answers that change were close to a tie."""

NOTHING, SMALL_ERROR = 1e-6, 1e-2
"""Root mean squares: of an output that says nothing, and of an error that does not matter beside it."""

MASK, _GAP = 1e4, 1e3
"""A mask is of this size at least, and so many times larger than the largest other value."""

_BLOCK = 1 << 22
"""Elements looked at together, so that large outputs are never copied whole."""


class Reading(NamedTuple):
    """What an output is taken for.

    Attributes:
        axis: of the classes in [N, ...]; None where each entry is an answer, or none is.
        because: what told so.
    """

    kind: OutputKind
    axis: int | None
    because: str


def read_output(values: Array, head: Head | None = None, *, labelled: bool = False) -> Reading:
    """What the float model's values of one output are.

    Args:
        values: [N, ...].
        head: what the graph tells; without it, the usual places of classes count as a layer's channels.
        labelled: class indices were given for it.
    """
    if not np.issubdtype(values.dtype, np.floating):
        return Reading("classes", None, "it holds integers or truth values")
    if labelled:
        return Reading("scores", 1, "labels are given for it")
    for axis in dict.fromkeys((class_axis(values), 1, values.ndim - 1)):
        if 0 < axis < values.ndim and values.shape[axis] > 1 and (because := _sum_to_one(values, axis)):
            return Reading("scores", axis, because)
    found = class_axis(values) if head is None else None if head.axis is None else values.ndim + head.axis
    if found is not None and 0 < found < values.ndim and values.shape[found] > 1:
        return Reading("scores or numbers", found, "it holds a layer's channels as they are")
    return Reading("numbers", None, "nothing tells that its largest value is an answer")


def score_output(name: str, reference: Array, measured: Array, reading: Reading) -> Output:
    """How like the float model's values of one output the artefact's are.

    Args:
        reference, measured: [N, ...].
    """
    same = None if reading.kind == "numbers" else agreement(reference, measured, reading.axis)
    db = None if reading.kind == "classes" else likeness_db(reference, measured)
    return Output(
        name=name,
        kind=reading.kind,
        kind_because=reading.because,
        shape=list(reference.shape[1:]),
        agreement=same,
        sqnr_db=db,
        **_judged(reference, measured, reading, same, db),
    )


def class_axis(output: Array) -> int:
    """The usual axis of the classes: [N, C], [N, T, C], [N, C, H, W]."""
    return output.ndim - 1 if output.ndim == 3 and output.shape[2] != 1 else 1


def answers(output: Array, axis: int | None = None) -> Array:
    """[N, positions], the answer at each position: the lowest index of the largest value, or an integer itself.

    Args:
        axis: of the classes, if not the usual one.
    """
    if np.issubdtype(output.dtype, np.floating):
        output = output.argmax(axis=class_axis(output) if axis is None else axis)
    return output.reshape(len(output), -1)


def agreement(reference: Array, measured: Array, axis: int | None = None) -> Interval:
    """Percent of answers that are the same, averaged over the positions of a sample, then over samples."""
    same = sum(
        float(
            (answers(reference[part], axis) == answers(measured[part].astype(reference.dtype), axis))
            .mean(axis=1, dtype=np.float64)
            .sum()
        )
        for part in blocks(reference)
    )
    n = len(reference)
    positions = answers(reference[:1], axis).shape[1]
    method = "Wilson score interval"
    if positions > 1:
        # Positions of one sample are not independent. A mean of values within 0..1 varies at most as much as a share
        # with the same mean does, so that counting samples alone is safe.
        method = f"share of {positions} positions a sample; Wilson score interval over samples, on the safe side"
    return share(min(same, float(n)), n, method)


def likeness_db(reference: Array, measured: Array) -> float:
    """SQNR in dB. Masked values (minus infinity, or far beyond all others) that are masked in both are left out; what
    is masked in one alone is an error of the size of the mask, or of thirty times the largest other value."""
    bound = _mask_bound(reference)
    if bound is None:
        return sqnr_db(reference, measured)
    both = (np.abs(reference) >= bound) & (np.abs(measured) >= bound) & (np.sign(reference) == np.sign(measured))
    return sqnr_db(*(np.where(both, 0, values.clip(-bound, bound)) for values in (reference, measured)))


def blocks(values: Array) -> Iterator[slice]:
    """Slices of samples with at most about `_BLOCK` elements."""
    n = len(values)
    length = max(1, _BLOCK * n // max(1, values.size))
    for start in range(0, n, length):
        yield slice(start, min(n, start + length))


def _judged(
    reference: Array, measured: Array, reading: Reading, same: Interval | None, db: float | None
) -> dict[str, Any]:
    """What an output is judged by, and why it cannot be recognized, if it cannot."""
    if same is not None:
        fewer = f"{same.value:.1f} % of the answers are the same" if same.value < LEAST_AGREEMENT else ""
        tied = reading.axis is not None and reading.kind == "scores or numbers"
        tied = tied and (not fewer or _spread_db(reference, measured, reading.axis or 0) >= TIED_SQNR)
        if not tied:
            return {"judged_by": "agreement", "least": LEAST_AGREEMENT, "unrecognizable": fewer}
    assert db is not None
    lost = db < LEAST_SQNR and not (_rms(reference) < NOTHING and _rms(reference, measured) < SMALL_ERROR)
    return {"judged_by": "sqnr", "least": LEAST_SQNR, "unrecognizable": f"an SQNR of {db:.1f} dB" if lost else ""}


def _rms(reference: Array, measured: Array | None = None) -> float:
    """Of values, or of their errors."""
    total = 0.0
    for part in blocks(reference):
        values = reference[part].astype(np.float64)
        total += float(np.square(values if measured is None else values - measured[part]).sum())
    return float(np.sqrt(total / max(1, reference.size)))


def _spread_db(reference: Array, measured: Array, axis: int) -> float:
    """SQNR without what all classes of a position have in common, which decides no answer."""
    bound = _mask_bound(reference) or np.inf
    inside = np.abs(reference) < bound
    count = np.maximum(1, inside.sum(axis=axis, keepdims=True))
    wide = [np.where(inside, values, 0).astype(np.float64) for values in (reference, measured)]
    return sqnr_db(*(np.where(inside, w - w.sum(axis=axis, keepdims=True) / count, 0) for w in wide))


def _sum_to_one(values: Array, axis: int) -> str:
    """Why values are probabilities along an axis, or their logarithms; empty if they are not."""
    shares = logarithms = True
    for part in blocks(values):
        some = values[part].astype(np.float64)
        shares = shares and _are_shares(some, axis)
        logarithms = logarithms and float(some.max()) <= 1e-3 and _are_shares(np.exp(some), axis)
        if not (shares or logarithms):
            return ""
    return "its values sum to one" if shares else "the exponentials of its values sum to one"


def _are_shares(values: Array, axis: int) -> bool:
    return bool(values.min() >= -1e-6) and bool((np.abs(values.sum(axis=axis) - 1) < 1e-3).all())


def _mask_bound(reference: Array) -> float | None:
    """What masked values lie beyond; None where there are none."""
    top, endless = 0.0, False
    for part in blocks(reference):
        sizes = np.abs(reference[part])
        fine = np.isfinite(sizes)
        endless |= not fine.all()
        top = max(top, float(sizes.max(initial=0.0, where=fine)))
    if top < MASK:
        return 30 * max(top, 1e-6) if endless else None
    rest = max(
        float(sizes.max(initial=0.0, where=sizes < top / 2))
        for sizes in (np.abs(reference[part]) for part in blocks(reference))
    )
    if 0 < rest < top / _GAP:
        return 30 * rest
    return 30 * top if endless else None
