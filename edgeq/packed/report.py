"""What packing a module gained, and what it cost."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from edgeq.packed.layers import PackedEmbedding, PackedLinear
from edgeq.packed.weight import PackedWeight


class PackedLayer(NamedTuple):
    """A packed matrix.

    Attributes:
        names: of the layers that have it: several where they are tied.
        shape: [outputs, inputs], or [words, width].
        bits: of an integer.
        group: how many numbers of a row share a scale.
        bytes_before, bytes_after: of the matrix; after, with scales and zero points.
        relative_error: the length of what rounding added, in parts of the matrix's own (Frobenius).
    """

    names: tuple[str, ...]
    shape: tuple[int, int]
    bits: int
    group: int
    bytes_before: int
    bytes_after: int
    relative_error: float


class PackedReport(NamedTuple):
    """What became of a module.

    Attributes:
        layers: those that are packed.
        left: names of linear layers and tables that are float, and of all others that have a matrix of their own.
        bytes_before, bytes_after: of all parameters and buffers, each counted once.
    """

    layers: tuple[PackedLayer, ...]
    left: tuple[str, ...]
    bytes_before: int
    bytes_after: int


def packed_report(module: nn.Module) -> PackedReport:
    """Sizes and errors of a module that `edgeq.quantize` has packed; of any other, that nothing is.

    Errors are those of when it was packed: `load_state_dict` does not change them.
    """
    names: dict[int, list[str]] = {}
    packed: dict[int, PackedWeight] = {}
    left = []
    for name, layer in module.named_modules():
        if isinstance(layer, PackedLinear | PackedEmbedding):
            names.setdefault(id(layer.packed), []).append(name)
            packed[id(layer.packed)] = layer.packed
        elif isinstance(layer, nn.Linear | nn.Embedding) or _has_matrix(layer):
            left.append(name)
    layers = tuple(
        PackedLayer(tuple(names[key]), one.shape, one.bits, one.layout.group, one.was, one.nbytes, one.error)
        for key, one in packed.items()
    )
    after = sum(one.numel() * one.element_size() for one in (*module.parameters(), *module.buffers()))
    before = after + sum(one.bytes_before - one.bytes_after for one in layers)
    return PackedReport(layers, tuple(left), before, after)


def _has_matrix(layer: nn.Module) -> bool:
    """Of a kind that is never packed, such as a convolution or the `Conv1D` of GPT-2."""
    own = [one for one in layer._parameters.values() if one is not None]
    return any(one.ndim > 1 and one.is_floating_point() for one in own)
