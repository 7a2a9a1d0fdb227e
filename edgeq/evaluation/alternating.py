"""Compares the speed of artefacts of different runtimes.

One process runs one runtime, so that such artefacts cannot take turns call by call. A machine's speed drifts over
minutes, by more than runtimes differ; so they take turns process by process, a fraction of a second each.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgeq.devices import Candidate, Device, Inputs
from edgeq.progress import Progress

TURNS = 12
"""Processes of each artefact, an even number. On a machine whose neighbours take their share for seconds at a time,
ratios of float models had a standard deviation of 5 to 7 % with six turns, and of 2 to 4 % with twelve."""

SECONDS = 0.25
CALLS = 50
WARMUP = 3


def alternating(
    device: Device, artifacts: Mapping[str, tuple[Candidate, Inputs]], progress: Progress, *, threads: int
) -> dict[str, float]:
    """Seconds of one call of each artefact: its ratio to the first one, times the median of the first one.

    Every other turn goes backwards. The geometric mean of a ratio over two turns is free of a steady drift; of such
    pairs the median is taken.

    Args:
        artifacts: by name, each with one sample.

    Raises:
        DeviceError: the device is emulated, a runtime refused or crashed.
    """
    found: dict[str, list[float]] = {name: [] for name in artifacts}
    for turn in range(TURNS):
        for name in list(artifacts)[:: 1 if turn % 2 == 0 else -1]:
            candidate, inputs = artifacts[name]
            runs = device.latency(
                {name: candidate}, inputs, rounds=CALLS, seconds=SECONDS, fewest=5, warmup=WARMUP, threads=threads
            )
            found[name].append(float(np.median(runs[name])))
        progress.step(turn + 1, TURNS)
    first = np.array(found[next(iter(found))])
    logs = {name: np.log(np.array(seconds) / first).reshape(-1, 2).mean(axis=1) for name, seconds in found.items()}
    return {name: float(np.exp(np.median(log)) * np.median(first)) for name, log in logs.items()}
