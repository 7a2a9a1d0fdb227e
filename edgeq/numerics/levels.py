"""Levels that are not evenly spaced: which there are, and the nearest to a number.

Sources: Han et al. 2016, "Deep Compression", section 3 (a codebook of levels that the weights of a layer share);
Miyashita et al. 2016, "Convolutional Neural Networks using Logarithmic Data Representation", section 3, and Zhou et al.
2017, "Incremental Network Quantization", equation 1 (powers of two and zero).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.scheme import Scheme


def fixed_levels(scheme: Scheme) -> NDArray[np.float32] | None:
    """float32 [levels], ascending, where the scheme itself says which they are; None where a method finds them.

    Of `pow2` the largest is 1: 15 of 4 bits, down to 1/64, and three of 2 bits. One place is left over, since zero has
    no sign.
    """
    if scheme.levels != "pow2":
        return None
    powers = np.exp2(-np.arange(2 ** (scheme.width - 1) - 1, dtype=np.float32))
    return np.concatenate([-powers, [np.float32(0)], powers[::-1]])


def count_of(scheme: Scheme) -> int:
    """How many levels a tensor of the scheme has."""
    fixed = fixed_levels(scheme)
    return 2**scheme.width if fixed is None else len(fixed)


def nearest_level(x: NDArray[Any], levels: NDArray[Any]) -> NDArray[np.uint8]:
    """The place of the level that is nearest to each number.

    Args:
        levels: ascending, at most 256.
    """
    places = np.zeros(x.shape, np.uint8)
    for middle in (levels[1:] + levels[:-1]) / 2:  # several times as fast as a search in so few
        places += x > middle
    return places
