"""What a method gives, as it is kept, and the name of what it began with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.cache import Entry
from edgeq.methods.method import Change
from edgeq.numerics import QParams, Scheme
from edgeq.numerics.weights import QuantizedWeight
from edgeq.quantization.quantized import Quantized
from edgeq.registry.schema import arithmetic


def pack_change(change: Change) -> Entry:
    """With arrays by the numbers of the layers."""
    arrays: dict[str, NDArray[Any]] = {}
    layers = []
    for number, (layer, weight) in enumerate(change.weights.items()):
        layers.append([layer, weight.q.axis])
        parts = {"integers": weight.integers, "scale": weight.q.scale, "zero point": weight.q.zero_point}
        if weight.levels is not None:
            parts["levels"] = weight.levels
        if layer in change.biases:
            parts["bias"] = change.biases[layer]
        arrays |= {f"{number} {part}": array for part, array in parts.items()}
    scales = [[*version, float(scale)] for version, scale in change.scales.items()]
    return Entry({"layers": layers, "scales": scales}, arrays)


def unpack_change(entry: Entry, schemes: Mapping[str, Scheme]) -> Change:
    """
    Args:
        schemes: by layer.
    """
    weights: dict[str, QuantizedWeight] = {}
    biases: dict[str, NDArray[np.float32]] = {}
    for number, (layer, axis) in enumerate(entry.values["layers"]):
        integers, scale, zero = (entry.arrays[f"{number} {part}"] for part in ("integers", "scale", "zero point"))
        weights[layer] = QuantizedWeight(
            integers, QParams(schemes[layer], scale, zero, axis), entry.arrays.get(f"{number} levels")
        )
        if f"{number} bias" in entry.arrays:
            biases[layer] = entry.arrays[f"{number} bias"]
    scales = {(share, dtype): np.array(scale, np.float32) for share, dtype, scale in entry.values["scales"]}
    return Change(weights, biases, scales)


def content_of(quantized: Quantized) -> str:
    """Hexadecimal SHA-256 of all that decides what a quantized model computes. Kernels that no layer has do not: a plan
    is sought with fewer of them than it is followed with."""
    own = quantized.assignment
    kernels = {**own.kernels, **own.weight_only, **own.dynamic}
    choices = {name: kernel.name for name, kernel in kernels.items()}
    used = [kernel for kernel in quantized.runtime.kernels if kernel in kernels.values()]
    runtime = arithmetic(quantized.runtime.model_copy(update={"kernels": used}))
    decided = [runtime, choices, sorted(own.also_float)]
    found = hashlib.sha256(json.dumps(decided, sort_keys=True).encode())

    def add(name: object, q: QParams, *arrays: NDArray[Any]) -> None:
        found.update(repr((name, q.scheme)).encode())
        for array in (q.scale, q.zero_point, *arrays):
            found.update(np.ascontiguousarray(array).data)

    for version, tensor in (*quantized.activations.items(), *quantized.again.items()):
        add(version, tensor.q)
    for layer, weight in quantized.weights.items():
        levels = [] if weight.levels is None else [weight.levels]
        add(layer, weight.q, weight.integers, quantized.biases[layer], *levels)
    return found.hexdigest()
