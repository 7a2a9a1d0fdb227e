"""Ternary weights: -1, 0 or 1 times a scale.

Source: Li & Liu 2016, "Ternary Weight Networks", arXiv 1605.04711, equations 3 to 6: weights up to the threshold
0.7 E|w| become 0, and the scale is the mean size of the others. One scale for each channel here, as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeq.methods.method import Change, Seen, Wanted
from edgeq.methods.scales import by_scale, scales, smallest_scales
from edgeq.model.model import Model
from edgeq.numerics.quantize import QParams
from edgeq.numerics.weights import QuantizedWeight, rows

THRESHOLD = 0.7
"""In parts of the mean size of the weights: the best for those between uniformly and normally distributed ones."""


def twn(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    """Rounds to integers of 2 bits, of which it takes three."""
    return Change({one.layer: ternary(one) for one in wanted})


def ternary(one: Wanted) -> QuantizedWeight:
    """Of `twn`."""
    size = np.abs(by_scale(one, one.weight).astype(np.float64))
    threshold = THRESHOLD * size.mean(axis=1)
    large = size > threshold[:, None]
    mean = (size * large).sum(axis=1) / np.maximum(large.sum(axis=1), 1)
    q = scales(one)
    scale = np.maximum(mean, smallest_scales(one)).astype(np.float32).reshape(q.scale.shape)
    shared = rows(one.weight, one.scheme)
    limit = QParams(q.scheme, threshold.astype(np.float32).reshape(q.scale.shape), q.zero_point, q.axis)
    kept = np.abs(shared) > limit.shaped(shared.ndim)[0]
    integers = np.where(kept, np.sign(shared), 0).astype(np.int8)
    return QuantizedWeight(integers.reshape(one.weight.shape), QParams(q.scheme, scale, q.zero_point, q.axis))
