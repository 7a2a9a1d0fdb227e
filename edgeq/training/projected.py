"""Weights that are made of float ones anew at each step, scale and all: one entry for each method that can be trained.

Gradients pass to the float weights as if there had been no rounding (Courbariaux et al. 2015, "BinaryConnect", section
2.3), and what is learned are these.
"""

from __future__ import annotations

from collections.abc import Callable

from edgeq.methods import BINARY_CONNECT, TWN, XNOR
from edgeq.methods.binary import scaled_signs, signs
from edgeq.methods.method import Wanted
from edgeq.methods.twn import ternary
from edgeq.numerics.weights import QuantizedWeight

PROJECTED: dict[str, Callable[[Wanted], QuantizedWeight]] = {
    TWN: ternary,
    XNOR: scaled_signs,
    BINARY_CONNECT: signs,
}
"""By the names that plans have for methods. The layers of all others are rounded by a rule of `ranges.RANGES`."""
