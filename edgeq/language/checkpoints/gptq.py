"""GPTQ's layout, as AutoGPTQ and GPTQModel write it.

Source: https://github.com/ModelCloud/GPTQModel: `qweight` int32 [inputs * bits / 32, outputs], `qzeros` int32
[groups, outputs * bits / 32], `scales` [groups, outputs], `g_idx` int32 [inputs], the group of each input. Zero points
are stored less one, unless `checkpoint_format` is `gptq_v2`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import UnsupportedError, UsageError
from edgeq.language.checkpoints.layer import Grid, Layout, Unpacked, of_grid
from edgeq.language.checkpoints.tensors import REMEDY, Tensors, from_words, same_shape

_BITS = (2, 3, 4, 8)


def gptq(config: Mapping[str, Any]) -> Layout:
    """Of 2, 3, 4 and 8 bits, with the inputs in any order."""
    bits, form = config.get("bits"), config.get("checkpoint_format", "gptq")
    if bits not in _BITS or form not in ("gptq", "gptq_v2"):
        raise UnsupportedError(
            f"it is of {bits} bits in the format {form!r}", remedy="gptq and gptq_v2 of 2, 3, 4 or 8 bits are read"
        )
    group = config.get("group_size", -1)
    read = partial(_read, bits=bits, group=group, less_one=form == "gptq")
    return Layout(".qweight", (".qweight", ".qzeros", ".scales", ".g_idx"), read, True)


def _read(tensors: Tensors, layer: str, bits: int, group: int, less_one: bool) -> Unpacked:
    words = tensors.integers(f"{layer}.qweight", "int32", 2)
    scale = tensors.floats(f"{layer}.scales", 2)
    stored = tensors.integers(f"{layer}.qzeros", "int32", 2)
    integers = from_words(words, bits)
    inputs, outputs = integers.shape
    size = group if isinstance(group, int) and 0 < group < inputs else inputs
    groups = -(-inputs // size)
    same_shape(f"{layer}.scales", scale.shape, (groups, outputs))
    same_shape(f"{layer}.qzeros", stored.shape, (groups, outputs * bits // 32))
    zero = _zero_points(stored, bits, less_one)
    in_order = np.arange(inputs) // size
    of = tensors.integers(f"{layer}.g_idx", "int32", 1) if f"{layer}.g_idx" in tensors else in_order
    same_shape(f"{layer}.g_idx", of.shape, (inputs,))
    if of.size and (of.min() < 0 or of.max() >= groups):
        raise UsageError(f"it names a group beyond the {groups} that there are", where=layer, remedy=REMEDY)
    if np.array_equal(of, in_order):
        return of_grid(Grid(np.ascontiguousarray(integers.T), scale.T.copy(), zero.T.copy(), size, bits))
    return Unpacked(np.ascontiguousarray(((integers - zero[of]).astype(np.float32) * scale[of]).T), None)


def _zero_points(stored: NDArray[np.int32], bits: int, less_one: bool) -> NDArray[np.int32]:
    """int32 [groups, outputs]."""
    if less_one and 32 % bits == 0:
        # one was taken from all numbers of a word at once, so that zero borrows from its neighbour
        ones = sum(1 << at for at in range(0, 32, bits))
        stored = (stored.view(np.uint32) + np.uint32(ones)).view(np.int32)
        less_one = False
    zero = from_words(np.ascontiguousarray(stored.T), bits).T.astype(np.int32)
    return np.asarray((zero + 1) & ((1 << bits) - 1)) if less_one else zero
