"""How much of the evaluation data an emulated device is asked for."""

from __future__ import annotations

import numpy as np

from edgeq.data.dataset import Dataset, make_dataset
from edgeq.devices import Device
from edgeq.evaluation.metric import in_groups

EMULATED_SAMPLES = 100
"""Evaluation samples on an emulated device, which runs a hundred times slower than a real one."""


def for_device(data: Dataset, device: Device) -> tuple[Dataset, str]:
    """What a device is judged on: all samples, or evenly spread ones where it is emulated; and what there is to say."""
    if not device.emulated or device.quick or len(data) <= EMULATED_SAMPLES:
        return data, ""
    groups = np.linspace(0, len(data) // data.group - 1, EMULATED_SAMPLES // data.group).round().astype(int)
    kept = in_groups(groups, data.group)
    few = make_dataset(
        {name: array[kept] for name, array in data.inputs.items()},
        data.specs,
        labels=None if data.labels is None else data.labels[kept],
        source=data.source,
        group=data.group,
    )
    return few, f"{device.name} is emulated: judged on {len(few)} of {len(data)} evaluation samples"
