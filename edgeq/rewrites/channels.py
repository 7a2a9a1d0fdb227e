"""What each channel of a value is on samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edgeq.model.batches import batches, side_by_side
from edgeq.model.graph import Node
from edgeq.model.model import Model
from edgeq.rewrites.rewrite import Channels, Inputs


class _Sums(NamedTuple):
    """Of each channel of a value, float64 [channels] but for how many positions."""

    low: Any
    high: Any
    total: Any
    magnitude: Any
    square: Any
    positions: int

    def plus(self, other: _Sums) -> _Sums:
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return _Sums(low, high, *(one + two for one, two in zip(self[2:], other[2:], strict=True)))

    def channels(self) -> Channels:
        mean = self.total / self.positions
        deviation = np.sqrt(np.maximum(self.square / self.positions - mean**2, 0))
        found = (self.low, self.high, mean, self.magnitude / self.positions, deviation)
        return Channels(*(array.astype(np.float32) for array in found))


def channels_of(model: Model, inputs: Inputs, axes: Mapping[str, int]) -> dict[str, Channels]:
    """Each channel of some values, over samples and positions.

    Args:
        axes: by graph node of a value, the axis of its channels.
    """
    found: dict[str, _Sums] = {}

    def look(batch: list[torch.Tensor]) -> dict[str, _Sums]:
        seen: dict[str, _Sums] = {}

        def see(node: Node, computed: list[Any]) -> list[Any]:
            if node.name in axes:
                (value,) = computed
                rows = value.movedim(axes[node.name], -1).reshape(-1, value.shape[axes[node.name]]).double()
                low, high = rows.amin(0).numpy(), rows.amax(0).numpy()
                total, magnitude, square = (one.sum(0).numpy() for one in (rows, rows.abs(), rows.square()))
                seen[node.name] = _Sums(low, high, total, magnitude, square, len(rows))
            return computed

        model.run([batch], see)
        return seen

    for seen in side_by_side(look, batches(model, inputs)):
        for name, sums in seen.items():
            found[name] = found[name].plus(sums) if name in found else sums
    return {name: sums.channels() for name, sums in found.items()}


def rows_of(model: Model, inputs: Inputs, values: Sequence[str], most: int) -> dict[str, NDArray[np.float32]]:
    """Some positions of values, [positions, channels], their channels last: as many of each batch, spread evenly.

    Args:
        most: positions of each value.
    """
    given = list(batches(model, inputs))
    share = -(-most // len(given))

    def look(batch: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        seen: dict[str, torch.Tensor] = {}

        def see(node: Node, computed: list[Any]) -> list[Any]:
            if node.name in values:
                rows = computed[0].reshape(-1, computed[0].shape[-1])
                seen[node.name] = rows[torch.linspace(0, len(rows) - 1, min(share, len(rows))).round().long()]
            return computed

        model.run([batch], see)
        return seen

    seen = list(side_by_side(look, given))
    return {value: torch.cat([one[value] for one in seen]).numpy() for value in values}
