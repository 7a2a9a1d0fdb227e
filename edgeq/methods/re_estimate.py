"""Batch-norm re-estimation: every channel of a layer keeps the mean and the deviation that it has in float.

Layers are taken as they run, each on what the rounded ones before it give. Batch norms are part of the layers by then:
what their statistics did is done by the scale of the channel's weights, and by its bias. The shift of the bias alone is
sequential bias correction. It takes two runs of the samples and no learning.

Where a range cuts off outliers that nobody reads, statistics are no guide: everything else is moved to make up for
them.

Sources: Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training", section 4, for the statistics;
Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction", appendix D, for the shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edgeq.errors import UsageError
from edgeq.methods.begun import begun
from edgeq.methods.method import Change, Seen, Wanted
from edgeq.methods.scales import smallest_scales
from edgeq.model.batches import batches
from edgeq.model.graph import Node
from edgeq.model.model import Model
from edgeq.model.ops import channel_axis_of_output
from edgeq.numerics.fake import fake_quantize
from edgeq.numerics.weights import QuantizedWeight
from edgeq.quantization.simulate import rounded_constants, rounded_reads

SAMPLES = 64
"""That statistics are taken of: a layer's outputs for all of them are in memory at once."""

MOST = 1.25
"""Times that a scale grows or shrinks at most: a channel that hardly moves has no deviation to speak of."""


class _Statistics(NamedTuple):
    """float64 [channels] each."""

    mean: torch.Tensor
    deviation: torch.Tensor


def re_estimate(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    """Nearest integers, or GPTQ's where there are few bits, with other scales and biases."""
    if not seen.inputs:
        raise UsageError("statistics are taken of calibration samples", remedy="give some, or take another method")
    start = begun(model, wanted, seen)
    groups = {group.name: group for group in model.groups}
    layers = {groups[one.layer].root: one for one in wanted}
    axes = {root: channel_axis_of_output(groups[one.layer].op) for root, one in layers.items()}
    given = list(batches(model, {name: array[:SAMPLES] for name, array in seen.inputs.items()}))
    real: dict[str, _Statistics] = {}

    def look(node: Node, values: list[Any]) -> list[Any]:
        if node.name in layers:
            real[node.name] = _statistics(values, axes[node.name])
        return values

    model.run(given, look)
    weights: dict[str, QuantizedWeight] = {}
    biases: dict[str, NDArray[np.float32]] = {}

    def mend(node: Node, values: list[Any]) -> list[Any]:
        if one := layers.get(node.name):
            weight, bias = start.weights[one.layer], torch.from_numpy(start.biases[one.layer]).double()
            now, axis = _statistics(values, axes[node.name]), axes[node.name]
            weights[one.layer], gain = _regained(one, weight, real[node.name].deviation / now.deviation)
            shifted = real[node.name].mean - gain * (now.mean - bias)
            biases[one.layer] = shifted.float().numpy()
            gain, bias, shifted = (_along(part, values[0].dim(), axis) for part in (gain, bias, shifted))
            values = [((value.double() - bias) * gain + shifted).float() for value in values]
        tensor = start.rounded.get(node.name)
        return values if tensor is None else [fake_quantize(value, tensor.q) for value in values]

    reads = {pair: [way] * len(given) for pair, way in rounded_reads(model, start).items()}
    model.run(given, mend, rounded_constants(model, start), reads)
    return Change(weights, biases)


def _statistics(values: Sequence[torch.Tensor], axis: int) -> _Statistics:
    channels = torch.cat([value.movedim(axis, 0).flatten(1) for value in values], dim=1).double()
    return _Statistics(channels.mean(1), channels.std(1, correction=0).clamp(min=1e-12))


def _regained(one: Wanted, weight: QuantizedWeight, ratio: torch.Tensor) -> tuple[QuantizedWeight, torch.Tensor]:
    """The weights with other scales, and by how much each channel's outputs grow with them, float64 [channels]."""
    if one.scheme.granularity == "tensor" or one.scheme.power_of_two:
        return weight, torch.ones_like(ratio)
    before = weight.q.scale.reshape(len(ratio), -1)
    after = before * ratio.clamp(1 / MOST, MOST).numpy()[:, None]
    scale = np.maximum(after, smallest_scales(one).reshape(-1, 1)).astype(np.float32)
    gain = torch.from_numpy(scale.astype(np.float64) / before).mean(1)
    return replace(weight, q=replace(weight.q, scale=scale.reshape(weight.q.scale.shape))), gain


def _along(part: torch.Tensor, rank: int, axis: int) -> torch.Tensor:
    shape = [1] * rank
    shape[axis] = -1
    return part.reshape(shape)
