"""A case's model with the values smoothed that are hard to round: between loading and calibrating."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from edgeq.cache import Cache, Entry, cached, content_key
from edgeq.case import Loaded, Smooth
from edgeq.installed import installed
from edgeq.progress import Clock
from edgeq.quantization.smooth_quant import Extremes, Site, find_sites, smooth
from edgeq.registry.schema import Runtime

VERSION = 1
"""To be raised whenever the arithmetic of this stage, or what is kept of it, changes."""

FEWEST = 8
"""Calibration samples below which nothing could be held out that says more than chance."""


def smoothed(
    loaded: Loaded, runtimes: Sequence[Runtime], wanted: Smooth | Mapping[str, float], clock: Clock, cache: Cache
) -> Loaded:
    """What was loaded, its model smoothed where that helps on calibration samples that had no part in the choice.

    Nothing is computed where there is nothing to smooth, as in a convolutional network, or where no runtime computes
    linear layers on integers.

    Args:
        wanted: `auto`, `off`, or the alphas of a plan by graph node.

    Raises:
        UsageError: the alphas are of values that cannot be smoothed.
    """
    model, data = loaded.model, loaded.calibration
    if wanted == "off" or not wanted:
        return loaded
    if not isinstance(wanted, str):
        return replace(loaded, model=smooth(model, _observed(loaded, find_sites(model), cache, clock), wanted))
    kernels = [kernel for runtime in runtimes for kernel in runtime.kernels if "linear" in kernel.ops]
    sites = find_sites(model) if any(not kernel.weight_only for kernel in kernels) else ()
    if not sites or len(data) < FEWEST:
        return loaded
    if not model.program.calling:
        note = f"SmoothQuant is not tried, since edgeq cannot write this program anew: {model.program.wordless}"
        return replace(loaded, warnings=[*loaded.warnings, note])
    extremes = _observed(loaded, sites, cache, clock)

    def chosen() -> tuple[dict[str, float], float, float]:
        from edgeq.quantization.alphas import choose, split

        return choose(model, sites, extremes, split(data.inputs), steps)

    with clock.stage("smooth") as steps:
        alphas, before, after = cached(
            cache,
            "smoothing",
            content_key("smoothing", VERSION, model=model.fingerprint, data=data.sha256, **installed("torch")),
            chosen,
            lambda found: Entry(list(found)),
            lambda entry: tuple(entry.values),
        )
        if not alphas:
            return loaded
        kinds = sorted(set(alphas.values()))
        note = (
            f"SmoothQuant on what {_layers(sites, alphas)} linear layers read, alpha {' and '.join(map(str, kinds))}: "
            f"{before:.1f} to {after:.1f} dB with 8 bits, simulated on calibration samples that were held out"
        )
        clock.progress.note(note)
        return replace(loaded, model=smooth(model, extremes, alphas), warnings=[*loaded.warnings, note])


def _layers(sites: Sequence[Site], alphas: Mapping[str, float]) -> int:
    return sum(len(site.layers) for site in sites if site.value in alphas)


def _observed(loaded: Loaded, sites: Sequence[Site], cache: Cache, clock: Clock) -> dict[str, Extremes]:
    model, data = loaded.model, loaded.calibration
    values = [site.value for site in sites]

    def observed() -> dict[str, Extremes]:
        from edgeq.quantization.alphas import observe_channels, split

        return observe_channels(model, split(data.inputs).observed, values)

    def pack(found: Mapping[str, Extremes]) -> Entry:
        return Entry(values, {str(i): np.stack(found[value]) for i, value in enumerate(values)})

    with clock.stage("channels"):
        key = content_key(
            "channels", VERSION, model=model.fingerprint, data=data.sha256, values=values, **installed("torch")
        )
        return cached(
            cache,
            "channels",
            key,
            observed,
            pack,
            lambda entry: {value: Extremes(*entry.arrays[str(i)]) for i, value in enumerate(entry.values)},
        )
