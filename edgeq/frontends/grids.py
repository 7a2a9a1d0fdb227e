"""The grids of a model, as the cache keeps them."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from edgeq.cache import Entry
from edgeq.model.grids import Grids, Rounded
from edgeq.numerics.grid import Grid


def pack_grids(grids: Grids) -> Entry:
    """With arrays by the numbers of the grids."""
    arrays: dict[str, NDArray[Any]] = {}

    def packed(grid: Grid) -> list[Any]:
        number = len(arrays)
        arrays[f"grid {number} scale"], arrays[f"grid {number} zero point"] = grid.scale, grid.zero_point
        return [number, grid.low, grid.high, grid.axis, grid.group]

    weights = {name: packed(one.grid) for name, one in grids.weights.items()}
    reads = [[*pair, list(map(packed, every))] for pair, every in grids.reads.items()]
    integers = {f"grid of {name}": one.integers for name, one in grids.weights.items()}
    return Entry({"weights": weights, "reads": reads}, {**arrays, **integers})


def unpack_grids(entry: Entry) -> Grids:
    def unpacked(told: list[Any]) -> Grid:
        number, low, high, axis, group = told
        scale, zero = (entry.arrays[f"grid {number} {part}"] for part in ("scale", "zero point"))
        return Grid(scale, zero, low, high, axis, group)

    weights = {n: Rounded(entry.arrays[f"grid of {n}"], unpacked(one)) for n, one in entry.values["weights"].items()}
    reads = {(reader, source): tuple(map(unpacked, every)) for reader, source, every in entry.values["reads"]}
    return Grids(weights, reads)
