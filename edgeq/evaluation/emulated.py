"""How much of the evaluation data an emulated device is asked for."""

from __future__ import annotations

import numpy as np

from edgeq.data.dataset import Dataset, make_dataset
from edgeq.devices import Device

EMULATED_SAMPLES = 100
"""Evaluation samples on an emulated device, which runs a hundred times slower than a real one."""


def for_device(data: Dataset, device: Device) -> tuple[Dataset, str]:
    """What a device is judged on: all samples, or evenly spread ones where it is emulated; and what there is to say."""
    if not device.emulated or device.quick or len(data) <= EMULATED_SAMPLES:
        return data, ""
    kept = np.linspace(0, len(data) - 1, EMULATED_SAMPLES).round().astype(int)
    few = make_dataset(
        {name: array[kept] for name, array in data.inputs.items()},
        data.specs,
        labels=None if data.labels is None else data.labels[kept],
        source=data.source,
    )
    return few, f"{device.name} is emulated: judged on {EMULATED_SAMPLES} of {len(data)} evaluation samples"
