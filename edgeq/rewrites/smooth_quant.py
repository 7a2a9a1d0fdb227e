"""SmoothQuant: what a linear layer reads is divided by a factor for each channel, and its weights are multiplied by it.

In transformers a few channels are tens of times larger than all others. One scale for all of them leaves the others a
few steps. The function stays what it was:

    Y = (X diag(s)^-1) (diag(s) W),    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)

The division costs nothing where it can be done to the weights of what computes X: the gain and bias of a normalisation
that nothing else reads, or the layer that is multiplied by a gate. Elsewhere it is a product of its own, in float.

Source: Xiao et al. 2022, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
equations 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgeq.model.model import Model
from edgeq.model.scaled import product_of
from edgeq.registry.schema import Runtime
from edgeq.rewrites.rewrite import Asked, Channels, Chosen, Observed, Parameters, Rewrite
from edgeq.rewrites.sites import Site, divided, find_sites, weights_of

SMALLEST = 1e-5
"""Maxima below this count as it: a channel that is always zero has no scale of its own."""


def factors(model: Model, site: Site, channels: Channels, alpha: float) -> NDArray[np.float32]:
    """By how much each channel is divided: equation 4, float32 [channels].

    Args:
        channels: of the value on calibration data.
        alpha: from 0, which looks at the weights alone, to 1, which looks at the value alone.
    """
    weights = np.concatenate([model.state[weight] for weight in weights_of(model, site)])
    largest = np.maximum(channels.largest.astype(np.float64), SMALLEST)
    by_weights = np.maximum(np.abs(weights).max(axis=0).astype(np.float64), SMALLEST)
    smooth: NDArray[np.float32] = (largest**alpha / by_weights ** (1 - alpha)).astype(np.float32)
    return smooth


def smooth(model: Model, observed: Observed, alphas: Parameters) -> Model:
    """The model with these values divided by their factors. It computes what it did, to rounding.

    Args:
        observed: by graph node of a value, on calibration data.
        alphas: by graph node of a value.
    """
    sites = [site for site in find_sites(model) if site.value in alphas]
    divisors = {site.value: factors(model, site, observed[site.value], alphas[site.value]) for site in sites}
    levelled = {site.value if site.divided else product_of(site.value) for site in sites}
    return replace(divided(model, sites, divisors), levelled=model.levelled | levelled)


def _places(model: Model, runtimes: Sequence[Runtime]) -> dict[str, int]:
    """None where no runtime computes linear layers on integers."""
    kernels = [kernel for runtime in runtimes for kernel in runtime.kernels if "linear" in kernel.ops]
    return {site.value: -1 for site in find_sites(model)} if any(not kernel.weight_only for kernel in kernels) else {}


def _choose(asked: Asked) -> Chosen:
    from edgeq.rewrites.alphas import choose  # PyTorch takes seconds to import

    return choose(asked.model, find_sites(asked.model), asked.observed, asked.samples, asked.progress)


SMOOTH_QUANT = Rewrite("SmoothQuant", "alpha", (0, 1), version=1, places=_places, choose=_choose, apply=smooth)
