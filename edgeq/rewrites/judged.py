"""Judges rewrites by the integers that runtimes have: the network is calibrated and quantized for each of them, and
simulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgeq.calibration.calibrate import calibrate
from edgeq.calibration.calibration import Calibration
from edgeq.calibration.gradients import measure_impact
from edgeq.calibration.impact import Impact
from edgeq.lowering.assign import assign
from edgeq.methods.quantize import quantize_model
from edgeq.model.batches import batches, side_by_side
from edgeq.model.model import Model
from edgeq.quantization.simulate import sqnr_of
from edgeq.registry.schema import Runtime
from edgeq.rewrites.price import price_of
from edgeq.rewrites.rewrite import Asked, Chosen, Inputs, Observed, Parameters

CALIBRATED, WEIGHED = 32, 8
"""Samples that ranges are of, and those that tell what errors of a tensor do to the outputs: enough to compare networks
by. Without the latter, ranges are worse than those of a build, and whatever narrows them looks good."""

Seen = tuple[Calibration, Impact]

Way = tuple[Runtime, Mapping[str, str] | None]
"""A runtime, and the choice of each layer; its preferred kernels if None."""


def best_of(
    asked: Asked,
    apply: Callable[[Model, Observed, Parameters], Model],
    options: Sequence[dict[str, float]],
    ways: Sequence[Way] | None = None,
) -> Chosen:
    """The parameters that leave most of the outputs on `asked.samples.tried`, less what they cost
    (`edgeq.rewrites.price`); none where nothing leaves more than the model as it is.

    Args:
        ways: every runtime with its preferred kernels, if not given.
    """
    if not options:
        return Chosen({}, [], [])
    ways = [(runtime, None) for runtime in asked.runtimes] if ways is None else ways
    models = [asked.model, *(apply(asked.model, asked.observed, option) for option in options)]
    calibrations = [calibrated(model, asked.samples.observed, ways) for model in models]
    tried = []
    for number, (model, calibration) in enumerate(zip(models, calibrations, strict=True)):
        found = np.mean(sqnrs(model, calibration, asked.samples.tried, ways))
        tried.append(found - price_of(asked.model, model))
        asked.progress.step(number + 1, len(models))
    best = int(np.argmax(tried))
    if not best:
        return Chosen({}, [], [])
    before, after = (sqnrs(models[i], calibrations[i], asked.samples.held_out, ways) for i in (0, best))
    return Chosen(options[best - 1], before, after)


def calibrated(model: Model, observed: Inputs, ways: Sequence[Way]) -> Seen:
    """What ranges are chosen by, from some of the samples."""

    def some(most: int) -> Inputs:
        count = len(next(iter(observed.values())))
        kept = np.linspace(0, count - 1, min(count, most)).round().astype(int)
        return {name: array[kept] for name, array in observed.items()}

    found = calibrate(model, some(CALIBRATED))
    tensors = {name for runtime, choices in ways for name in assign(model, runtime, found.histograms, choices).tensors}
    return found, measure_impact(model, some(WEIGHED), found.histograms, sorted(tensors))


def sqnrs(model: Model, seen: Seen, inputs: Inputs, ways: Sequence[Way]) -> list[float]:
    """SQNR of the outputs in dB, simulated, for each way."""
    floats = list(side_by_side(lambda batch: model.run([batch])[0], batches(model, inputs)))
    every = (quantize_model(model, runtime, *seen, choices=choices) for runtime, choices in ways)
    return [sqnr_of(model, quantized, inputs, floats) for quantized in every]
