"""The matrices of a decoder as the methods of `edgeq.methods` take layers, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.language.decoder import Decoder, Weight
from edgeq.methods.matrices import as_wanted, joined
from edgeq.methods.method import Wanted
from edgeq.numerics import Scheme
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
