"""Levels that are not evenly spaced, and a scale for each channel: those with the least squared error.

Source: Han et al. 2016, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and
Huffman Coding", section 3: k-means over the weights of a layer, from evenly spaced levels on. Each weight may count as
much as it matters, as in Kim et al. 2023, "SqueezeLLM", equation 3.

Its own here: every channel has a scale, which is solved for in turn with the levels, so that one codebook does for all
channels of a layer. One for each channel would take more bytes than the places of 100 weights. Levels that are given,
such as powers of two, stay, and the scales alone are solved for. No turn makes the squared error larger, so that a
codebook is never worse than evenly spaced levels of as many bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.methods.method import Wanted
from edgeq.methods.scales import by_scale, least_costly, smallest_scales
from edgeq.numerics import QParams, Scheme
from edgeq.numerics.levels import fixed_levels, nearest_level
from edgeq.numerics.weights import QuantizedWeight

TURNS = 50
ENOUGH = 1e-3
"""In parts of the error: a turn that gains less is the last."""


def k_means(one: Wanted, heavy: NDArray[Any] | None = None) -> QuantizedWeight:
    """Every weight at the nearest level of the best scales and levels.

    Args:
        heavy: how much the squared error of each weight counts, in the weight's shape; all the same if None.
    """
    weight = by_scale(one, one.weight).astype(np.float64)
    counts = np.ones_like(weight) if heavy is None else by_scale(one, heavy).astype(np.float64)
    levels, scale = _start(one, counts)
    moved = fixed_levels(one.scheme) is None
    least = np.inf
    for _ in range(TURNS):
        places = nearest_level(weight / scale, levels)
        error = (counts * np.square(weight - scale * levels[places])).sum()
        if not error < (1 - ENOUGH) * least:
            break
        least = error
        if moved:
            levels = _ratio(places, counts * scale * weight, counts * np.square(scale), levels)
        found = levels[places]
        over, under = (counts * weight * found).sum(1), (counts * np.square(found)).sum(1)
        better = np.divide(over, under, out=scale[:, 0].copy(), where=(over > 0) & (under > 0))[:, None]
        scale = np.maximum(better, smallest_scales(one).reshape(-1, 1))
    return _placed(one, levels, scale)


def _start(one: Wanted, counts: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Levels, and scales [channels, 1]: the given ones up to the largest weight, or the best that are evenly spaced."""
    given = fixed_levels(one.scheme)
    if given is not None:
        largest = np.abs(by_scale(one, one.weight)).max(axis=1, keepdims=True)
        return given.astype(np.float64), np.maximum(largest, smallest_scales(one).reshape(-1, 1)).astype(np.float64)
    even = Scheme(f"int{one.scheme.width}", "symmetric", "channel")  # type: ignore[arg-type]
    spread = np.moveaxis(counts.reshape(np.moveaxis(one.weight, one.axis, 0).shape), 0, one.axis)
    q = least_costly(one._replace(scheme=even), lambda error: np.square(error) * spread)
    return np.arange(even.quant_min, even.quant_max + 1.0), q.scale.astype(np.float64)[:, None]


def _ratio(
    places: NDArray[np.intp], over: NDArray[np.float64], under: NDArray[np.float64], empty: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Of every level, the sum of `over` where it is taken by that of `under`; what it was where none takes it."""
    top, bottom = (np.bincount(places.reshape(-1), part.reshape(-1), len(empty)) for part in (over, under))
    found: NDArray[np.float64] = np.divide(top, bottom, out=empty.copy(), where=bottom > 0)
    return found


def _placed(one: Wanted, levels: NDArray[np.float64], scale: NDArray[np.float64]) -> QuantizedWeight:
    """Rounds to the levels and scales as they are stored."""
    q = QParams(one.scheme, scale[:, 0].astype(np.float32), np.zeros(len(scale), np.int32), one.axis)
    kept = levels.astype(np.float32)
    places = nearest_level(one.weight / q.shaped(one.weight.ndim)[0], kept)
    return QuantizedWeight(places.astype(np.uint8), q, kept)
