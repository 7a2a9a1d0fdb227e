"""What calibration found, as the cache keeps it."""

from __future__ import annotations

import numpy as np

from edgeq.cache import Entry
from edgeq.calibration.calibration import Calibration
from edgeq.calibration.histogram import Histogram
from edgeq.calibration.impact import Impact

CALIBRATION_VERSION = 2
IMPACT_VERSION = 1
"""To be raised whenever the arithmetic of these stages, or what is kept of them, changes."""

_FIELDS = ("exponent", "low", "high", "sample_low", "sample_high", "samples")


def pack_calibration(found: Calibration) -> Entry:
    names = list(found.histograms)
    return Entry(
        {
            "samples": found.samples,
            "histograms": {n: [getattr(found.histograms[n], f) for f in _FIELDS] for n in names},
            "patches": list(found.mean_patches),
        },
        {"counts": np.stack([found.histograms[n].counts for n in names])}
        | {f"patch{i}": patch for i, patch in enumerate(found.mean_patches.values())},
    )


def unpack_calibration(entry: Entry) -> Calibration:
    histograms = {}
    for counts, (name, fields) in zip(entry.arrays["counts"], entry.values["histograms"].items(), strict=True):
        histograms[name] = Histogram(counts=counts.copy(), **dict(zip(_FIELDS, fields, strict=True)))
    patches = {name: entry.arrays[f"patch{i}"] for i, name in enumerate(entry.values["patches"])}
    return Calibration(histograms, patches, entry.values["samples"])


def pack_impact(found: Impact) -> Entry:
    """Of the bins only those between the first and the last that hold anything."""
    arrays, first = {}, {}
    for i, (name, rows) in enumerate(found.gradients.items()):
        used = np.flatnonzero(rows.any(axis=0))
        begin, end = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
        first[name] = begin
        arrays[f"rows{i}"] = np.ascontiguousarray(rows[:, begin:end])
    centers = np.stack(list(found.centers.values())) if found.centers else np.zeros((0, 0), np.float32)
    return Entry({"first": first}, arrays | {"centers": centers})


def unpack_impact(entry: Entry) -> Impact:
    gradients, centers = {}, {}
    for i, ((name, begin), center) in enumerate(
        zip(entry.values["first"].items(), entry.arrays["centers"], strict=True)
    ):
        part = entry.arrays[f"rows{i}"]
        rows = np.zeros((len(part), len(center)), np.float32)
        rows[:, begin : begin + part.shape[1]] = part
        gradients[name], centers[name] = rows, center.copy()
    return Impact(gradients, centers)
