"""Tries how much SmoothQuant helps (see `edgeq.rewrites.smooth_quant`).

What is tried is simulated: what the layers read is rounded to 8 bits, and so are their weights; all else is float. So
it does not depend on a runtime. Maxima are taken from some of the calibration samples, alphas are chosen on others, and
what was chosen is kept if it also helps on samples that had no part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from edgeq.model.batches import batches, side_by_side
from edgeq.model.model import Model
from edgeq.numerics import QParams, Scheme, qparams, sqnr_db
from edgeq.numerics.fake import fake_quantize
from edgeq.progress import Progress, Silent
from edgeq.rewrites.rewrite import WORTH_DB, Chosen, Observed, Split
from edgeq.rewrites.sites import Site
from edgeq.rewrites.smooth_quant import factors

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""The paper takes 0.5 for most models, and up to 0.8 where outliers are strong."""

_READ, _WEIGHT = Scheme("uint8", "asymmetric"), Scheme("int8", "symmetric", "channel", narrow=True)


def choose(
    model: Model,
    sites: Sequence[Site],
    observed: Observed,
    parts: Split,
    progress: Progress | None = None,
) -> Chosen:
    """An alpha for the values of each kind, or none: kind after kind, that which gives the best outputs.

    Args:
        observed: by graph node of a site's value, on `parts.observed`.
    """
    progress = progress or Silent()
    tried = _Trial(model, sites, observed, parts.tried)
    alphas: dict[str, float] = {}
    kinds = list(dict.fromkeys((site.kind, bool(site.divided)) for site in sites))
    best = tried.sqnr([alphas])[0]
    for number, kind in enumerate(kinds):
        values = [site.value for site in sites if (site.kind, bool(site.divided)) == kind]
        options = [alphas | dict.fromkeys(values, alpha) for alpha in ALPHAS]
        results = tried.sqnr(options)
        first = int(np.argmax(results))
        if results[first] >= best + WORTH_DB:
            best, alphas = results[first], options[first]
        progress.step(number + 1, len(kinds) + 1)
    if not alphas:
        return Chosen({}, [best], [best])
    before, after = _Trial(model, sites, observed, parts.held_out).sqnr([{}, alphas])
    progress.step(len(kinds) + 1, len(kinds) + 1)
    return Chosen(alphas, [before], [after])


class _Trial:
    """Some samples, what the float model answers to them, and what it answers with rounded linear layers."""

    def __init__(
        self, model: Model, sites: Sequence[Site], observed: Observed, inputs: Mapping[str, np.ndarray]
    ) -> None:
        self.model, self.sites, self.observed = model, sites, observed
        self.batches = list(batches(model, inputs))
        self.floats = list(side_by_side(lambda batch: model.run([batch])[0], self.batches))

    def sqnr(self, options: Sequence[Mapping[str, float]]) -> list[float]:
        """Of the outputs, in dB, the mean over them, for each choice of alphas."""
        return list(side_by_side(self._one, options))

    def _one(self, alphas: Mapping[str, float]) -> float:
        constants: dict[str, torch.Tensor] = {}
        reads: dict[tuple[str, str], list[Callable[[Any], Any] | None]] = {}
        groups = {group.name: group for group in self.model.groups}
        for site in self.sites:
            low, high = self.observed[site.value][:2]
            divisor = np.ones_like(low)
            if site.value in alphas:
                divisor = factors(self.model, site, self.observed[site.value], alphas[site.value])
            q = qparams((low / divisor).min(), (high / divisor).max(), _READ)
            read = _divided_and_rounded(torch.from_numpy(1 / divisor), q)
            for layer in site.layers:
                group = groups[layer]
                weight = self.model.state[group.weight or ""] * divisor
                rounded = fake_quantize(torch.from_numpy(weight), qparams(weight.min(1), weight.max(1), _WEIGHT, 0))
                constants[self.model.nodes[group.root].args[1].name] = rounded
                reads[group.root, site.value] = [read]
        found = [self.model.run([batch], None, constants, reads)[0] for batch in self.batches]
        every = zip(zip(*self.floats, strict=True), zip(*found, strict=True), strict=True)
        joined = [(torch.cat(one), torch.cat(other)) for one, other in every if one[0].is_floating_point()]
        if not joined:
            return 0.0
        return float(np.mean([sqnr_db(one.numpy(), other.numpy()) for one, other in joined]))


def _divided_and_rounded(inverse: torch.Tensor, q: QParams) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: fake_quantize(x * inverse, q)
