"""Binary weights: -1 or 1 times a scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeq.methods.method import Change, Seen, Wanted
from edgeq.methods.scales import by_scale, scales, smallest_scales
from edgeq.model.model import Model
from edgeq.numerics.quantize import QParams
from edgeq.numerics.weights import QuantizedWeight


def binary_connect(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    """Signs, all of a layer times the mean size of its weights, stored in 2 bits.

    Source: Courbariaux et al. 2015, "BinaryConnect: Training Deep Neural Networks with binary weights during
    propagations", arXiv 1511.00363, equation 1. It has no scale, since batch norms come behind its layers; there are
    none left here, so that a layer keeps the size that it has.
    """
    return Change({one.layer: signs(one) for one in wanted})


def xnor(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    """Signs, those of a channel times the mean size of its weights, which is the best scale for them, stored in 2 bits.

    Source: Rastegari et al. 2016, "XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks", arXiv
    1603.05279, equations 5 and 6.
    """
    return Change({one.layer: scaled_signs(one) for one in wanted})


def signs(one: Wanted) -> QuantizedWeight:
    """Of `binary_connect`."""
    mean = np.abs(one.weight, dtype=np.float64).mean()
    return _signed(one, np.full(len(by_scale(one, one.weight)), mean))


def scaled_signs(one: Wanted) -> QuantizedWeight:
    """Of `xnor`."""
    return _signed(one, np.abs(by_scale(one, one.weight), dtype=np.float64).mean(axis=1))


def _signed(one: Wanted, size: NDArray[np.float64]) -> QuantizedWeight:
    q = scales(one)
    scale = np.maximum(size, smallest_scales(one)).astype(np.float32).reshape(q.scale.shape)
    integers = np.where(one.weight < 0, -1, 1).astype(np.int8)
    return QuantizedWeight(integers, QParams(q.scheme, scale, q.zero_point, q.axis))
