"""The grids that a model came with: training or another tool chose its integers, and they stay what they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.grid import Grid


class Rounded(NamedTuple):
    """A weight that is integers already.

    Attributes:
        integers: in PyTorch's layout.
    """

    integers: NDArray[Any]
    grid: Grid

    @property
    def real(self) -> NDArray[np.float32]:
        """What they stand for, float32."""
        own = self.integers if self.grid.group is None else self.integers.reshape(-1, self.grid.group)
        scale, zero = self.grid.scale, self.grid.zero_point
        if self.grid.axis is not None:
            shape = [1] * own.ndim
            shape[self.grid.axis] = -1
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        real = (own.astype(np.float32) - zero.astype(np.float32)) * scale
        return np.asarray(real, np.float32).reshape(self.integers.shape)


@dataclass(frozen=True)
class Grids:
    """
    Attributes:
        weights: by the name of the parameter.
        reads: by the graph nodes of a reader and of what it reads, the grids that this is rounded to on its way, one
            after the other.
    """

    weights: Mapping[str, Rounded]
    reads: Mapping[tuple[str, str], tuple[Grid, ...]]

    def read(self, reader: str, source: str) -> Grid | None:
        """The grid that one reader reads a value on."""
        every = self.reads.get((reader, source))
        return every[-1] if every else None

    def of(self, node: str) -> list[Grid]:
        """Those that a value is rounded to, each once."""
        found: list[Grid] = []
        for grid in (grid for (_, source), every in self.reads.items() if source == node for grid in every):
            if not any(grid.same(one) for one in found):
                found.append(grid)
        return found

    @property
    def sha256(self) -> str:
        """Over all of it."""
        digest = hashlib.sha256()
        weights = [(("", name), (one.grid,), [one.integers]) for name, one in self.weights.items()]
        for key, grids, arrays in sorted(
            [*weights, *((p, g, []) for p, g in self.reads.items())], key=lambda one: one[0]
        ):
            for grid in grids:
                digest.update(repr((key, grid.low, grid.high, grid.axis, grid.group)).encode())
                for array in (grid.scale, grid.zero_point, *arrays):
                    digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()
