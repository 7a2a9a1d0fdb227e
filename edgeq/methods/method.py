"""What a method is: a way from float weights to integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeq.calibration.calibration import Calibration
from edgeq.calibration.impact import Impact
from edgeq.lowering.assign import Version
from edgeq.model.model import Model
from edgeq.numerics import Scheme
from edgeq.numerics.weights import QuantizedWeight
from edgeq.progress import Progress
from edgeq.quantization.quantized import Quantized

STEPS = 100
"""Of learning, where nothing else is asked for."""

HELD_OUT = 8
"""One calibration sample of so many judges what is learned from the others."""


class Wanted(NamedTuple):
    """A layer whose weights are to become integers.

    Attributes:
        layer: the name of its group in the model.
        weight: float32, in PyTorch's layout.
        bias: float32 [channels].
        scheme: the integers, and what shares a scale.
        axis: of the output channels in `weight`.
        input_scale: [], the scale of the layer's input where the bias is stored as integers of `input_scale` times the
            weights' scales; else None.
    """

    layer: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    scheme: Scheme
    axis: int
    input_scale: NDArray[np.float32] | None


Kept = Callable[[str, Callable[[], "Change"]], "Change"]
"""A part of what a method gives, by a name of the method's: what an interrupted run has left, or else what the function
gives, which is left for the next."""


def afresh(part: str, make: Callable[[], Change]) -> Change:
    """Where nothing is kept."""
    return make()


class Seen(NamedTuple):
    """What was observed of the model on calibration data, and how much may be done.

    Attributes:
        calibration: a histogram of every tensor, and the mean of what each layer's weights meet.
        impact: how much the outputs move when a tensor does; None where that was not asked for.
        inputs: the samples, by input name, [N, ...]; empty where nothing but the above was kept of them.
        quantized: the model with what is known so far: its activations, layers whose method came before, and all others
            rounded to nearest.
        steps: of learning, for methods that learn.
        progress: hears how far a method is.
        by: other methods by their names, to begin with what they give.
        kept: for methods that take long.
    """

    calibration: Calibration
    impact: Impact | None
    inputs: Mapping[str, NDArray[Any]]
    quantized: Quantized
    steps: int
    progress: Progress
    by: Callable[[str], Method]
    kept: Kept = afresh


class Change(NamedTuple):
    """What a method makes of layers.

    Attributes:
        weights: by layer.
        biases: float32 [channels], by layer, where the method has its own; the others are corrected by what the rounded
            weights add to the layer's mean (see `edgeq.methods.bias_correction`).
        scales: float32 [], of activations that the method finds others for.
    """

    weights: Mapping[str, QuantizedWeight]
    biases: Mapping[str, NDArray[np.float32]] = {}
    scales: Mapping[Version, NDArray[np.float32]] = {}

    def on(self, quantized: Quantized) -> Quantized:
        """A quantized model with this in it."""
        return replace(
            quantized.rescaled(self.scales),
            weights={**quantized.weights, **self.weights},
            biases={**quantized.biases, **self.biases},
        )


class Method(Protocol):
    """A way to round weights (docs/methods.md)."""

    def __call__(self, model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
        """Makes the weights of all these layers integers of their schemes.

        Args:
            model: the float model.
            wanted: layers in the model's order; others take other methods, or stay in float.
        """
