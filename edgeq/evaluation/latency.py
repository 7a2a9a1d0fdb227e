"""Latency from runs of the artefact and its float baselines that took turns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeq.errors import DeviceError
from edgeq.records.schema import Baseline, Interval, Latency, Speed

QUANTILES = tuple(range(0, 101, 5))
"""Percentiles kept in the report for drawing the distribution."""

_RESAMPLES = 1000


def summarise(runs: ArrayLike) -> Latency:
    """Median and tail of one variant's runs.

    Args:
        runs: [R] seconds a call, warm-up left out.

    Raises:
        DeviceError: no runs, or a time that is not a positive number.
    """
    seconds = _seconds(runs)
    p50, p90, p99 = (float(v) for v in np.percentile(seconds, [50, 90, 99]))
    quantiles = [float(v) for v in np.percentile(seconds, QUANTILES)]
    return Latency(p50=p50, p90=p90, p99=p99, runs=int(seconds.size), quantiles=quantiles)


def speed(
    runs: Mapping[str, ArrayLike],
    *,
    threads: int,
    sizes: Mapping[str, int] | None = None,
    artifact: str = "artifact",
    seed: int = 0,
) -> Speed:
    """The artefact beside every float baseline.

    The ratio is the median of the artefact over the median of the baseline. It is the one that a reader can check
    from the printed medians, and because the runs take turns, a slow spell of the machine touches both medians alike.
    A median of per-round ratios would cancel slow drift a little better, but a call that lands on a busy moment
    would move two of its terms. Whether the ratio is certain is told by an interval from resampling whole rounds.

    Args:
        runs: by variant, [R] seconds a call; run r of each variant belongs to the same round.
        threads: threads that every variant was given.
        sizes: bytes of each baseline's files.
        artifact: the key of the artefact in `runs`.
        seed: of the resampling.

    Returns:
        The comparison; without baselines in `runs` its `best` is empty.

    Raises:
        DeviceError: the artefact has no runs, a time is not a positive number, or the rounds do not match.
    """
    if artifact not in runs:
        raise DeviceError(f"no runs of {artifact!r} came back, only of {sorted(runs)}")
    own = _seconds(runs[artifact])
    baselines = []
    for name, other in runs.items():
        if name == artifact:
            continue
        theirs = _seconds(other)
        if theirs.size != own.size:
            raise DeviceError(f"{name!r} has {theirs.size} runs, the artefact {own.size}: they did not take turns")
        ratio = float(np.median(own) / np.median(theirs))
        baselines.append(
            Baseline(
                name=name,
                latency=summarise(theirs),
                ratio=ratio,
                size_bytes=(sizes or {}).get(name, 0),
                ratio_interval=_ratio_interval(own, theirs, ratio, seed),
            )
        )
    best = min(baselines, key=lambda b: b.latency.p50).name if baselines else ""
    return Speed(threads=threads, artifact=summarise(own), baselines=baselines, best=best)


def _seconds(runs: ArrayLike) -> NDArray[np.float64]:
    seconds = np.asarray(runs, dtype=np.float64).reshape(-1)
    if seconds.size == 0:
        raise DeviceError("no latency runs came back from the device")
    if not np.all(np.isfinite(seconds)) or float(seconds.min()) <= 0:
        raise DeviceError("the device reported a latency that is not a positive number")
    return seconds


def _ratio_interval(own: NDArray[np.float64], theirs: NDArray[np.float64], ratio: float, seed: int) -> Interval | None:
    if own.size < 10:
        return None
    rounds = np.random.default_rng(seed).integers(0, own.size, (_RESAMPLES, own.size))
    ratios = np.median(own[rounds], axis=1) / np.median(theirs[rounds], axis=1)
    low, high = (float(v) for v in np.percentile(ratios, [2.5, 97.5]))
    method = f"bootstrap over {own.size} rounds, percentiles of {_RESAMPLES} resamples"
    return Interval(value=ratio, low=min(low, ratio), high=max(high, ratio), method=method)
