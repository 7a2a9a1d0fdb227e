"""High-bias absorption: what a channel always has at least is taken off it, and given to the biases of what reads it.

Small factors of equalization make biases large, and with them the range of the value. Through a ReLU

    f(W1 x + b1 - c) = f(W1 x + b1) - c    where W1 x + b1 >= c >= 0

so that c_i = max(0, mean_i - n deviation_i) can move on: b1 - c, b2 + W2 c. The paper takes n = 3, mean and deviation
from batch norms, and is wrong for the one value in a thousand that is smaller.

Its own here: mean and deviation are those of calibration samples, and c is never larger than the least value that was
seen on them, so that there the function is kept. What reads the value must not pad it: beside a border there is no c.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1.3,
equations 12 to 15.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeq.model.graph import Array
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.registry.schema import Runtime
from edgeq.rewrites.links import Link, added_to_channels_read, find_links
from edgeq.rewrites.rewrite import Asked, Channels, Chosen, Observed, Parameters, Rewrite

DEVIATIONS = 3.0

_RECTIFIERS = frozenset({"relu", "leaky_relu", "prelu"})
_OF_EQUALS = frozenset({"max_pool2d", "mean", "reshape", "resize_nearest", "resize_bilinear"})
"""Operators that give c more where they are given c more everywhere."""


def absorbed(channels: Channels, deviations: float) -> NDArray[np.float64]:
    """c of equation 15, float64 [channels]."""
    least = channels.mean.astype(np.float64) - deviations * channels.deviation
    return np.maximum(np.minimum(least, channels.low), 0)


def absorb(model: Model, observed: Observed, deviations: Parameters) -> Model:
    """The model with high biases absorbed. It computes what it did wherever values are no smaller than those observed.

    Args:
        deviations: by graph node of a link's value.
    """
    biases: dict[str, Array] = {}

    def add(group: Group, what: Array) -> None:
        name = group.bias or ""
        biases[name] = biases.get(name, model.state[name].astype(np.float64)) + what

    for link in find_links(model):
        if link.value in deviations:
            moved = absorbed(observed[link.value], deviations[link.value])
            add(link.writer, -moved)
            for reader in link.readers:
                weight = model.state[reader.weight or ""].astype(np.float64)
                add(reader, added_to_channels_read(model, reader, weight, moved))
    return model.with_state({name: bias.astype(np.float32) for name, bias in biases.items()})


def _places(model: Model, runtimes: Sequence[Runtime]) -> dict[str, int]:
    return {link.value: link.axis for link in find_links(model) if _keeps_constants(model, link)}


def _keeps_constants(model: Model, link: Link) -> bool:
    padding = [model.nodes[r.root].args[4:5] for r in link.readers if r.op != "linear"]
    padded = any(given and given[0] != "valid" and np.any(np.asarray(given[0]) != 0) for given in padding)
    return bool(link.between & _RECTIFIERS) and link.between <= _RECTIFIERS | _OF_EQUALS and not padded


def _choose(asked: Asked) -> Chosen:
    from edgeq.rewrites.judged import best_of  # PyTorch takes seconds to import

    high = [value for value, channels in asked.observed.items() if absorbed(channels, DEVIATIONS).any()]
    return best_of(asked, absorb, [dict.fromkeys(high, DEVIATIONS)] if high else [])


ABSORB = Rewrite("high-bias absorption", "deviations", (0, 10), version=1, places=_places, choose=_choose, apply=absorb)
