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
"""Draws that may miss the limit. Plans are not drawn but chosen, for what is predicted of them, and miss it more often:
where one draw in sixteen may, one plan in three or four does."""

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
    the limit.

    On a few hundred samples, drops of the same damage vary by half a point: a plan whose expected drop is the limit
    holds it by luck, here and on other samples.

    Args:
        outputs: the float model's, [N, ...] each.
        drop: from outputs to the drop of the metric against the float model's, in the limit's unit.
        limit: the most that may be lost.
        errors: of artefacts, each in `relative` ones of all outputs.
        slow: ask for the drop as rarely as will do, in a single draw.

    Returns:
        Squared movement over the outputs' own power, summed over outputs, between 1e-7 and 1.
    """
    draws = 1 if slow else min(DRAWS, max(4, NUMBERS // max(1, sum(o.size for o in outputs))))
    known = [one for some in errors if (one := _of_damage_one(some)) is not None]
    scales = [_scales(o).astype(np.float32) if np.issubdtype(o.dtype, np.floating) else None for o in outputs]

    draw = partial(_drawn, outputs, known, _powers(known))
    with ThreadPoolExecutor(usable_cores()) as pool:  # NumPy leaves the interpreter free
        noises = list(pool.map(draw, np.random.SeedSequence(seed).spawn(draws)))

        def within(damage: float) -> bool:
            size = np.float32(np.sqrt(damage))
            missed: list[Sequence[Array]] = []

            def put_on(noise: Sequence[Array]) -> None:
                if len(missed) > draws * MISSED:  # whatever the others do
                    return
                moved = [o if s is None else o + n * (s * size) for o, n, s in zip(outputs, noise, scales, strict=True)]
                if drop(moved) > limit:
                    missed.append(noise)

            list(pool.map(put_on, noises))
            return len(missed) <= draws * MISSED

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


def _drawn(
    outputs: Sequence[Array], known: Sequence[Sequence[Array]], powers: Array, seed: np.random.SeedSequence
) -> list[Array]:
    """Errors of damage 1 in the unit of `relative`: white, and a random mixture of known ones of the same power.

    Args:
        powers: of the known ones, from `_powers`.
    """
    rng = np.random.default_rng(seed)
    found = [rng.standard_normal(o.shape, np.float32) for o in outputs]
    shares = np.abs(rng.standard_normal(len(known)))
    mixed = float(shares @ powers @ shares)
    half = 0.5 if mixed > SMALLEST else 1.0  # there are none, or they cancel out
    floats = sum(np.issubdtype(o.dtype, np.floating) for o in outputs)
    for noise in found:  # the damage of several outputs is the sum of theirs
        noise *= np.float32(np.sqrt(half / max(1, floats)))
    if half < 1:
        for share, errors in zip(shares, known, strict=True):
            for noise, of_output in zip(found, errors, strict=True):
                if of_output.size:
                    noise += of_output * np.float32(share * np.sqrt(half / mixed))
    return found


def _powers(known: Sequence[Sequence[Array]]) -> Array:
    """By pair of errors, the mean of their product, summed over outputs: what tells the damage of every mixture."""

    def product(one: Sequence[Array], other: Sequence[Array]) -> float:
        pairs = [(a.ravel(), b.ravel()) for a, b in zip(one, other, strict=True) if a.size]
        return float(sum(np.einsum("i,i->", a, b, dtype=np.float64) / a.size for a, b in pairs))

    return np.array([[product(one, other) for other in known] for one in known]).reshape(len(known), len(known))


def _of_damage_one(errors: Sequence[Array]) -> list[Array] | None:
    """Relative errors scaled to a damage of 1; None where theirs is next to 0 or too large for that."""
    wide = [e.astype(np.float32) for e in errors]
    damage = float(sum(np.square(e, dtype=np.float64).mean() for e in wide if e.size))
    return [e / np.float32(np.sqrt(damage)) for e in wide] if SMALLEST <= damage <= LINEAR else None


def _scales(output: Array) -> NDArray[np.float64]:
    """The root mean square of each sample, [N, 1, ...]."""
    power = np.square(output.reshape(len(output), -1), dtype=np.float64).mean(1)
    scales: NDArray[np.float64] = np.sqrt(power).clip(min=1e-12).reshape(-1, *[1] * (output.ndim - 1))
    return scales
