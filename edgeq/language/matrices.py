"""The matrices of a decoder as the methods of `edgeq.methods` take layers, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import UsageError
from edgeq.language.decoder import Decoder, Weight
from edgeq.methods.method import Wanted
from edgeq.numerics import Scheme
from edgeq.numerics.quantize import QParams
from edgeq.numerics.weights import QuantizedWeight

AT_ONCE = 1 << 24
"""Numbers of a matrix that are rounded together. Its rows do not depend on one another."""


def in_file(weight: Weight, matrix: NDArray[Any]) -> NDArray[Any]:
    """A matrix in PyTorch's layout, as the file holds it."""
    return np.ascontiguousarray(matrix.T) if weight.transposed else matrix


def alone(
    decoder: Decoder, weight: Weight, scheme: Scheme, method: Callable[[Wanted], QuantizedWeight]
) -> QuantizedWeight:
    """A matrix, some of its rows after the other."""
    matrix = decoder.matrix(weight)
    step = max(1, AT_ONCE // weight.columns)
    return joined(
        [method(as_wanted(weight.name, matrix[at : at + step], scheme)) for at in range(0, weight.rows, step)]
    )


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
