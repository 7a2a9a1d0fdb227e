"""Judges rewrites by the integers that runtimes have: the network is calibrated and quantized for each of them, and
simulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgeq.calibration.calibrate import calibrate
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.quantization.simulate import sqnr_of
from edgeq.registry.schema import Runtime
from edgeq.rewrites.rewrite import Asked, Chosen, Inputs, Observed, Parameters

Way = tuple[Runtime, Mapping[str, str] | None]
"""A runtime, and the choice of each layer; its preferred kernels if None."""


def best_of(
    asked: Asked,
    apply: Callable[[Model, Observed, Parameters], Model],
    options: Sequence[dict[str, float]],
    ways: Sequence[Way] | None = None,
) -> Chosen:
    """The parameters that leave most of the outputs on `asked.samples.tried`; none where nothing leaves more than the
    model as it is.

    Args:
        ways: every runtime with its preferred kernels, if not given.
    """
    ways = [(runtime, None) for runtime in asked.runtimes] if ways is None else ways
    samples = asked.samples
    models = [asked.model, *(apply(asked.model, asked.observed, option) for option in options)]
    judged = []
    for number, model in enumerate(models):
        judged.append(sqnrs(model, samples.observed, (samples.tried, samples.held_out), ways))
        asked.progress.step(number + 1, len(models))
    best = int(np.argmax([np.mean(tried) for tried, _ in judged]))
    return Chosen(options[best - 1] if best else {}, judged[0][1], judged[best][1])


def sqnrs(model: Model, observed: Inputs, parts: Sequence[Inputs], ways: Sequence[Way]) -> list[list[float]]:
    """SQNR of the outputs in dB, simulated: for each part of the samples, that of each way.

    Args:
        observed: the samples that ranges are of.
    """
    calibration = calibrate(model, observed)
    found = [quantize_model(model, runtime, calibration, choices=choices) for runtime, choices in ways]
    return [[sqnr_of(model, quantized, part) for quantized in found] for part in parts]
