"""The quantized model in simulation: fake quantization in PyTorch's float. It steers; it is never a result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeq.model.batches import batches, side_by_side
from edgeq.model.execute import Hook
from edgeq.model.graph import Node
from edgeq.model.model import Model
from edgeq.numerics.fake import fake_quantize
from edgeq.quantization.dynamic import Rounding, dynamic_reads
from edgeq.quantization.quantized import Quantized


def simulate(
    model: Model, quantized: Quantized, batch: Sequence[torch.Tensor], see: Hook | None = None
) -> list[torch.Tensor]:
    """The outputs that integers would give.

    Args:
        batch: one tensor per input, [N, ...].
        see: called with every node and its rounded values.
    """

    written = quantized.rounded

    def hook(node: Node, values: list[torch.Tensor]) -> list[torch.Tensor]:
        tensor = written.get(node.name)
        rounded = values if tensor is None else [fake_quantize(v, tensor.q) for v in values]
        return see(node, rounded) if see else rounded

    reads = {pair: [way] for pair, way in rounded_reads(model, quantized).items()}
    return model.run([batch], hook, rounded_constants(model, quantized), reads)[0]


def rounded_reads(model: Model, quantized: Quantized) -> dict[tuple[str, str], Rounding]:
    """By graph nodes of a reader and of what it reads, what that one alone does to the values on their way."""
    static = {pair: partial(fake_quantize, q=t.q) for pair, t in quantized.rounded_by_readers(model).items()}
    return {**static, **dynamic_reads(model, quantized)}


def rounded_constants(model: Model, quantized: Quantized) -> dict[str, torch.Tensor]:
    """What takes the place of the model's weights and biases, by graph node: real numbers, float32."""
    constants: dict[str, torch.Tensor] = {}
    for group in model.groups:
        if group.name in quantized.weights:
            _, weight, bias = model.nodes[group.root].all_input_nodes[:3]
            constants[weight.name] = torch.from_numpy(quantized.weights[group.name].real)
            constants[bias.name] = torch.from_numpy(quantized.biases[group.name])
    return constants


def movement(outputs: Sequence[torch.Tensor], reference: Sequence[torch.Tensor], samples: int) -> NDArray[np.float64]:
    """How far outputs, [samples, ...] each, are from those of the float model: [samples], their squared movement over
    their own power, summed over outputs."""
    total = torch.zeros(samples, dtype=torch.float64)
    for found, wanted in zip(outputs, reference, strict=True):
        if wanted.is_floating_point():
            power = wanted.double().square().reshape(len(wanted), -1).sum(1).clamp(min=1e-24)
            error = (found.double() - wanted.double()).square().reshape(len(wanted), -1).sum(1)
            total += (error / power).reshape(samples, -1).mean(1)
    return total.numpy()


def sqnr_of(
    model: Model,
    quantized: Quantized,
    inputs: Mapping[str, NDArray[Any]],
    floats: Iterable[Sequence[torch.Tensor]] | None = None,
) -> float:
    """Mean ratio of signal to noise of the outputs, in dB, simulated.

    Args:
        inputs: by input name, [N, ...].
        floats: what the float model gives for each of their batches, where that is known.
    """

    def noise(given: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor] | None]) -> NDArray[np.float64]:
        batch, real = given
        samples = len(batch[0]) if model.inputs[0].batched else 1
        return movement(simulate(model, quantized, batch), real or model.run([batch])[0], samples)

    every = zip(batches(model, inputs), repeat(None) if floats is None else floats, strict=False)
    found = np.concatenate(list(side_by_side(noise, every)))
    return float(-10 * np.log10(max(float(found.mean()), 1e-20)))
