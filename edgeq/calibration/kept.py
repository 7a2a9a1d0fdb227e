"""What calibration found, as the cache keeps it."""

from __future__ import annotations

import numpy as np

from edgeq.cache import Entry
from edgeq.calibration.calibration import Calibration
from edgeq.calibration.histogram import HALF, Histogram
from edgeq.calibration.impact import Impact

CALIBRATION_VERSION = 4
IMPACT_VERSION = 2
"""To be raised whenever the arithmetic of these stages, or what is kept of them, changes."""

_FIELDS = ("exponent", "low", "high", "sample_low", "sample_high", "samples", "endless")


def pack_calibration(found: Calibration) -> Entry:
    names = list(found.histograms)
    return Entry(
        {
            "samples": found.samples,
            "histograms": {n: [getattr(found.histograms[n], f) for f in _FIELDS] for n in names},
            "patches": list(found.mean_patches),
        },
        {"counts": np.array([found.histograms[n].counts for n in names], np.int64).reshape(-1, 2 * HALF)}
        | {f"patch{i}": patch for i, patch in enumerate(found.mean_patches.values())},
    )


def unpack_calibration(entry: Entry) -> Calibration:
    histograms = {}
    for counts, (name, fields) in zip(entry.arrays["counts"], entry.values["histograms"].items(), strict=True):
        histograms[name] = Histogram(counts=counts.copy(), **dict(zip(_FIELDS, fields, strict=True)))
    patches = {name: entry.arrays[f"patch{i}"] for i, name in enumerate(entry.values["patches"])}
    return Calibration(histograms, patches, entry.values["samples"])


def pack_impact(found: Impact) -> Entry:
    rows = {f"rows{i}": gradients for i, gradients in enumerate(found.gradients.values())}
    centers = np.concatenate([np.zeros(0, np.float32), *found.centers.values()])
    return Entry(list(found.gradients), rows | {"centers": centers})


def unpack_impact(entry: Entry) -> Impact:
    gradients = {name: entry.arrays[f"rows{i}"] for i, name in enumerate(entry.values)}
    ends = np.cumsum([rows.shape[1] for rows in gradients.values()])
    centers = np.split(entry.arrays["centers"], ends)  # behind the last end there is nothing
    return Impact(gradients, dict(zip(gradients, centers, strict=False)))
