"""The quantized model in simulation: fake quantization in PyTorch's float. It steers; it is never a result."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from edgeq.model.execute import Hook
from edgeq.model.graph import Node
from edgeq.model.model import Model
from edgeq.numerics.fake import fake_quantize
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

    reads = {pair: [partial(fake_quantize, q=t.q)] for pair, t in quantized.rounded_by_readers(model).items()}
    return model.run([batch], hook, rounded_constants(model, quantized), reads)[0]


def rounded_constants(model: Model, quantized: Quantized) -> dict[str, torch.Tensor]:
    """What takes the place of the model's weights and biases, by graph node: real numbers, float32."""
    constants: dict[str, torch.Tensor] = {}
    for group in model.groups:
        if group.name in quantized.weights:
            _, weight, bias = model.nodes[group.root].all_input_nodes[:3]
            constants[weight.name] = torch.from_numpy(quantized.weights[group.name].real)
            constants[bias.name] = torch.from_numpy(quantized.biases[group.name])
    return constants
