"""Round to nearest, one scale for each output channel, or for each few weights of it.

Where there are many integers, the largest weight sets the scale. Where there are few, the scale with the least squared
error does: cutting off the largest weights then costs less than rounding all the others coarsely.

Where levels are not evenly spaced, levels and scales are those with the least squared error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeq.methods.k_means import k_means
from edgeq.methods.method import Change, Seen, Wanted
from edgeq.methods.scales import least_costly, rounded, scales
from edgeq.model.model import Model
from edgeq.numerics.weights import QuantizedWeight

FEW_BITS = 2
"""Up to so many bits, weights are cut off where that lowers their squared error. At 4 bits it helps some networks and
hurts others: every weight counts the same in that error, and the largest ones matter more than that."""


def nearest(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    """Rounds every weight by itself."""
    return Change({one.layer: quantize_weight(one) for one in wanted})


def quantize_weight(one: Wanted) -> QuantizedWeight:
    """Rounds to nearest, with absolute-maximum scales or those of least squared error."""
    if one.scheme.levels is not None:
        return k_means(one)
    return rounded(one, least_costly(one, np.square) if one.scheme.width <= FEW_BITS else scales(one))
