"""What an NPU will not run of a network, told before the long work: its compiler is asked for a file of the same
structure, whose ranges are those of the model's examples alone."""

from __future__ import annotations

from edgeq.cache import Cache, Entry, cached, content_key
from edgeq.calibration.calibrate import calibrate
from edgeq.export.artifact import Exporter
from edgeq.export.npu import compiled
from edgeq.export.vela import version
from edgeq.files import scratch_folder
from edgeq.installed import installed
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.records.schema import OnNpu
from edgeq.registry.schema import Runtime, VelaSystem, arithmetic

AHEAD_VERSION = 1
"""To be raised whenever other files are written for the same structure."""


def on_npu_ahead(model: Model, runtime: Runtime, system: VelaSystem, cache: Cache) -> OnNpu:
    """What the compiler makes of the network with every layer in its preferred kernel. What runs where is what it will
    be; bytes and cycles may differ a little, since weights pack otherwise.

    Raises:
        MissingExtraError: the compiler or the converter is not installed.
        UnsupportedError: one of them cannot take the network.
    """

    def asked() -> OnNpu:
        inputs = {s.name: x if s.batched else x[None] for s, x in zip(model.inputs, model.example, strict=True)}
        quantized = quantize_model(model, runtime, calibrate(model, inputs), correct_bias=False)
        with scratch_folder() as scratch:
            exporter = Exporter(model, scratch, cache)
            (path,) = exporter.write(quantized, scratch)
            return compiled(model, exporter.labels(runtime.format), path, system)

    key = content_key(
        "npu",
        AHEAD_VERSION,
        model=model.fingerprint,
        example=model.example_hash,
        runtime=arithmetic(runtime),
        system=system.model_dump(),
        compiler=version(),
        **installed("torch", "litert-torch"),
    )
    return cached(
        cache,
        "npu",
        key,
        asked,
        lambda found: Entry(found.model_dump()),
        lambda entry: OnNpu.model_validate(entry.values),
    )
