"""How much damage a limit on the metric allows: errors are put on the float outputs until the metric falls by it.

Half of their power is white noise, the other half what artefacts of this model really miss, scaled: rounding is kind or
unkind to the right answers, each model's in its own way. It needs no further run of any model, only the metric. It is
where a search begins; what the artefact loses is measured on the artefact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.on_device.worker import usable_cores

Array = NDArray[Any]

_ENDS = (-6e4, 6e4)  # of float16

SMALLEST, LARGEST = 1e-7, 1.0
STEPS = 8
SLOW_STEPS = 6
"""For a metric of the user's, which may take seconds: seven calls."""

DRAWS = 16
MISSED = 1 / 16
"""Draws that may miss the limit. Plans are chosen for what is predicted of them, and miss it more often."""

NUMBERS = 8_000_000
"""Of all draws together; large outputs have few draws, which vary less, and four at least."""

LINEAR = 0.2
"""Errors of more damage saturate: scaled, they would not be those of a plan that loses less."""


def relative(found: Array, wanted: Array) -> Array:
    """The errors of one output, [N, ...] as float16, in units of its root mean square in each sample; those of integers
    are none."""
    if not np.issubdtype(wanted.dtype, np.floating):
        return np.zeros(0, np.float16)
    errors = (found.astype(np.float64) - wanted) / _scales(wanted)
    return errors.clip(*_ENDS).astype(np.float16)


def allowed_damage(
    outputs: Sequence[Array],
    drop: Callable[[Sequence[Array]], float],
    limit: float,
    *,
    errors: Sequence[Sequence[Array]] = (),
    slow: bool = False,
    seed: int = 0,
) -> float:
    """The largest damage (see `edgeq.planning.sensitivity.value`) that fifteen draws of errors in sixteen keep within
    the limit. On a few hundred samples, drops of the same damage vary by half a point: a plan whose expected drop is
    the limit would hold it by luck.

    Args:
        outputs: the float model's, [N, ...] each.
        drop: from outputs to the drop of the metric against the float model's, in the limit's unit.
        limit: the most that may be lost.
        errors: of artefacts, each in `relative` ones of all outputs.
        slow: ask for the drop as rarely as will do, in a single draw.

    Returns:
        Squared movement over the outputs' own power, summed over outputs, between 1e-7 and 1.
    """
    floats = [o for o in outputs if np.issubdtype(o.dtype, np.floating)]
    if not floats:  # errors are put on these alone
        return LARGEST
    draws = 1 if slow else min(DRAWS, max(4, NUMBERS // max(1, sum(o.size for o in outputs))))
    rows = [np.concatenate([e.ravel() * np.float32(e.size**-0.5) for e in some if e.size]) for some in errors]
    # of each, all outputs in one row whose squared length is the damage
    known = [row / np.linalg.norm(row) for row in rows if SMALLEST <= float(row @ row) <= LINEAR]
    units = [(_scales(o) * np.sqrt(o.size)).astype(np.float32) for o in floats]

    with ThreadPoolExecutor(usable_cores()) as pool:  # NumPy leaves the interpreter free
        products = np.array([[one @ other for other in known] for one in known])
        draw = partial(_drawn, [o.size for o in floats], known, products)
        noises = list(pool.map(draw, np.random.SeedSequence(seed).spawn(draws)))

        def within(damage: float) -> bool:
            def misses(noise: Sequence[Array]) -> bool:
                parts = zip(floats, noise, units, strict=True)
                moved = (o + n.reshape(o.shape) * (unit * np.float32(np.sqrt(damage))) for o, n, unit in parts)
                return drop([next(moved) if np.issubdtype(o.dtype, np.floating) else o for o in outputs]) > limit

            return sum(pool.map(misses, noises)) <= draws * MISSED

        return _largest(within, SLOW_STEPS if slow else STEPS)


def _largest(within: Callable[[float], bool], steps: int) -> float:
    """The largest damage that is within the limit, by bisection of its logarithm."""
    low, high = np.log(SMALLEST), np.log(LARGEST)
    if within(LARGEST):
        return LARGEST
    for _ in range(steps):
        middle = (low + high) / 2
        if within(float(np.exp(middle))):
            low = middle
        else:
            high = middle
    return float(np.exp(low))


def _drawn(sizes: Sequence[int], known: Sequence[Array], products: Array, seed: np.random.SeedSequence) -> list[Array]:
    """Errors of damage 1, a row for each output: white, and a random mixture of known ones of the same power.

    Args:
        known: of all outputs in one row, of length 1.
        products: of each two of them.
    """
    rng = np.random.default_rng(seed)
    white = [rng.standard_normal(size, np.float32) * np.float32((size * len(sizes)) ** -0.5) for size in sizes]
    found = np.concatenate(white)
    shares = np.abs(rng.standard_normal(len(known)))
    mixed = float(shares @ products @ shares) if known else 0.0
    if mixed > SMALLEST:  # else there are none, or they cancel out
        for share, errors in zip(shares, known, strict=True):
            found += errors * np.float32(share / np.sqrt(mixed))
        found *= np.float32(np.sqrt(0.5))
    return np.split(found, np.cumsum(sizes)[:-1])


def _scales(output: Array) -> Array:
    """The root mean square of each sample, [N, 1, ...]."""
    power = np.square(output, dtype=np.float64).mean(tuple(range(1, output.ndim)), keepdims=True)
    scales: Array = np.sqrt(power).clip(min=1e-12)
    return scales
