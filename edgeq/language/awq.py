"""AWQ: channels that carry much are multiplied in the weights and divided before them, so that they are rounded finer.

Source: Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
arXiv 2306.00978: s = mean|x|^a, the a of 20 that loses least, normalized by sqrt(max s * min s), and then clipping
(`edgeq.methods.awq_clip`). Here it divides what a normalization gives, by its weight; the paper does that between two
products as well.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from edgeq.language.decoder import Decoder, Weight
from edgeq.language.hessian import Met
from edgeq.language.segments import Segment
from edgeq.methods.awq_clip import clipped
from edgeq.methods.hessian import Curved
from edgeq.methods.matrices import as_wanted
from edgeq.methods.nearest import quantize_weight
from edgeq.numerics import Scheme
from edgeq.numerics.weights import QuantizedWeight

EXPONENTS = tuple(step / 20 for step in range(20))

_NORMALIZATIONS = {
    "SimplifiedLayerNormalization": (1,), "LayerNormalization": (1, 2), "RMSNormalization": (1,),
    "SkipSimplifiedLayerNormalization": (2,), "SkipLayerNormalization": (2, 3),
}  # fmt: skip
"""By operator, which of its inputs its output is proportional to."""


def awq(
    decoder: Decoder, segment: Segment, schemes: Mapping[Weight, Scheme], met: Mapping[Weight, Met]
) -> tuple[dict[str, QuantizedWeight], dict[str, NDArray[np.float32]]]:
    """Rounds the products of a piece.

    Returns:
        Their integers, and what the normalizations before them become.
    """
    weights: dict[str, QuantizedWeight] = {}
    floats: dict[str, NDArray[np.float32]] = {}
    by_input: dict[str, list[Weight]] = {}
    for weight in schemes:
        by_input.setdefault(segment.inputs[weight.name], []).append(weight)
    for value, together in by_input.items():
        matrices = {weight: decoder.matrix(weight) for weight in together}
        seen = met[together[0]]
        named = _proportional(decoder, segment, value, together)
        scale = _best(matrices, schemes, seen) if named else np.ones(len(seen.size), np.float32)
        for name in named:
            floats[name] = np.asarray(decoder.array(name) / scale, np.float32)
        curved = _scaled(seen.hessian, scale)
        for weight, matrix in matrices.items():
            weights[weight.name] = _clipped(weight, matrix * scale, schemes[weight], curved)
    return weights, floats


def _proportional(decoder: Decoder, segment: Segment, value: str, readers: list[Weight]) -> list[str]:
    """The initializers that a normalization multiplies its output by, where nobody else reads it; else none."""
    reads = sum(list(node.input).count(value) for node in segment.nodes)
    if value in segment.writes or reads != len(readers):
        return []
    for node in segment.nodes:
        if value == node.output[0] and node.op_type in _NORMALIZATIONS:
            names = [node.input[at] for at in _NORMALIZATIONS[node.op_type] if at < len(node.input) and node.input[at]]
            return names if all(_only_here(decoder, node, name) for name in names) else []
    return []


def _only_here(decoder: Decoder, node: onnx.NodeProto, name: str) -> bool:
    readers = [one.name for one in decoder.proto.graph.node if name in one.input]
    return name in decoder.initializers and readers == [node.name]


def _best(
    matrices: Mapping[Weight, NDArray[np.float32]], schemes: Mapping[Weight, Scheme], met: Met
) -> NDArray[np.float32]:
    """The factors of the channels."""
    size = np.maximum(met.size, 1e-8)

    def factors(exponent: float) -> NDArray[np.float32]:
        raw = size**exponent
        return np.asarray(np.maximum(raw / np.sqrt(raw.max() * raw.min()), 1e-4), np.float32)

    def loss(scale: NDArray[np.float32]) -> float:
        curved = _scaled(met.hessian, scale)
        return sum(
            _energy(_nearest(weight, matrix * scale, schemes[weight]) - matrix * scale, curved)
            for weight, matrix in matrices.items()
        )

    tried = [factors(exponent) for exponent in EXPONENTS]
    return min(tried, key=loss)


def _nearest(weight: Weight, matrix: NDArray[np.float32], scheme: Scheme) -> NDArray[np.float32]:
    return quantize_weight(as_wanted(weight.name, matrix, scheme)).real[:, : weight.columns]


def _scaled(hessian: torch.Tensor, scale: NDArray[np.float32]) -> torch.Tensor:
    factor = torch.from_numpy(1 / scale)
    return hessian * factor[:, None] * factor[None, :]


def _energy(error: NDArray[np.float32], hessian: torch.Tensor) -> float:
    e = torch.from_numpy(error)
    return float(((e @ hessian) * e).sum(dtype=torch.float64))


def _clipped(weight: Weight, matrix: NDArray[np.float32], scheme: Scheme, hessian: torch.Tensor) -> QuantizedWeight:
    one = as_wanted(weight.name, matrix, scheme)
    columns = one.weight.shape[1]
    width = scheme.group or columns
    count, more = columns // width, columns - weight.columns
    at = np.arange(one.weight.size).reshape(len(matrix), count, width).transpose(1, 0, 2)
    whole = torch.nn.functional.pad(hessian, (0, more, 0, more))
    blocks = whole.reshape(count, width, count, width)[range(count), :, range(count)]
    return clipped(Curved(one, at, blocks))
