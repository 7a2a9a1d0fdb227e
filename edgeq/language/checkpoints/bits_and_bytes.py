"""The layouts of bitsandbytes: 8 bits with a scale for each row, and 4 bits that are places in a table of levels.

Source: https://github.com/bitsandbytes-foundation/bitsandbytes. Of 8 bits: `weight` int8 [outputs, inputs], `SCB`
[outputs]: real = weight * SCB / 127. Of 4 bits: `weight` uint8, two numbers a byte, the first in its upper half;
`weight.quant_map`, the levels; `weight.absmax`, a factor for each block of numbers, which may be places in a table
itself (`weight.nested_...`); `weight.quant_state.bitsandbytes__nf4`, JSON as bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import UnsupportedError, UsageError
from edgeq.language.checkpoints.layer import Grid, Layout, Unpacked, of_grid
from edgeq.language.checkpoints.tensors import REMEDY, Tensors, same_shape

_KINDS = ("nf4", "fp4")
_LARGEST = np.float32(127)


def bits_and_bytes(config: Mapping[str, Any]) -> Layout:
    """Of 8 bits, or of 4."""
    if config.get("load_in_8bit"):
        return Layout(".SCB", (".weight", ".SCB", ".weight_format"), _read_8, True)
    if config.get("load_in_4bit"):
        states = tuple(f".weight.quant_state.bitsandbytes__{kind}" for kind in _KINDS)
        parts = tuple(f".weight.{name}" for name in ("absmax", "quant_map", "nested_absmax", "nested_quant_map"))
        return Layout(".weight.absmax", (".weight", *parts, *states), _read_4, False)
    raise UnsupportedError(
        "it is neither of 8 nor of 4 bits", remedy="load_in_8bit or load_in_4bit in its quantization_config says which"
    )


def _read_8(tensors: Tensors, layer: str) -> Unpacked:
    integers = tensors.integers(f"{layer}.weight", "int8", 2)
    largest = tensors.floats(f"{layer}.SCB")
    same_shape(f"{layer}.SCB", largest.reshape(-1).shape, integers.shape[:1])
    if f"{layer}.weight_format" in tensors and tensors.tensor(f"{layer}.weight_format").any():
        remedy = "save it where rows are kept as rows, on a CPU or with a newer bitsandbytes"
        raise UnsupportedError("its numbers lie in an order for one kind of GPU", where=layer, remedy=remedy)
    middle = 128
    scale = (largest.reshape(-1, 1) / _LARGEST).astype(np.float32)
    zero = np.full(scale.shape, middle, np.int32)
    return of_grid(Grid((integers.astype(np.int16) + middle).astype(np.uint8), scale, zero, integers.shape[1], 8))


def _read_4(tensors: Tensors, layer: str) -> Unpacked:
    name = f"{layer}.weight"
    state = _state(tensors, name)
    packed = tensors.integers(name, "uint8").reshape(-1)
    levels = tensors.floats(f"{name}.quant_map", 1)
    same_shape(f"{name}.quant_map", levels.shape, (16,))
    try:
        shape, block = tuple(int(size) for size in state["shape"]), int(state["blocksize"])
        count = math.prod(shape)
        if len(shape) != 2 or min(*shape, block) < 1:
            raise ValueError("it is no matrix")
        factors = _factors(tensors, name, state, -(-count // block))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"its quant_state is damaged ({error})", where=name, remedy=REMEDY) from error
    same_shape(name, packed.shape, ((count + 1) // 2,))
    places = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:count]
    return Unpacked((levels[places] * np.repeat(factors, block)[:count]).reshape(shape), None)


def _state(tensors: Tensors, name: str) -> Mapping[str, Any]:
    found = [full for kind in _KINDS if (full := f"{name}.quant_state.bitsandbytes__{kind}") in tensors]
    if not found:
        raise UsageError("its quant_state is missing", where=name, remedy=REMEDY)
    try:
        state = json.loads(tensors.integers(found[0], "uint8", 1).tobytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"its quant_state is no JSON ({error})", where=name, remedy=REMEDY) from error
    if not isinstance(state, dict):
        raise UsageError("its quant_state is no table", where=name, remedy=REMEDY)
    return state


def _factors(tensors: Tensors, name: str, state: Mapping[str, Any], blocks: int) -> NDArray[np.float32]:
    """float32 [blocks]."""
    if f"{name}.nested_absmax" not in tensors:
        plain = tensors.floats(f"{name}.absmax", 1)
        same_shape(f"{name}.absmax", plain.shape, (blocks,))
        return plain
    places = tensors.integers(f"{name}.absmax", "uint8", 1)
    same_shape(f"{name}.absmax", places.shape, (blocks,))
    size, offset = int(state["nested_blocksize"]), np.float32(state["nested_offset"])
    outer = tensors.floats(f"{name}.nested_absmax", 1)
    same_shape(f"{name}.nested_absmax", outer.shape, (-(-blocks // size),))
    levels = tensors.floats(f"{name}.nested_quant_map", 1)
    same_shape(f"{name}.nested_quant_map", levels.shape, (256,))
    return np.asarray(levels[places] * np.repeat(outer, size)[:blocks] + offset)
