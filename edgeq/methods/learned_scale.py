"""What is learned of an activation: its scale. The zero point stays, so that zero is what it was.

Where a range begins at zero, as behind a ReLU, the scale is where values are clipped.

Source: Esser et al. 2020, "Learned Step Size Quantization", equation 3; Choi et al. 2018, "PACT: Parameterized Clipping
Activation for Quantized Neural Networks", for the latter.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edgeq.lowering.assign import Version
from edgeq.model.graph import Program
from edgeq.model.ops import upper_bound
from edgeq.numerics import QParams
from edgeq.quantization.quantized import Quantized

RATE = 3e-3
"""Of learning, in parts of the scale."""

REACH = 0.5
"""How far the logarithm of a scale goes at most. The integers of biases have room for that."""


class LearnedScale(NamedTuple):
    """A scale on its way.

    Attributes:
        start: where it started, [1].
        most: how far its logarithm may grow.
        growth: how far that has grown, [1].
    """

    start: torch.Tensor
    most: float
    growth: torch.Tensor

    def now(self) -> torch.Tensor:
        """[1]."""
        return self.start * self.growth.clamp(-REACH, self.most).exp()

    def found(self) -> NDArray[np.float32]:
        """What was learned, [], to be stored."""
        with torch.no_grad():
            return np.asarray(self.now().numpy()[0], np.float32)


def begin(program: Program, quantized: Quantized, fixed: Collection[Version]) -> dict[Version, LearnedScale]:
    """The scales of what a program computes and rounds, before anything is learned of them.

    Args:
        fixed: those that stay as they are.
    """
    found: dict[Version, LearnedScale] = {}
    for node in program.nodes:
        tensor = quantized.activations.get(node.name) if node.op == "call_function" else None
        if tensor is None or tensor.version in fixed or tensor.estimator == "fixed" or tensor.q.scheme.power_of_two:
            continue
        bound, most = upper_bound(node), REACH
        if bound is not None and bound > 0:
            # behind a range that went beyond it, runtimes would have to clip, and do so in float
            most = min(REACH, max(0.0, math.log(bound / max(tensor.q.high, 1e-12)) - 1e-6))
        if tensor.version in found:  # several values share it, such as one and what pads it
            most = min(most, found[tensor.version].most)
        start = torch.tensor([float(tensor.q.scale)])
        found[tensor.version] = LearnedScale(start, most, torch.zeros(1).requires_grad_())
    return found


def rounded_by(value: torch.Tensor, q: QParams, scale: torch.Tensor) -> torch.Tensor:
    """Fake-quantized with another scale, [1], whose gradient is equation 3's."""
    low, high = q.scheme.quant_min, q.scheme.quant_max
    zero = torch.tensor([float(q.zero_point)])
    found: torch.Tensor = torch._fake_quantize_learnable_per_tensor_affine(value, scale, zero, low, high, 1.0)
    return found
