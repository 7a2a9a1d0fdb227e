"""Fake quantization that learns: values are rounded on the way forward, and gradients pass on the way back.

`low` and `high` are the ends of the integers; scales and zero points are ready to be broadcast against the values.
"""

from __future__ import annotations

import math
from typing import Any

import torch


def straight_through(rounded: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The very values that something was rounded to, with the gradient of what it was.

    Source: Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
    Computation", section 4 (straight-through estimator).
    """
    return rounded.detach() + (x - x.detach())


def rounded_bias(bias: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """A bias, [channels], to the very integers of `edgeq.numerics.weights.quantize_bias`.

    Args:
        scale: of the accumulator: [channels], or [1].
    """
    limit = 2**31 - 1
    steps = (bias.detach().double() / scale.double()).round().clamp(-limit, limit)
    return straight_through((steps * scale.double()).float(), bias)


def learned_step(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """Fake-quantized, to the very integers of `edgeq.numerics.quantize`; the gradient of the scale is that of rounding
    itself.

    Source: Esser et al. 2020, "Learned Step Size Quantization", equations 1 to 5. Within the range the scale's gradient
    is the error of rounding, in steps; beyond it, the end of the range.
    """
    steps = x / scale
    return ((straight_through(steps.round(), steps) + zero).clamp(low, high) - zero) * scale


def gradient_scale(values: int, high: int) -> float:
    """What the gradient of a scale is multiplied by, so that it moves about as much, for its size, as weights do.

    Source: Esser et al. 2020, section 2.2.

    Args:
        values: how many numbers share the scale.
    """
    return 1 / math.sqrt(max(values, 1) * max(high, 1))


def scaled_gradient(value: torch.Tensor, factor: float) -> torch.Tensor:
    """The value as it is, with so many times its gradient."""
    return value * factor + (value * (1 - factor)).detach()


def learned_clip(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """Fake-quantized by one scale, [1], whose gradient comes from what is clipped alone: it moves the range's ends.

    Source: Choi et al. 2018, "PACT: Parameterized Clipping Activation for Quantized Neural Networks", equations 1 to 3.
    """
    found: torch.Tensor = _LearnedClip.apply(x, scale, zero, low, high)  # type: ignore[no-untyped-call]
    return found


class _LearnedClip(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, low: int, high: int
    ) -> torch.Tensor:
        ctx.save_for_backward(x, scale, zero)
        ctx.ends = low, high
        return torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero), low, high)

    @staticmethod
    def backward(ctx: Any, moved: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, scale, zero = ctx.saved_tensors
        least, most = (float((end - zero) * scale) for end in ctx.ends)
        below, above = x < least, x > most
        of_scale = sum(
            (moved * beyond).sum() * (end - zero) for beyond, end in zip((below, above), ctx.ends, strict=True)
        )
        return moved * ~(below | above), of_scale, None, None, None
