"""Calibration data for those who have none: samples that are made of nothing but the model, and say so."""

from __future__ import annotations

from edgeq.cache import Cache, Entry, cached, content_key
from edgeq.data.dataset import Dataset, make_dataset
from edgeq.data.load import SYNTHETIC
from edgeq.installed import installed
from edgeq.model.model import Model
from edgeq.progress import Clock

VERSION = 1
"""To be raised whenever the arithmetic of `edgeq.calibration.zeroq`, or what is kept of it, changes."""

SAMPLES = 64
SEED = 0


def synthetic_data(model: Model, clock: Clock, cache: Cache) -> Dataset:
    """Samples whose statistics are those that the model's batch norms have kept of its training data.

    Raises:
        UsageError: see `edgeq.calibration.zeroq.synthesize`.
    """

    def made() -> Entry:
        from edgeq.calibration.zeroq import synthesize

        inputs, divergence = synthesize(model, SAMPLES, SEED, steps)
        names = [spec.name for spec in model.inputs]
        return Entry(divergence, dict(zip(names, inputs, strict=True)))

    with clock.stage("synthesize") as steps:
        key = content_key(
            "synthetic",
            VERSION,
            model=model.fingerprint,
            source=model.sha256,  # batch norms are folded in the other
            samples=SAMPLES,
            seed=SEED,
            **installed("torch"),
        )
        entry = cached(cache, "synthetic", key, made, lambda entry: entry, lambda entry: entry)
    note = (
        "the calibration data is synthetic, made from the model's own batch-norm statistics "
        f"({entry.values:.2g} nats from them): real samples show ranges that these may miss"
    )
    recipe = f"ZeroQ {VERSION}, {SAMPLES} samples, seed {SEED}"
    return make_dataset(entry.arrays, model.inputs, labels=None, source=SYNTHETIC, notes=[note], recipe=recipe)
