"""How values are rounded while a network is trained, and where the ends of their ranges come from: one entry each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from edgeq.training.fake import gradient_scale, learned_clip, learned_step, scaled_gradient

Rounding = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int, int], torch.Tensor]
"""Of values, their scale and zero point, and the ends of the integers."""


class RangeRule(NamedTuple):
    """
    Attributes:
        activations, weights: how they are rounded.
        learns: of which of the two the scales are learned.
        follows: whether ranges follow the values that are seen: those of activations as a moving average.
        about: for people.
    """

    activations: Rounding
    weights: Rounding
    learns: frozenset[str]
    follows: bool
    about: str


def _fixed_activations(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, low: int, high: int) -> torch.Tensor:
    return torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero), low, high)


def _fixed_weights(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, low: int, high: int) -> torch.Tensor:
    return learned_step(x, scale.detach(), zero, low, high)


def _lsq_activations(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, low: int, high: int) -> torch.Tensor:
    # PyTorch's kernel: equation 3 in one pass
    factor = gradient_scale(x[0].numel(), high)
    found: torch.Tensor = torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero, low, high, factor)
    return found


def _lsq_weights(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, low: int, high: int) -> torch.Tensor:
    return learned_step(x, scaled_gradient(scale, gradient_scale(x.numel() // scale.numel(), high)), zero, low, high)


_NOTHING: frozenset[str] = frozenset()

RANGES: dict[str, RangeRule] = {
    "lsq": RangeRule(
        _lsq_activations, _lsq_weights, frozenset({"activations", "weights"}), False, "scales are learned (Esser 2020)"
    ),
    "pact": RangeRule(
        learned_clip,
        _fixed_weights,
        frozenset({"activations"}),
        False,
        "where activations are clipped is learned (Choi 2018)",
    ),
    "moving": RangeRule(
        _fixed_activations, _fixed_weights, _NOTHING, True, "ranges follow the values, a moving average of activations"
    ),
    "fixed": RangeRule(_fixed_activations, _fixed_weights, _NOTHING, False, "ranges stay where calibration set them"),
}
"""By the names that users give; the first is the one that is taken."""
