"""Integers of few bits as bytes: two or four with the first in the lowest bits, as `.tflite` files and OpenVINO hold
them; three as OpenVINO does."""

from __future__ import annotations

import numpy as np

BITS = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4}
"""Of the types that numpy has no word for."""


def pack(integers: np.ndarray, bits: int, *, signed: bool = True) -> np.ndarray:
    """Integers to bytes. What is left over of the last byte is zero.

    Args:
        integers: any shape, taken in C order.
        bits: of each, 2 or 4.

    Returns:
        uint8 [ceil(count * bits / 8)].

    Raises:
        ValueError: an integer does not fit.
    """
    flat, in_byte, half = np.asarray(integers).reshape(-1), 8 // bits, 1 << (bits - 1)
    low = -half if signed else 0
    if flat.size and (int(flat.min()) < low or int(flat.max()) >= low + 2 * half):
        raise ValueError(f"integers from {flat.min()} to {flat.max()} do not fit {bits} bits")
    parts = np.zeros((-(-flat.size // in_byte), in_byte), np.uint8)
    parts.reshape(-1)[: flat.size] = flat.astype(np.int8).view(np.uint8) & (2 * half - 1)
    packed: np.ndarray = np.bitwise_or.reduce(parts << _shifts(bits), axis=1)
    return packed


def unpack(data: np.ndarray, count: int, bits: int, *, signed: bool = True) -> np.ndarray:
    """Bytes to int8 [count], or to uint8 [count] where they are unsigned.

    Args:
        data: uint8 [ceil(count * bits / 8)].
        bits: of each, 2 or 4.

    Raises:
        ValueError: there are more or fewer bytes than the count needs.
    """
    half = 1 << (bits - 1)
    if data.size != -(-count * bits // 8):
        raise ValueError(f"{data.size} bytes do not hold {count} integers of {bits} bits")
    parts = (data.reshape(-1, 1) >> _shifts(bits)) & np.uint8(2 * half - 1)
    values: np.ndarray = parts.reshape(-1)[:count]
    # the upper half of the numbers stand for those below zero
    return (values.astype(np.int8) ^ np.int8(half)) - np.int8(half) if signed else values


def _shifts(bits: int) -> np.ndarray:
    return np.arange(0, 8, bits, dtype=np.uint8)


def pack_three(integers: np.ndarray) -> np.ndarray:
    """Integers from 0 to 7 to bytes, eight to three: the two lower bits of four, of the other four, and all upper bits;
    the first in the highest bits. What is left over of the last three is zero.

    Args:
        integers: any shape, taken in C order.

    Returns:
        uint8 [3 * ceil(count / 8)].

    Raises:
        ValueError: an integer does not fit.
    """
    flat = np.asarray(integers).reshape(-1)
    if flat.size and (int(flat.min()) < 0 or int(flat.max()) > 7):
        raise ValueError(f"integers from {flat.min()} to {flat.max()} do not fit 3 bits")
    eights = np.zeros((-(-flat.size // 8), 8), np.uint8)
    eights.reshape(-1)[: flat.size] = flat
    lower = np.bitwise_or.reduce((eights & 3).reshape(-1, 2, 4) << _shifts(2)[::-1], axis=2)
    return np.concatenate([lower, np.packbits(eights >> 2, axis=1)], axis=1).reshape(-1)


def unpack_three(data: np.ndarray, count: int) -> np.ndarray:
    """The bytes of `pack_three` to uint8 [count].

    Raises:
        ValueError: there are more or fewer bytes than the count needs.
    """
    if data.size != 3 * -(-count // 8):
        raise ValueError(f"{data.size} bytes do not hold {count} integers of 3 bits")
    threes = data.reshape(-1, 3)
    lower = (threes[:, :2, None] >> _shifts(2)[::-1]) & np.uint8(3)
    upper = np.unpackbits(threes[:, 2:], axis=1)
    values: np.ndarray = (lower.reshape(-1, 8) | upper << 2).reshape(-1)[:count]
    return values
