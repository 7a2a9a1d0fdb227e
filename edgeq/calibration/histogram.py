"""A histogram that needs no second pass: its bins are powers of two and merge in pairs when values outgrow them.

Bin edges always lie at whole multiples of the bin width, zero among them, so that two histograms of any two
tensors add up exactly, in any order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

HALF = 2048
"""Bins on each side of zero. The wider side of the data fills between half and all of them."""

SAMPLES = 1 << 12
"""Values counted per tensor and sample: an even stride through the tensor. Extremes are taken over all values."""


def as_rows(x: torch.Tensor, rows: int) -> torch.Tensor:
    """Its values as [rows, ...], images in channels-last order: the one they lie in, so that nothing is copied."""
    return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).reshape(rows, -1)


def _extremes(rows: Iterable[torch.Tensor]) -> torch.Tensor:
    """The least and the largest value of each row, [rows, 2]; NaN where it holds one."""
    import torch

    # row by row: over a whole tensor the kernel is vectorized, along an axis it is not
    return torch.stack([torch.stack(torch.aminmax(row)) for row in rows])


@dataclass
class Histogram:
    """Counts of values in bins of width 2**exponent from -HALF to HALF, with the true extremes.

    Attributes:
        exponent: log2 of the bin width; None before the first non-zero value.
        counts: int64 [2 * HALF]; bin i holds [(i - HALF) * width, (i - HALF + 1) * width).
        low, high: true minimum and maximum of all values seen.
        sample_low, sample_high: minimum and maximum of each sample, averaged over samples.
        samples: how many samples were seen.
        endless: whether a value was infinite, as masks put it in; such values are in none of the above.
    """

    exponent: int | None = None
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * HALF, np.int64))
    low: float = math.inf
    high: float = -math.inf
    sample_low: float = 0.0
    sample_high: float = 0.0
    samples: int = 0
    endless: bool = False

    @property
    def width(self) -> float:
        return 2.0 ** (self.exponent if self.exponent is not None else -126)

    def add(self, x: torch.Tensor) -> None:
        """Counts one batch of a tensor's values. A sample without any that is finite counts as one of zero.

        Args:
            x: float, [samples, ...].

        Raises:
            ValueError: a value is NaN.
        """
        import torch  # those that only read histograms do without it

        samples = max(1, len(x)) if x.dim() else 1
        rows = as_rows(x, samples) if x.numel() else x.new_zeros(samples, 1)
        ends, flat = _extremes(rows), rows.reshape(-1)
        if bool(ends.isnan().any()):
            raise ValueError("a value is NaN")
        if bool(ends.isinf().any()):
            self.endless = True
            finite = [row[row.isfinite()] if bool(row.isfinite().any()) else row.new_zeros(1) for row in rows]
            ends, flat = _extremes(finite), torch.cat(finite)
        lows, highs = ends.unbind(1)
        low, high = float(lows.min()), float(highs.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        seen = self.samples + samples
        self.sample_low += (float(lows.double().sum()) - samples * self.sample_low) / seen
        self.sample_high += (float(highs.double().sum()) - samples * self.sample_high) / seen
        self.samples = seen
        self._cover(max(abs(low), abs(high)))
        # an odd stride visits every channel and row of the usual even-sized layouts
        wanted = SAMPLES * samples
        picked = flat[:: flat.numel() // wanted | 1] if flat.numel() > wanted else flat
        bins = (picked.double() / self.width).floor_().clamp_(-HALF, HALF - 1).to(torch.int64) + HALF
        self.counts += torch.bincount(bins, minlength=2 * HALF).numpy()

    def include(self, later: Histogram) -> None:
        """Adds what a histogram of further samples of the same tensor holds."""
        seen = self.samples + later.samples
        self.sample_low += (later.sample_low - self.sample_low) * later.samples / seen
        self.sample_high += (later.sample_high - self.sample_high) * later.samples / seen
        self.samples = seen
        self.low, self.high = min(self.low, later.low), max(self.high, later.high)
        self.endless |= later.endless
        self._add_counts(later)

    def union(self, other: Histogram) -> Histogram:
        """The histogram of two tensors that are to carry one scale; neither is changed."""
        result = Histogram(
            self.exponent,
            self.counts.copy(),
            min(self.low, other.low),
            max(self.high, other.high),
            min(self.sample_low, other.sample_low),
            max(self.sample_high, other.sample_high),
            max(self.samples, other.samples),
            self.endless or other.endless,
        )
        result._add_counts(other)
        return result

    def _add_counts(self, other: Histogram) -> None:
        addend = Histogram(other.exponent, other.counts.copy())
        if other.exponent is not None:
            self._widen(other.exponent)
        if self.exponent is not None:
            addend._widen(self.exponent)
        self.counts += addend.counts

    def centers(self) -> NDArray[np.float64]:
        """The value that stands for each bin, float64 [2 * HALF]: its middle, clipped to the true extremes.

        Where a ReLU leaves exact zeros, they are most of the bin that begins at zero, and zero stands for it.
        """
        middles = (np.arange(-HALF, HALF, dtype=np.float64) + 0.5) * self.width
        if self.low == 0.0:
            middles[HALF] = 0.0
        return np.clip(middles, self.low, self.high) if self.low <= self.high else middles

    def _cover(self, magnitude: float) -> None:
        if magnitude > 0.0:
            _, exponent = math.frexp(magnitude)  # magnitude < 2**exponent
            self._widen(max(exponent - int(math.log2(HALF)), -126))

    def _widen(self, exponent: int) -> None:
        if self.exponent is None:
            # until now every value was zero, and zero is in the same bin at every width
            self.exponent = exponent
        while self.exponent < exponent:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros_like(self.counts)
            self.counts[HALF // 2 : HALF // 2 + HALF] = pairs
            self.exponent += 1
