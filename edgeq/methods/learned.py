"""What is learned of a layer: to which neighbour each weight is rounded, the scales, and the bias.

Weights are rounded by the straight-through estimator (Bengio et al. 2013, "Estimating or Propagating Gradients Through
Stochastic Neurons for Conditional Computation"), and stay within a step of where they were: that is what keeps a few
hundred samples from being learned by heart. Scales are learned with them (Esser et al. 2020, "Learned Step Size
Quantization", equation 3).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edgeq.methods.method import Wanted
from edgeq.methods.scales import smallest_scales
from edgeq.numerics.weights import QuantizedWeight, rows

RATE = 0.16
"""Of learning, in steps of a weight's integers. This and the other rates are over how many integers there are: where
steps are small, what is gained is less than the noise of a few samples."""

SCALE_RATE = 0.0032
"""In parts of the scale."""

BIAS_RATE = 0.016
"""In units of the layer's output."""

REACH = 0.45
"""How far from an integer a weight starts at most, in steps: it stays there until something is learned."""


class Learned(NamedTuple):
    """A layer on its way.

    Attributes:
        rounded: where it started.
        near: where the weights were, in steps of their scales, as `edgeq.numerics.weights.rows` has them.
        scale, zero: ready to be broadcast against `near`; a scale may become as small as `least`.
        bias: [channels], and the `unit` that its shift is in.
        steps, growth, shift: what is learned: `near` as it is to be rounded, the logarithm of the change of the scales,
            and that of the bias.
    """

    rounded: QuantizedWeight
    near: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    least: torch.Tensor
    bias: torch.Tensor
    unit: torch.Tensor
    steps: torch.Tensor
    growth: torch.Tensor
    shift: torch.Tensor

    def integers(self) -> torch.Tensor:
        """In the shape of `near`, whole numbers with the gradient of what was rounded."""
        scheme = self.rounded.q.scheme
        steps = self.near + (self.steps - self.near).clamp(-1, 1)
        whole = steps + (steps.round() - steps).detach()
        return whole.clamp(scheme.quant_min, scheme.quant_max)

    def scales(self) -> torch.Tensor:
        return torch.maximum(self.scale * self.growth.exp(), self.least)

    def real(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight, in PyTorch's layout, and bias, as the integers stand for them."""
        weight = ((self.integers() - self.zero) * self.scales()).reshape(self.rounded.integers.shape)
        return weight, self.bias + self.shift * self.unit

    def rates(self) -> list[dict[str, Any]]:
        """What is learned, and how fast: groups of parameters for an optimizer."""
        integers = 2**self.rounded.q.scheme.width
        own = (self.steps, RATE), (self.growth, SCALE_RATE), (self.shift, BIAS_RATE)
        return [{"params": [value], "lr": rate / integers} for value, rate in own if value.requires_grad]

    def found(self) -> tuple[QuantizedWeight, NDArray[np.float32]]:
        """What was learned, to be stored."""
        with torch.no_grad():
            scale = self.scales().numpy().reshape(self.rounded.q.scale.shape)
            integers = self.integers().numpy().astype(self.rounded.integers.dtype)
            q = replace(self.rounded.q, scale=np.asarray(scale, np.float32))
            return QuantizedWeight(integers.reshape(self.rounded.integers.shape), q), self.real()[1].numpy()


def begin(wanted: Wanted, rounded: QuantizedWeight, bias: NDArray[np.float32], unit: torch.Tensor) -> Learned:
    """A layer before anything is learned of it.

    Args:
        rounded, bias: where to start.
        unit: [], the size of its outputs.
    """
    own, integers = (rows(array, wanted.scheme) for array in (wanted.weight, rounded.integers))
    scale, zero = (torch.from_numpy(np.array(part)) for part in rounded.q.shaped(own.ndim))
    smallest = np.asarray(smallest_scales(wanted), np.float32)
    there = torch.from_numpy(integers.astype(np.float32))
    # what was rounded elsewhere than to the nearest integer starts at that side of where it is
    near = torch.minimum(torch.maximum(torch.from_numpy(own) / scale + zero, there - REACH), there + REACH)
    growth = torch.zeros_like(scale)
    return Learned(
        rounded,
        near,
        scale,
        zero,
        torch.from_numpy(np.array(np.broadcast_to(smallest, rounded.q.scale.shape))).reshape(scale.shape),
        torch.from_numpy(bias),
        unit.clamp(min=1e-6),
        near.clone().requires_grad_(),
        growth if wanted.scheme.power_of_two else growth.requires_grad_(),
        torch.zeros(len(bias)).requires_grad_(),
    )
