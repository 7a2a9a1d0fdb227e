"""ExecuTorch files: the writer. Their computations are handed to XNNPACK, which runs on CPUs of Arm and x86."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeq.cache import Cache, Entry, cached, content_key
from edgeq.errors import UnsupportedError
from edgeq.export.stored import Stored
from edgeq.installed import installed
from edgeq.model.model import Model
from edgeq.quantization.quantized import Quantized

VERSION = 1
"""To be raised whenever what is converted to changes."""


def convert(model: Model, cache: Cache) -> bytes:
    """The float file. Artefacts are lowered anew: what XNNPACK takes hangs on what is rounded."""

    def converted() -> bytes:
        from edgeq.export.executorch_lower import lowered

        return lowered(model)

    key = content_key(
        "float-executorch", VERSION, model=model.fingerprint, samples=model.example_hash,
        **installed("torch", "executorch"),
    )  # fmt: skip
    return cached(
        cache,
        "float-executorch",
        key,
        converted,
        lambda data: Entry(None, {"model": np.frombuffer(data, np.uint8)}),
        lambda entry: entry.arrays["model"].tobytes(),
    )


def write_float(model: Model, source: bytes, path: Path, cache: Cache) -> None:
    path.write_bytes(source)


def write(model: Model, quantized: Quantized, source: bytes, path: Path) -> None:
    from edgeq.export.executorch_lower import lowered
    from edgeq.export.executorch_stored import with_exact_biases

    for names in (quantized.assignment.weight_only, quantized.assignment.dynamic):
        for name, kernel in names.items():
            raise UnsupportedError(
                f"edgeq writes no {kernel.name} to ExecuTorch files",
                where=f"layer {name}",
                remedy="take the kernel out of the target file",
            )
    path.write_bytes(with_exact_biases(model, quantized, lowered(model, quantized)))


def read_back(model: Model, quantized: Quantized, source: bytes, path: Path) -> Stored:
    from edgeq.export.executorch_stored import read_executorch

    return read_executorch(model, path)


def labels(model: Model, source: bytes) -> dict[str, str]:
    return {group.name: group.name for group in model.groups}
