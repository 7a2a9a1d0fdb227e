"""SmoothQuant between layers that nothing but a ReLU or a pool parts: convolutions most of all.

Where every channel of a layer's weights has a scale of its own, what its channels are multiplied by costs its weights
nothing. So each channel of its value is divided by what is best for the value and for the weights behind it, which are
multiplied by the same, and the layer in front takes the division:

    s_i = x_i^alpha / r_i^(1 - alpha)

with x_i how far channel i reaches, and r_i the largest weight that it is multiplied by, each in parts of the largest
one. No channel reaches farther than the largest did: x_i / s_i = (x_i r_i)^(1 - alpha) <= 1.

Source: Xiao et al. 2022, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
equation 4, there for the linear layers of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeq.model.graph import Array
from edgeq.model.model import Model
from edgeq.registry.schema import Runtime
from edgeq.rewrites.links import Link, find_links, largest_read, reach_of, scaled
from edgeq.rewrites.rewrite import Asked, Channels, Chosen, Observed, Parameters, Rewrite

ALPHAS = (0.5, 0.7, 0.9)

SMALLEST = 0.01
"""Channels and weights below this part of the largest one count as it: what was hardly seen has no scale of its own."""


def factors(model: Model, link: Link, channels: Channels, alpha: float) -> Array:
    """By how much each channel is divided, float64 [channels]."""
    read = {reader.name: np.abs(model.state[reader.weight or ""].astype(np.float64)) for reader in link.readers}
    weights = largest_read(model, link, read)
    reach = np.maximum(reach_of(link, channels), SMALLEST)
    by_weights = np.maximum(weights / max(float(weights.max()), 1e-30), SMALLEST)
    found: Array = reach**alpha / by_weights ** (1 - alpha)
    return found


def smooth_links(model: Model, observed: Observed, alphas: Parameters) -> Model:
    """The model with links smoothed. It computes what it did, to rounding.

    Args:
        alphas: by graph node of a link's value.
    """
    links = [link for link in find_links(model) if link.value in alphas]
    return scaled(model, {i.value: factors(model, i, observed[i.value], alphas[i.value]) for i in links})


def _places(model: Model, runtimes: Sequence[Runtime]) -> dict[str, int]:
    return {link.value: link.axis for link in find_links(model)}


def _choose(asked: Asked) -> Chosen:
    from edgeq.rewrites.judged import best_of  # PyTorch takes seconds to import

    return best_of(asked, smooth_links, [dict.fromkeys(asked.observed, alpha) for alpha in ALPHAS])


SMOOTH_LINKS = Rewrite(
    "SmoothQuant between layers", "alpha", (0, 1), version=1, places=_places, choose=_choose, apply=smooth_links
)
