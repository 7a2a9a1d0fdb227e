"""HQQ: scales with which most weights are near an integer, whatever the few outliers are. It needs no data.

Source: Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models",
https://mobiusml.github.io/hqq_blog. It minimizes sum |w - s (q - z)|^p with p < 1 by taking turns: the outliers of the
error are split off by a generalized soft threshold, then a parameter fits the rest in least squares.

Its own here: they solve for a real zero point, z = mean(q - (w - outliers) / s), and leave the scale. Here zero points
are whole, and no mean of errors under half a step moves one, so it is the scale that is solved for,
s = <w - outliers, q - z> / |q - z|^2. Errors are taken in steps of the scale that it begins with, since the threshold
has a size. The best of all turns is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.methods.method import Change, Seen, Wanted
from edgeq.methods.nearest import quantize_weight
from edgeq.methods.scales import by_scale, rounded, smallest_scales
from edgeq.model.model import Model
from edgeq.numerics import Scheme
from edgeq.numerics.quantize import storable
from edgeq.numerics.weights import QuantizedWeight

POWER = 0.7
BETA, GROWTH = 10.0, 1.01
"""How much the error without outliers weighs, and by what that grows each turn."""
TURNS = 20


def hqq(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    """Solves for the scales, and rounds to nearest."""
    return Change({one.layer: half_quadratic(one) for one in wanted})


def half_quadratic(one: Wanted) -> QuantizedWeight:
    """One layer. Begins with the scales and zero points of `nearest`."""
    q = quantize_weight(one).q
    scale, zero, smallest = (a.reshape(-1, 1).astype(np.float64) for a in (q.scale, q.zero_point, smallest_scales(one)))
    found = solved(by_scale(one, one.weight).astype(np.float64), scale, zero, one.scheme, smallest)
    stored = storable(found.reshape(q.scale.shape).astype(np.float32), one.scheme)
    return rounded(one, replace(q, scale=stored))


def solved(
    weight: NDArray[np.float64],
    scale: NDArray[np.float64],
    zero: NDArray[np.float64],
    scheme: Scheme,
    smallest: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The scales, [scales, 1].

    Args:
        weight: [scales, weights].
        scale: [scales, 1], to begin with.
        zero: [scales, 1], the zero points.
        smallest: [scales, 1] or [1, 1], what scales must not go below.
    """
    if scheme.power_of_two:
        smallest = np.exp2(np.ceil(np.log2(smallest)))
    unit, best, least = scale, scale, np.full(scale.shape, np.inf)
    for turn in range(TURNS + 1):
        whole = np.clip(np.rint(weight / scale) + zero, scheme.quant_min, scheme.quant_max) - zero
        error = weight - scale * whole
        costs = np.power(np.abs(error), POWER).sum(axis=1, keepdims=True)
        best, least = np.where(costs < least, scale, best), np.minimum(costs, least)
        fit = weight - unit * outliers(error / unit, BETA * GROWTH**turn)
        size = np.square(whole).sum(axis=1, keepdims=True)
        scale = np.maximum((fit * whole).sum(axis=1, keepdims=True) / np.where(size > 0, size, 1), smallest)
        if scheme.power_of_two:
            scale = np.maximum(np.exp2(np.rint(np.log2(scale))), smallest)
    return best


def outliers(error: NDArray[np.float64], beta: float) -> NDArray[Any]:
    """What is split off from errors: the generalized soft threshold, sign(x) max(|x| - |x|^(p - 1) / beta, 0)."""
    size = np.abs(error)
    with np.errstate(divide="ignore"):
        return np.sign(error) * np.maximum(size - np.power(size, POWER - 1) / beta, 0)
