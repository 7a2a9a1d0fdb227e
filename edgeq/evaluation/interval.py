"""Two-sided 95 % intervals: a share, a paired difference of shares, and a paired bootstrap of any score."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgeq.records.schema import Interval

Z = 1.959963984540054
"""The 97.5 % point of the standard normal distribution."""

RESAMPLES = 1000
FEWEST_FOR_PERCENTILES = 200
"""Below this, the 2.5 % point rests on fewer than five resamples: use their spread instead."""
FEWEST = 10
"""Below this, the spread itself is too uncertain to give an interval."""


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Score interval of a share, both ends in 0..1.

    Source: Wilson 1927; recommended over Wald and Clopper-Pearson by Brown, Cai and DasGupta 2001,
    "Interval Estimation for a Binomial Proportion", equation 4.

    Args:
        successes: how many of `n`; may be fractional (a mean of per-sample shares times `n`).
        n: trials, at least 1.
    """
    share = successes / n
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    # At the ends the formula is exact but floating point is not.
    low = 0.0 if successes <= 0 else max(0.0, centre - half)
    high = 1.0 if successes >= n else min(1.0, centre + half)
    return low, high


def tango(lost: int, won: int, n: int) -> tuple[float, float]:
    """Score interval of (lost - won) / n, where the same `n` samples were judged twice. Ends in -1..1.

    Unlike the Wald interval it keeps its coverage for few samples and few disagreements, and does not shrink to a
    point when there are none.

    Source: Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17, section 4. Its statistic (equation 8) uses the restricted
    maximum likelihood estimate of the share of won samples, the larger root of A q^2 + B q + C = 0.

    Args:
        lost: samples right before and wrong after.
        won: samples wrong before and right after.
        n: all samples, at least 1.
    """
    from scipy.optimize import brentq  # scipy takes a second to import, and most commands need no interval

    observed = (lost - won) / n

    def statistic(difference: float) -> float:
        a = 2.0 * n
        b = -lost - won + (2 * n - lost + won) * difference
        c = -won * difference * (1 - difference)
        q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        variance = n * (2 * q + difference * (1 - difference))
        if variance <= 0:
            return math.copysign(math.inf, observed - difference) if observed != difference else 0.0
        return (lost - won - n * difference) / math.sqrt(variance)

    def end(target: float, outer: float) -> float:
        # The statistic falls from +inf at -1 to -inf at +1; an extreme observation is its own limit.
        if observed == outer:
            return outer
        # Finite stand-ins, because the root finder interpolates.
        shape = lambda d: max(-1e9, min(1e9, statistic(d))) - target  # noqa: E731
        inner, edge = observed, outer * (1 - 1e-12)
        return float(brentq(shape, min(inner, edge), max(inner, edge), xtol=1e-12))

    return end(Z, -1.0), end(-Z, 1.0)


def share(successes: float, n: int, method: str) -> Interval:
    """A share of `n` samples in percent, with its Wilson interval."""
    low, high = wilson(successes, n)
    return Interval(value=100 * successes / n, low=100 * low, high=100 * high, method=method)


def paired_drop(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Interval:
    """How much smaller the share of right answers became, in percentage points.

    Args:
        before: [N] which samples the float model has right.
        after: [N] which samples the artefact has right.
    """
    from scipy.special import bdtr

    n = int(before.size)
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    low, high = tango(lost, won, n)
    p_value = min(1.0, 2.0 * float(bdtr(min(lost, won), lost + won, 0.5)))
    return Interval(
        value=100 * (lost - won) / n,
        low=100 * low,
        high=100 * high,
        method=f"Tango 1998 paired score interval; {lost} samples lost, {won} won; McNemar exact p = {p_value:.3g}",
    )


def paired_bootstrap(
    drop: Callable[[NDArray[np.intp]], float], n: int, *, seed: int = 0, seconds: float = 30.0
) -> Interval:
    """The drop of any score, with an interval from resampling the samples with replacement.

    Both models are judged on the same resample, so that what the samples have in common cancels out.
    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13 (percentile interval) and
    chapter 6 (standard error, for scores too costly for many resamples).

    Args:
        drop: from indices into the samples to the drop of the score on them. What it raises on all the samples
            passes through; on a resample (a class may be missing there) that resample is left out and counted.
        n: number of samples.
        seed: of the resampling.
        seconds: no further resample is begun after this long, but at least `FEWEST` are made.
    """
    value = drop(np.arange(n))
    rng = np.random.default_rng(seed)
    drops: list[float] = []
    failed = 0
    deadline = time.monotonic() + seconds
    for made in range(RESAMPLES):
        if made >= FEWEST and time.monotonic() > deadline:
            break
        try:
            drops.append(drop(rng.integers(0, n, n)))
        except Exception:
            failed += 1
    left_out = f", {failed} left out because the metric failed on them" if failed else ""
    if n < 2 or len(drops) < FEWEST:
        why = "one sample" if n < 2 else f"{len(drops)} usable resamples{left_out}"
        return Interval(value=value, low=value, high=value, method=f"no interval from {why}", known=False)
    if len(drops) >= FEWEST_FOR_PERCENTILES:
        low, high = (float(v) for v in np.percentile(drops, [2.5, 97.5]))
        method = f"paired bootstrap, percentiles of {len(drops)} resamples{left_out}"
    else:
        from scipy.special import stdtrit

        half = float(stdtrit(len(drops) - 1, 0.975) * np.std(drops, ddof=1))
        low, high = value - half, value + half
        method = f"paired bootstrap, standard error from {len(drops)} resamples{left_out} (the metric is slow)"
    # A skewed score can leave the estimate outside its percentile interval: widen rather than contradict it.
    return Interval(value=value, low=min(low, value), high=max(high, value), method=method)
