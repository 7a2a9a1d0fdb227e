"""The scaling of AWQ: of what a linear layer reads, channels that are large on average have their weights multiplied
before these are rounded to few bits, and are divided themselves.

    s = mean|X|^alpha,    alpha = argmin |Q(W diag(s)) diag(s)^-1 X - W X|,    0 <= alpha <= 1

A weight's error then counts less where what it is multiplied by is large. Each place has the alpha that is best for the
layers that read it, over all ways that the runtimes have to store weights of so few bits.

It is done where the division costs nothing: in a normalisation's gain, or in the layer that a gate multiplies. The
factors are divided by the geometric mean of the largest and the smallest, as in the authors' code. `awq-clip` is the
other half of AWQ (see `edgeq.methods`).

Source: Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
arXiv 2306.00978, equations 4 and 5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeq.model.model import Model
from edgeq.registry.schema import Kernel, Runtime
from edgeq.rewrites.few_bits import few_bits, fitting, rounded, with_few_bits
from edgeq.rewrites.rewrite import Asked, Channels, Chosen, Observed, Parameters, Rewrite
from edgeq.rewrites.sites import Site, divided, find_sites, weights_of

GRID = tuple(step / 20 for step in range(20))
"""Alphas, as many as the authors try."""

POSITIONS = 256
"""Rows of a layer's input that its error is measured on."""

SMALLEST = 1e-4
"""Means below this part of the largest one count as it."""


def factors(channels: Channels, alpha: float) -> NDArray[np.float32]:
    """By how much each channel is divided: equation 5, float32 [channels]."""
    mean = np.maximum(channels.magnitude.astype(np.float64), SMALLEST * max(float(channels.magnitude.max()), 1e-30))
    found = mean**alpha
    scale: NDArray[np.float32] = (found / np.sqrt(found.max() * found.min())).astype(np.float32)
    return scale


def scale_salient(model: Model, observed: Observed, alphas: Parameters) -> Model:
    """The model with these values divided by their factors. It computes what it did, to rounding.

    Args:
        alphas: by graph node of a value.
    """
    return divided(model, find_sites(model), {v: factors(observed[v], alpha) for v, alpha in alphas.items()})


def best_alpha(
    model: Model, site: Site, kernels: Sequence[Kernel], channels: Channels, rows: NDArray[np.float32]
) -> float:
    """The alpha of equation 4: 0 changes nothing.

    Args:
        rows: of the value, [positions, channels].
    """
    weights = [model.state[name].astype(np.float32) for name in weights_of(model, site)]
    wanted = [w @ rows.T for w in weights]

    def error(alpha: float) -> float:
        divisor = factors(channels, alpha)
        total = 0.0
        for weight, outputs in zip(weights, wanted, strict=True):
            power = max(float(np.square(outputs).sum()), 1e-30)
            for kernel in kernels:
                real = rounded(weight * divisor, kernel) / divisor
                total += float(np.square(real @ rows.T - outputs).sum()) / power
        return total

    return min(GRID, key=error)


def _free_sites(model: Model) -> list[Site]:
    return [site for site in find_sites(model) if site.divided]


def _places(model: Model, runtimes: Sequence[Runtime]) -> dict[str, int]:
    return {site.value: -1 for site in _free_sites(model)} if few_bits(runtimes) else {}


def _choose(asked: Asked) -> Chosen:
    from edgeq.rewrites.channels import rows_of  # PyTorch takes seconds to import
    from edgeq.rewrites.judged import best_of

    model, sites = asked.model, _free_sites(asked.model)
    rows = rows_of(model, asked.samples.observed, [site.value for site in sites], POSITIONS)
    alphas = {}
    for site in sites:
        kernels = fitting(model, asked.runtimes, weights_of(model, site))
        alphas[site.value] = best_alpha(model, site, kernels, asked.observed[site.value], rows[site.value])
    alphas = {value: alpha for value, alpha in alphas.items() if alpha}
    ways = with_few_bits(model, asked.runtimes, {layer for site in sites for layer in site.layers})
    return best_of(asked, scale_salient, [alphas] if alphas else [], ways)


AWQ = Rewrite("AWQ", "alpha", (0, 1), version=1, places=_places, choose=_choose, apply=scale_salient)
