"""The layout `pack-quantized` of compressed-tensors, as llm-compressor writes it.

Source: https://github.com/vllm-project/compressed-tensors: `weight_packed` int32 [outputs, inputs * bits / 32],
`weight_scale` [outputs, groups], `weight_shape`, `weight_zero_point` int32 [outputs * bits / 32, groups] where there
are any, `weight_g_idx` where inputs are in another order. Integers have a sign and are stored with the middle added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeq.errors import UnsupportedError, UsageError
from edgeq.language.checkpoints.layer import Grid, Layout, Unpacked, of_grid
from edgeq.language.checkpoints.tensors import REMEDY, Tensors, from_words, same_shape

_FORMAT = "pack-quantized"
_NAMES = ("packed", "scale", "shape", "zero_point", "g_idx")


def compressed(config: Mapping[str, Any]) -> Layout:
    """Weights of 4 or 8 bits; activations in float."""
    form = config.get("format")
    groups = list((config.get("config_groups") or {}).values())
    rounded = [one for one in groups if isinstance(one, dict) and one.get("input_activations")]
    if form != _FORMAT or rounded:
        what = "rounds activations as well" if rounded else f"is in the format {form!r}"
        raise UnsupportedError(f"it {what}", remedy=f"{_FORMAT} of weights alone is read")
    return Layout(".weight_packed", tuple(f".weight_{name}" for name in _NAMES), _read, True)


def _read(tensors: Tensors, layer: str) -> Unpacked:
    words = tensors.integers(f"{layer}.weight_packed", "int32", 2)
    scale = tensors.floats(f"{layer}.weight_scale", 2)
    told = tensors.integers(f"{layer}.weight_shape", "int64", 1)
    same_shape(f"{layer}.weight_shape", told.shape, (2,))
    outputs, inputs = (int(size) for size in told)
    bits = next((bits for bits in (4, 8) if words.shape == (outputs, -(-inputs * bits // 32))), None)
    if bits is None or inputs < 1:
        cause = f"{list(words.shape)} words hold no [{outputs}, {inputs}] numbers of 4 or 8 bits"
        raise UsageError(cause, where=layer, remedy=REMEDY)
    integers = np.ascontiguousarray(from_words(np.ascontiguousarray(words.T), bits).T[:, :inputs])
    groups = scale.shape[1]
    same_shape(f"{layer}.weight_scale", scale.shape, (outputs, max(1, groups)))
    if inputs % groups:
        raise UsageError(f"{inputs} inputs are no {groups} groups", where=layer, remedy=REMEDY)
    zero = np.full(scale.shape, 1 << (bits - 1), np.int32)
    if f"{layer}.weight_zero_point" in tensors:
        stored = tensors.integers(f"{layer}.weight_zero_point", "int32", 2)
        same_shape(f"{layer}.weight_zero_point", stored.shape, (-(-outputs * bits // 32), groups))
        zero = from_words(stored, bits)[:outputs].astype(np.int32)
    size = inputs // groups
    if f"{layer}.weight_g_idx" in tensors:
        of = tensors.integers(f"{layer}.weight_g_idx", "int32", 1)
        same_shape(f"{layer}.weight_g_idx", of.shape, (inputs,))
        if of.min() < 0 or of.max() >= groups:
            raise UsageError(f"it names a group beyond the {groups} that there are", where=layer, remedy=REMEDY)
        if not np.array_equal(of, np.arange(inputs) // size):
            return Unpacked((integers - zero[:, of]).astype(np.float32) * scale[:, of], None)
    return of_grid(Grid(integers, scale, zero, size, bits))
