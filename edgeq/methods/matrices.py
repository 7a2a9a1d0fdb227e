"""A matrix alone as methods take a layer of a model, and its parts put together again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import UsageError
from edgeq.methods.method import Wanted
from edgeq.numerics import QParams, Scheme
from edgeq.numerics.weights import QuantizedWeight


def as_wanted(name: str, matrix: NDArray[np.float32], scheme: Scheme) -> Wanted:
    """A matrix as the methods take a layer, with zeros behind its rows where the last group is not full.

    Raises:
        UsageError: a value is not finite.
    """
    if not np.isfinite(matrix).all():
        raise UsageError("a weight is not finite", where=name, remedy="look at the weights' file")
    filled = np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % (scheme.group or 1))))
    return Wanted(name, filled, np.zeros(len(matrix), np.float32), scheme, 0, None)


def joined(parts: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """The rows of several, one under the other."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0].q
    scale, zero = (np.concatenate([getattr(part.q, name) for part in parts]) for name in ("scale", "zero_point"))
    return QuantizedWeight(np.concatenate([part.integers for part in parts]), QParams(first.scheme, scale, zero, 0))
