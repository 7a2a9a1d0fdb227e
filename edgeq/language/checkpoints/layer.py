"""A packed layer of a checkpoint, as it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeq.language.checkpoints.tensors import Tensors


class Grid(NamedTuple):
    """Integers that share scales and zero points by groups of neighbours in a row: real = scale * (integer - zero).

    Attributes:
        integers: uint8 [outputs, inputs].
        scale: float32 [outputs, groups].
        zero_point: int32 [outputs, groups].
        group: inputs of a group; the last group of a row may have fewer.
        bits: of an integer.
    """

    integers: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    group: int
    bits: int

    @property
    def real(self) -> NDArray[np.float32]:
        """float32 [outputs, inputs]. A scale of float16 or bfloat16 makes it exact."""
        columns = self.integers.shape[1]
        zero, scale = (np.repeat(one, self.group, axis=1)[:, :columns] for one in (self.zero_point, self.scale))
        return np.asarray((self.integers - zero).astype(np.float32) * scale)


class Unpacked(NamedTuple):
    """A layer's weight.

    Attributes:
        real: float32 [outputs, inputs].
        grid: the integers, where neighbours share a scale; else None.
    """

    real: NDArray[np.float32]
    grid: Grid | None


class Layout(NamedTuple):
    """How a checkpoint's layers are packed.

    Attributes:
        mark: what the name of a tensor ends with that tells of a packed layer; what stands before is the layer's name.
        parts: what the names of all tensors of a packed layer end with.
        read: a layer by its name.
        grids: whether neighbours share scales, as far as the config tells.
    """

    mark: str
    parts: tuple[str, ...]
    read: Callable[[Tensors, str], Unpacked]
    grids: bool


Opener = Callable[[Mapping[str, Any]], Layout]
"""The layout that a `quantization_config` tells of; raises UnsupportedError where it is not read."""


def of_grid(grid: Grid) -> Unpacked:
    return Unpacked(grid.real, grid)
