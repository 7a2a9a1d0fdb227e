"""Range estimators: where to clip a tensor, given its histogram.

`choose` states the rule by which edgeq picks one for each tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgeq.calibration.histogram import Histogram
from edgeq.numerics import QParams, Scheme, qparams

Range = tuple[float, float]
Estimator = Callable[[Histogram, Scheme], Range]

CANDIDATES = 24
"""Clipping points tried by the searching estimators, evenly spread between the full range and a tenth of it."""

PERCENTILE = 99.999
SHRINKS = tuple(0.9**i for i in range(1, 25))
"""Shares of the full range that the search tries besides the estimators' answers: down to 8 %."""


def min_max(histogram: Histogram, scheme: Scheme) -> Range:
    """The true extremes: nothing is clipped."""
    return histogram.low, histogram.high


def sample_extremes(histogram: Histogram, scheme: Scheme) -> Range:
    """Minimum and maximum of each sample, averaged over all samples with equal weight.

    What only a few samples reach is clipped, by an amount that does not depend on their number or order.
    """
    return histogram.sample_low, histogram.sample_high


def percentile(histogram: Histogram, scheme: Scheme) -> Range:
    """Leaves out (100 - PERCENTILE) percent of the values, half at each end."""
    total = histogram.counts.sum()
    cumulative = np.cumsum(histogram.counts) / total
    tail = (1 - PERCENTILE / 100) / 2
    centers = histogram.centers()
    low = float(centers[min(int((cumulative <= tail).sum()), len(centers) - 1)])
    high = float(centers[min(int((cumulative < 1 - tail).sum()), len(centers) - 1)])
    return max(low, histogram.low), min(high, histogram.high)


def mse(histogram: Histogram, scheme: Scheme) -> Range:
    """The clipped range of least expected squared error over the histogram.

    Source: Banner et al. 2019, "Post-training 4-bit quantization of convolution networks", equation 1, with the
    measured histogram in place of an assumed density.
    """
    return min(_clipped(histogram), key=lambda r: expected_error(histogram, r, scheme))


def entropy(histogram: Histogram, scheme: Scheme) -> Range:
    """The clipped range whose quantized distribution is nearest in Kullback-Leibler divergence.

    Source: Migacz 2017, "8-bit inference with TensorRT": the clipped distribution P (outliers counted at its
    ends) against Q, the same counts averaged within each quantization level.
    """
    return min(_clipped(histogram), key=lambda r: _divergence(histogram, r, scheme))


ESTIMATORS: dict[str, Estimator] = {
    "min-max": min_max,
    "sample-extremes": sample_extremes,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}


def choose(
    histogram: Histogram, scheme: Scheme, *, boundary: bool, damage: Callable[[QParams], float] | None
) -> tuple[str, Range]:
    """Picks the range of one tensor; returns the name of the estimator that gave it, and the range.

    The rule: inputs and outputs of the model keep their true extremes, because a clipped output loses the
    answer where noise does not. For every other tensor each estimator proposes a range, and a search proposes
    shares of the full one; the proposal that is expected to move the model's outputs least wins.

    Args:
        damage: expected movement of the outputs for a scale and zero point (see `edgeq.calibration.impact`); None
            where no gradient reaches the tensor, which then takes the range of least squared error.
    """
    if boundary:
        return "min-max", min_max(histogram, scheme)
    if damage is None:
        return "mse", mse(histogram, scheme)
    proposals = [(name, estimate(histogram, scheme)) for name, estimate in ESTIMATORS.items()]
    proposals += [("search", _shrunk(histogram, share)) for share in SHRINKS]
    return min(proposals, key=lambda p: damage(qparams(p[1][0], p[1][1], scheme)))


def expected_error(histogram: Histogram, bounds: Range, scheme: Scheme) -> float:
    """Mean squared error of quantizing the histogram's values: step^2 / 12 inside the range, the squared
    distance to its end outside."""
    q = qparams(*bounds, scheme)
    centers = histogram.centers()
    outside = np.maximum(q.low - centers, 0) + np.maximum(centers - q.high, 0)
    step = float(q.scale)
    # the zeros of a ReLU's output are exactly representable and cost nothing
    inside = ((outside == 0) & (centers != 0)) * (step * step / 12)
    weights = histogram.counts.astype(np.float64)
    return float(((np.square(outside) + inside) * weights).sum() / weights.sum())


def _clipped(histogram: Histogram) -> list[Range]:
    return [_shrunk(histogram, share) for share in np.linspace(1.0, 0.1, CANDIDATES).tolist()]


def _shrunk(histogram: Histogram, share: float) -> Range:
    """A share of the full range; where the two tails differ, the longer one is cut first."""
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    reach = max(-low, high) * share
    return max(low, -reach), min(high, reach)


def _divergence(histogram: Histogram, bounds: Range, scheme: Scheme) -> float:
    counts, centers = histogram.counts.astype(np.float64), histogram.centers()
    q = qparams(*bounds, scheme)
    inside = (centers >= q.low) & (centers <= q.high)
    p = np.where(inside, counts, 0.0)
    where = np.flatnonzero(inside)
    if len(where) == 0:
        return float("inf")
    p[where[0]] += counts[: where[0]].sum()
    p[where[-1]] += counts[where[-1] + 1 :].sum()
    level = np.clip(np.rint(centers / float(q.scale)) + int(q.zero_point), scheme.quant_min, scheme.quant_max)
    level = (level - scheme.quant_min).astype(np.int64)
    occupied = inside & (counts > 0)
    levels = scheme.quant_max - scheme.quant_min + 1
    sums = np.bincount(level[occupied], counts[occupied], minlength=levels)
    members = np.bincount(level[occupied], minlength=levels)
    share = np.zeros_like(counts)
    share[occupied] = sums[level[occupied]] / members[level[occupied]]
    p, share = p / p.sum(), share / max(share.sum(), 1e-30)
    mask = p > 0
    return float((p[mask] * np.log(p[mask] / np.maximum(share[mask], 1e-12))).sum())
