"""What calibration found, as the cache keeps it."""

from __future__ import annotations

import numpy as np
import torch

from edgeq.cache import Entry
from edgeq.calibration.calibrate import Calibration
from edgeq.calibration.histogram import Histogram
from edgeq.calibration.impact import Impact

CALIBRATION_VERSION = 1
IMPACT_VERSION = 1
"""To be raised whenever the arithmetic of these stages, or what is kept of them, changes."""

_FIELDS = ("exponent", "low", "high", "sample_low", "sample_high", "samples")


def pack_calibration(found: Calibration) -> Entry:
    names = list(found.histograms)
    return Entry(
        {
            "samples": found.samples,
            "histograms": {n: [getattr(found.histograms[n], f) for f in _FIELDS] for n in names},
            "means": list(found.mean_inputs),
        },
        {"counts": np.stack([found.histograms[n].counts.numpy() for n in names])}
        | {f"mean{i}": mean.contiguous().numpy() for i, mean in enumerate(found.mean_inputs.values())},
    )


def unpack_calibration(entry: Entry) -> Calibration:
    histograms = {}
    for counts, (name, fields) in zip(entry.arrays["counts"], entry.values["histograms"].items(), strict=True):
        histograms[name] = Histogram(counts=torch.from_numpy(counts.copy()), **dict(zip(_FIELDS, fields, strict=True)))
    means = {n: torch.from_numpy(entry.arrays[f"mean{i}"].copy()) for i, n in enumerate(entry.values["means"])}
    return Calibration(histograms, means, entry.values["samples"])


def pack_impact(found: Impact) -> Entry:
    """Of the bins only those between the first and the last that hold anything."""
    arrays, first = {}, {}
    for i, (name, rows) in enumerate(found.gradients.items()):
        used = np.flatnonzero(rows.numpy().any(axis=0))
        begin, end = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
        first[name] = begin
        arrays[f"rows{i}"] = np.ascontiguousarray(rows.numpy()[:, begin:end])
    centers = np.stack([c.numpy() for c in found.centers.values()]) if found.centers else np.zeros((0, 0), np.float32)
    return Entry({"first": first}, arrays | {"centers": centers})


def unpack_impact(entry: Entry) -> Impact:
    gradients, centers = {}, {}
    for i, ((name, begin), center) in enumerate(
        zip(entry.values["first"].items(), entry.arrays["centers"], strict=True)
    ):
        part = torch.from_numpy(entry.arrays[f"rows{i}"].copy())
        rows = torch.zeros(len(part), len(center))
        rows[:, begin : begin + part.shape[1]] = part
        gradients[name], centers[name] = rows, torch.from_numpy(center.copy())
    return Impact(gradients, centers)
