"""AWQ's layout for matrix products, as AutoAWQ writes it.

Source: https://github.com/casper-hansen/AutoAWQ: `qweight` int32 [inputs, outputs / 8], `qzeros` int32
[groups, outputs / 8], `scales` [groups, outputs]. The eight outputs of a word lie in it in the order 0, 2, 4, 6, 1, 3,
5, 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import UnsupportedError
from edgeq.language.checkpoints.layer import Grid, Layout, Unpacked, of_grid
from edgeq.language.checkpoints.tensors import Tensors, from_words, same_shape

_BITS = 4
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def awq(config: Mapping[str, Any]) -> Layout:
    """The version `gemm` alone: others lie in another order."""
    bits = config.get("bits", config.get("w_bit"))
    version = str(config.get("version", "gemm")).lower()
    if bits != _BITS or version != "gemm" or config.get("backend", "autoawq") != "autoawq":
        raise UnsupportedError(f"it is of {bits} bits in the version {version!r}", remedy="gemm of 4 bits is read")
    group = config.get("group_size", config.get("q_group_size", -1))
    return Layout(".qweight", (".qweight", ".qzeros", ".scales"), partial(_read, group=group), True)


def _read(tensors: Tensors, layer: str, group: int) -> Unpacked:
    integers = _outputs(tensors.integers(f"{layer}.qweight", "int32", 2))
    scale = tensors.floats(f"{layer}.scales", 2)
    zero = _outputs(tensors.integers(f"{layer}.qzeros", "int32", 2))
    outputs, inputs = integers.shape
    size = group if isinstance(group, int) and 0 < group < inputs else inputs
    groups = -(-inputs // size)
    same_shape(f"{layer}.scales", scale.shape, (groups, outputs))
    same_shape(f"{layer}.qzeros", zero.shape, (outputs, groups))
    return of_grid(Grid(integers, scale.T.copy(), zero.astype(np.int32), size, _BITS))


def _outputs(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    """uint8 [outputs, rows], of words [rows, outputs / 8]."""
    lying = from_words(np.ascontiguousarray(words.T), _BITS).reshape(words.shape[1], len(_ORDER), -1)
    found = np.empty_like(lying)
    found[:, _ORDER] = lying
    return found.reshape(-1, len(words))
