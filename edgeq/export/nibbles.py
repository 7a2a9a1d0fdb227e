"""Four-bit integers as bytes, two in each, the first in the lower half: as `.tflite` files and OpenVINO hold them."""

from __future__ import annotations

import numpy as np


def pack(integers: np.ndarray) -> np.ndarray:
    """Signed integers to bytes. An odd count leaves the upper half of the last byte zero.

    Args:
        integers: any shape, taken in C order.

    Returns:
        uint8 [ceil(count / 2)].

    Raises:
        ValueError: an integer is not in -8..7.
    """
    flat = np.asarray(integers).reshape(-1)
    if flat.size and (int(flat.min()) < -8 or int(flat.max()) > 7):
        raise ValueError(f"integers from {flat.min()} to {flat.max()} do not fit 4 bits")
    halves = np.zeros(flat.size + flat.size % 2, np.uint8)
    halves[: flat.size] = flat.astype(np.int8).view(np.uint8) & 0xF
    return halves[0::2] | (halves[1::2] << 4)


def unpack(data: np.ndarray, count: int) -> np.ndarray:
    """Bytes to int8 [count].

    Args:
        data: uint8 [ceil(count / 2)].

    Raises:
        ValueError: there are more or fewer bytes than the count needs.
    """
    if data.size != (count + 1) // 2:
        raise ValueError(f"{data.size} bytes do not hold {count} integers of 4 bits")
    halves = np.stack([data & 0xF, data >> 4], axis=-1).reshape(-1)[:count]
    # 8 to 15 stand for -8 to -1
    values: np.ndarray = (halves.astype(np.int8) ^ 8) - np.int8(8)
    return values
