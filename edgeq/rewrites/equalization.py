"""Cross-layer equalization: each channel between two layers is scaled so that the weights that compute it reach as far
as those that read it.

Where channels of a layer differ in range, one scale for all of them leaves the small ones a few steps. Through an
activation with f(s x) = s f(x) for s > 0 a factor can move from one layer to the next:

    W1_i / s_i,  b1_i / s_i,  W2_i s_i,    s_i = sqrt(r1_i r2_i) / r2_i

with r the largest absolute weight of channel i, as written by the first layer and as read by the second one. Chains of
layers are gone through again and again, until no factor changes any more. A parameter of 1 is the whole factor, 0.5 its
square root.

ReLU6 is left alone: min(x, 6) becomes min(x / s, 6 / s), and no runtime has a bound for each channel. The paper takes
ReLU in its place, which is another function.

Its own here: a channel is not made larger than the largest one of its value was on the calibration samples. What has
tiny weights and a large bias, as a channel that training switched off, would else be blown up, and the others would be
left fewer steps than before.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1,
equations 9 to 11.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeq.model.graph import Array
from edgeq.model.model import Model
from edgeq.registry.schema import Runtime
from edgeq.rewrites.links import (
    Link,
    by_channel_written,
    find_links,
    largest_read,
    reach_of,
    scaled,
    times_channels_read,
)
from edgeq.rewrites.rewrite import Asked, Chosen, Observed, Parameters, Rewrite

ROUNDS = 40
"""How often a chain is gone through at the most."""

STILL = 1e-3
"""Factors that are nearer to 1 no longer count as a change."""

POWERS = (1.0, 0.5)


def factors(model: Model, observed: Observed) -> dict[str, NDArray[np.float64]]:
    """By how much each channel of every link is divided: equation 11, over all links, float64 [channels]."""
    links = find_links(model)
    layers = [group for link in links for group in (link.writer, *link.readers)]
    weights = {group.name: np.abs(model.state[group.weight or ""].astype(np.float64)) for group in layers}
    found = {link.value: np.ones(len(weights[link.writer.name])) for link in links}
    least = {link.value: reach_of(link, observed[link.value]) for link in links}
    for _ in range(ROUNDS):
        furthest = 0.0
        for link in links:
            step = np.maximum(_step(model, link, weights), least[link.value] / found[link.value])
            by_channel_written(weights[link.writer.name])[:] /= step[:, None]
            for reader in link.readers:
                weights[reader.name] = times_channels_read(model, reader, weights[reader.name], step)
            found[link.value] *= step
            furthest = max(furthest, float(np.abs(np.log(step)).max()))
        if furthest < STILL:
            break
    return found


def equalize(model: Model, observed: Observed, powers: Parameters) -> Model:
    """The model with links equalized. It computes what it did, to rounding.

    Args:
        powers: by graph node of a link's value, to what power its factors are raised.
    """
    found = factors(model, observed)
    return scaled(model, {value: found[value] ** power for value, power in powers.items()})


def _step(model: Model, link: Link, weights: Mapping[str, Array]) -> NDArray[np.float64]:
    """s of equation 11; 1 for a channel that one of the sides has no weights for."""
    written = by_channel_written(weights[link.writer.name]).max(axis=1)
    read = largest_read(model, link, weights)
    alive = (written > 0) & (read > 0)
    step: NDArray[np.float64] = np.sqrt(np.where(alive, written, 1.0) / np.where(alive, read, 1.0))
    return step


def _places(model: Model, runtimes: Sequence[Runtime]) -> dict[str, int]:
    return {link.value: link.axis for link in find_links(model)}


def _choose(asked: Asked) -> Chosen:
    from edgeq.rewrites.judged import best_of  # PyTorch takes seconds to import

    return best_of(asked, equalize, [dict.fromkeys(asked.observed, power) for power in POWERS])


EQUALIZE = Rewrite("equalization", "power", (0, 1), version=1, places=_places, choose=_choose, apply=equalize)
