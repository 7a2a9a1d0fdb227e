"""What a rewrite is: other weights for the float network, which computes what it did and is easier to round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeq.model.model import Model
from edgeq.progress import Progress
from edgeq.registry.schema import Runtime

OBSERVED, TRIED, HELD_OUT = 64, 8, 8
"""Samples to look at, for the choice, and for the last word; fewer where there are fewer."""

WORTH_DB = 0.5
"""What it has to gain, on the mean of the ways to round that it is judged by, and what it may not lose on one of them:
less is noise. What adds numbers has to gain what they cost as well (see `edgeq.rewrites.price`)."""

Inputs = Mapping[str, NDArray[Any]]
"""Samples by input name, [N, ...]."""

Parameters = Mapping[str, float]
"""By place, how a rewrite is done there. A place is named after the graph node whose value it changes."""


class Channels(NamedTuple):
    """A value's channels on samples, float32 [channels] each.

    Attributes:
        low, high: extremes.
        mean, deviation: over samples and positions.
        magnitude: the mean of absolute values.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    mean: NDArray[np.float32]
    magnitude: NDArray[np.float32]
    deviation: NDArray[np.float32]

    @property
    def largest(self) -> NDArray[np.float32]:
        """Absolute maxima."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


Observed = Mapping[str, Channels]
"""By place."""


class Split(NamedTuple):
    """Calibration samples by what they serve: no sample twice."""

    observed: Inputs
    tried: Inputs
    held_out: Inputs


class Chosen(NamedTuple):
    """What a rewrite would do.

    Attributes:
        parameters: empty where nothing helps the samples that it was tried on.
        before, after: SQNR of the outputs in dB on samples that had no part in the choice, simulated, in each of the
            ways to round that the rewrite is judged by.
    """

    parameters: dict[str, float]
    before: list[float]
    after: list[float]


class Asked(NamedTuple):
    """What a choice is made from.

    Attributes:
        observed: on `samples.observed`.
        runtimes: those that the network may be built for.
    """

    model: Model
    runtimes: Sequence[Runtime]
    samples: Split
    observed: Observed
    progress: Progress


@dataclass(frozen=True)
class Rewrite:
    """One way, as functions.

    Attributes:
        title: what reports call it.
        parameter: what its parameter is called, and the `ends` that it lies between.
        version: to be raised whenever its arithmetic changes. While it is 0 nothing is kept: who is writing one would
            be given what it did before it was changed.
        places: where it can be done for these runtimes, read from the graph alone, with the axis of the channels;
            nothing is computed where there are none.
        choose: a parameter for each place that is worth it.
        apply: the model with places changed as their parameters say. It is all that a plan needs to be followed: what
            it gives is decided by its arguments, to the bit.
    """

    title: str
    parameter: str
    ends: tuple[float, float]
    version: int
    places: Callable[[Model, Sequence[Runtime]], Mapping[str, int]]
    choose: Callable[[Asked], Chosen]
    apply: Callable[[Model, Observed, Parameters], Model]


def split(inputs: Inputs) -> Split:
    """Samples spread evenly: an eighth for the choice, an eighth to be held out, the others to look at."""
    count = len(next(iter(inputs.values())))
    every = max(2, min(8, count // 2))
    places = np.arange(count)
    tried, held_out = places[places % every == 0], places[places % every == 1]
    rest = places[places % every > 1] if every > 2 else tried

    def of(chosen: NDArray[Any], most: int) -> Inputs:
        kept = chosen[np.linspace(0, len(chosen) - 1, min(most, len(chosen))).round().astype(int)]
        return {name: array[kept] for name, array in inputs.items()}

    return Split(of(rest, OBSERVED), of(tried, TRIED), of(held_out, HELD_OUT))
