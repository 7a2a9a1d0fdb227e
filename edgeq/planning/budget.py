"""How much damage a limit on the metric allows: noise is put on the float model's outputs until the metric falls by it.

It needs no run of any model, only the metric. Real rounding errors are no white noise, so this is where a search
begins; what the artefact loses is measured on the artefact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SMALLEST, LARGEST = 1e-7, 1.0
STEPS = 8
SLOW_STEPS = 6
"""For a metric of the user's, which may take seconds: seven calls."""

DRAWS = 16
NUMBERS = 8_000_000
"""Of all draws together; large outputs have few draws, which vary less, and four at least."""


def allowed_damage(
    outputs: Sequence[Array],
    drop: Callable[[Sequence[Array]], float],
    limit: float,
    *,
    slow: bool = False,
    seed: int = 0,
) -> float:
    """The largest damage (see `edgeq.planning.sensitivity`) that three draws of noise in four keep within the limit.

    On a few hundred samples, drops of the same damage vary by half a point: a plan whose expected drop is the limit
    holds it by luck, here and on other samples.

    Args:
        outputs: the float model's, [N, ...] each.
        drop: from outputs to the drop of the metric against the float model's, in the limit's unit.
        limit: the most that may be lost.
        slow: ask for the drop as rarely as will do, in a single draw.

    Returns:
        Squared movement over the outputs' own power, between 1e-7 and 1.
    """
    rng = np.random.default_rng(seed)
    draws = 1 if slow else min(DRAWS, max(4, NUMBERS // max(1, sum(o.size for o in outputs))))
    noises = [[rng.standard_normal(o.shape, np.float32) for o in outputs] for _ in range(draws)]

    def within(damage: float) -> bool:
        misses = 0
        for noise in noises:
            misses += drop(_noisy(outputs, noise, damage)) > limit
            if misses > draws // 4:
                return False
        return True

    low, high = np.log(SMALLEST), np.log(LARGEST)
    if within(LARGEST):
        return LARGEST
    for _ in range(SLOW_STEPS if slow else STEPS):
        middle = (low + high) / 2
        if within(float(np.exp(middle))):
            low = middle
        else:
            high = middle
    return float(np.exp(low))


def _noisy(outputs: Sequence[Array], noise: Sequence[Array], damage: float) -> list[Array]:
    found: list[Array] = []
    for output, white in zip(outputs, noise, strict=True):
        if not np.issubdtype(output.dtype, np.floating):
            found.append(output)
            continue
        power = np.square(output.reshape(len(output), -1), dtype=np.float64).mean(1)
        scale = np.sqrt(damage * power).astype(np.float32).reshape(-1, *[1] * (output.ndim - 1))
        found.append(output + white * scale)
    return found
