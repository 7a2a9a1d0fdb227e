"""Levels that are not evenly spaced, and a scale for each channel: those with the least squared error.

Source: Han et al. 2016, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and
Huffman Coding", section 3: k-means over the weights of a layer, from evenly spaced levels on. Each weight may count as
much as it matters, as in Kim et al. 2023, "SqueezeLLM", equation 3.

A second start is where levels are as dense as the cube root of the weights' density (Panter & Dite 1951, "Quantization
Distortion in Pulse-Count Modulation with Nonuniform Spacing of Levels"); the better end of the two is taken.

Its own here: every channel has a scale, which is solved for in turn with the levels, so that one codebook does for all
channels of a layer. One for each channel would take more bytes than the places of 100 weights. Levels that are given,
such as powers of two, stay, and the scales alone are solved for. No turn makes the squared error larger, so that a
codebook is never worse than evenly spaced levels of as many bits.
"""

from __future__ import annotations

from operator import itemgetter
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

BINS = 512
"""Of the histogram whose cube root the levels begin with."""


def k_means(one: Wanted, heavy: NDArray[Any] | None = None) -> QuantizedWeight:
    """Every weight at the nearest level of the best scales and levels.

    Args:
        heavy: how much the squared error of each weight counts, in the weight's shape; all the same if None.
    """
    weight = by_scale(one, one.weight).astype(np.float64)
    counts = np.ones_like(weight) if heavy is None else by_scale(one, heavy).astype(np.float64)
    given, smallest = fixed_levels(one.scheme), smallest_scales(one).reshape(-1, 1)
    if given is None:
        starts = [_even(one, counts), _companded(one, weight, counts)]
    else:
        starts = [(given.astype(np.float64), np.abs(weight).max(axis=1, keepdims=True))]
    found = [
        _turned(weight, counts, levels, np.maximum(scale, smallest), smallest, moved=given is None)
        for levels, scale in starts
    ]
    _, levels, scale = min(found, key=itemgetter(0))
    return _placed(one, levels, scale)


def _turned(
    weight: NDArray[np.float64],
    counts: NDArray[np.float64],
    levels: NDArray[np.float64],
    scale: NDArray[np.float64],
    smallest: NDArray[np.float64],
    *,
    moved: bool,
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """The squared error, the levels and the scales after turns from a start.

    Args:
        weight, counts: [channels, weights].
        levels: ascending; they change where they are to be `moved`.
        scale, smallest: [channels, 1], the latter [1, 1] as well.
    """
    best = np.inf, levels, scale
    for _ in range(TURNS):
        places = nearest_level(weight / scale, levels)
        error = float((counts * np.square(weight - scale * levels[places])).sum())
        enough = not error < (1 - ENOUGH) * best[0]
        if error < best[0]:
            best = error, levels, scale
        if enough:
            break
        if moved:
            levels = _ratio(places, counts * scale * weight, counts * np.square(scale), levels)
        taken = levels[places]
        over, under = (counts * weight * taken).sum(1), (counts * np.square(taken)).sum(1)
        solved = np.divide(over, under, out=scale[:, 0].copy(), where=(over > 0) & (under > 0))
        scale = np.maximum(solved[:, None], smallest)
    return best


def _even(one: Wanted, counts: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The best evenly spaced levels, and scales [channels, 1]."""
    even = Scheme(f"int{one.scheme.width}", "symmetric", "channel")  # type: ignore[arg-type]
    spread = np.moveaxis(counts.reshape(np.moveaxis(one.weight, one.axis, 0).shape), 0, one.axis)
    q = least_costly(one._replace(scheme=even), lambda error: np.square(error) * spread)
    return np.arange(even.quant_min, even.quant_max + 1.0), q.scale.astype(np.float64)[:, None]


def _companded(
    one: Wanted, weight: NDArray[np.float64], counts: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Levels as dense as the cube root of the density of weights, which is the best for many levels; and scales
    [channels, 1] for which all channels are as large."""
    size = np.sqrt((counts * np.square(weight)).sum(1, keepdims=True) / np.maximum(counts.sum(1, keepdims=True), 1e-30))
    scale = np.where(size > 0, size, 1.0)
    density, ends = np.histogram(weight / scale, BINS, weights=counts * np.square(scale))
    below = np.cumsum(np.cbrt(density))
    count = 2**one.scheme.width
    at = np.searchsorted(below, (np.arange(count) + 0.5) / count * below[-1])
    return (ends[1:] + ends[:-1])[at] / 2, scale


def _ratio(
    places: NDArray[np.uint8], over: NDArray[np.float64], under: NDArray[np.float64], empty: NDArray[np.float64]
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
    return QuantizedWeight(places, q, kept)
