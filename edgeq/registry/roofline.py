"""What a device takes for so much work, by the figures of its profile: a roofline for seconds, sums for joules.

    seconds = max(multiply-accumulates / rate of their type, bytes / bandwidth)
    joules  = multiply-accumulates * energy of one of their type + bytes * energy of one

A type is that of activations and weights: what a device does with 4-bit weights beside 8-bit activations, be it twice
as fast or widening them first, cannot be told from what it does with 8 bits, and is unknown unless the profile says.
No cache keeps anything, and every kernel reaches the peak: the seconds are what the device cannot go below where its
memory is as far as the profile says, and are good for comparing plans of one model.

Source: S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for multicore
architectures", Communications of the ACM 52(4), 2009.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeq.registry.figures import BYTES_A_SECOND, HERTZ, JOULES, MACS_A_SECOND, PER_CORE, PER_DEVICE
from edgeq.registry.schema import Figure, Profile

WIDTHS: Mapping[str, float] = {
    "int2": 0.25,
    "int4": 0.5,
    "int8": 1.0,
    "int16": 2.0,
    "float16": 2.0,
    "bfloat16": 2.0,
    "float32": 4.0,
}
"""Bytes of a number."""


@dataclass(frozen=True)
class Work:
    """What a layer has to do for one sample.

    Attributes:
        macs: multiply-accumulates, of numbers of `dtype`: see `edgeq.registry.figures.TYPES`.
        weights: bytes of weights and bias.
        values: bytes that it reads and writes.
    """

    macs: int
    dtype: str
    weights: float
    values: float


@dataclass(frozen=True)
class Roofline:
    """A device's seconds: multiply-accumulates a second by type, bytes a second, and those of a bus that only weights
    come over, where there is one."""

    rates: Mapping[str, float]
    bandwidth: float
    weight_bandwidth: float | None = None

    @property
    def of_byte(self) -> float:
        return 1 / self.bandwidth

    def price(self, work: Work) -> float | None:
        """None where the profile does not know how fast the device multiplies this type."""
        if work.macs and work.dtype not in self.rates:
            return None
        compute = work.macs / self.rates[work.dtype] if work.macs else 0.0
        if self.weight_bandwidth is None:
            return max(compute, (work.values + work.weights) / self.bandwidth)
        return max(compute, work.values / self.bandwidth, work.weights / self.weight_bandwidth)


@dataclass(frozen=True)
class Energies:
    """A device's joules: of a multiply-accumulate by type, and of moving a byte."""

    macs: Mapping[str, float]
    of_byte: float

    def price(self, work: Work) -> float | None:
        """None where the profile does not know what the device needs for this type."""
        if work.macs and work.dtype not in self.macs:
            return None
        compute = work.macs * self.macs[work.dtype] if work.macs else 0.0
        return compute + (work.values + work.weights) * self.of_byte


def roofline(profile: Profile, threads: int) -> Roofline | str:
    """The device of a profile, or what the profile does not know that would be needed.

    Args:
        threads: of the runtime; where a rate is that of one core, so many cores work, if there are so many.
    """
    if profile.bandwidth is None:
        return "bandwidth"
    rates = _by_type(profile, "peak_", MACS_A_SECOND)
    if profile.clock is not None:
        hertz = profile.clock.value * HERTZ[profile.clock.unit]
        working = min(threads, profile.cores.value) if profile.cores is not None else 1.0
        cycles = {PER_CORE: working * hertz, PER_DEVICE: hertz}
        rates = _by_type(profile, "macs_per_cycle_", cycles) | rates
    if not rates:
        return "multiply-accumulates a second (clock and macs_per_cycle_int8, or peak_int8, and so on)"
    bandwidth = profile.bandwidth.value * BYTES_A_SECOND[profile.bandwidth.unit]
    weights = profile.figures.get("weight_bandwidth")
    return Roofline(rates, bandwidth, None if weights is None else weights.value * BYTES_A_SECOND[weights.unit])


def energies(profile: Profile) -> Energies | None:
    """What operations cost on the device of a profile; None where that does not know it."""
    byte, macs = profile.figures.get("energy_per_byte"), _by_type(profile, "energy_per_mac_", JOULES)
    return Energies(macs, byte.value * JOULES[byte.unit]) if byte is not None and macs else None


def _by_type(profile: Profile, head: str, units: Mapping[str, float]) -> dict[str, float]:
    found = {name.removeprefix(head): figure for name, figure in profile.figures.items() if name.startswith(head)}
    return {dtype: figure.value * units[figure.unit] for dtype, figure in found.items()}


LATENCY = ("cores", "clock", "bandwidth", "macs_per_cycle_", "peak_", "weight_bandwidth")
ENERGY = ("energy_per_",)


def used_figures(profile: Profile, heads: tuple[str, ...]) -> list[str]:
    """The figures of a profile that a model is computed from, with where each comes from.

    Args:
        heads: what their names begin with, such as `LATENCY`.
    """
    named: dict[str, Figure | None] = {"cores": profile.cores, "clock": profile.clock, "bandwidth": profile.bandwidth}
    return [
        f"{name} {figure.value:g} {figure.unit} ({figure.how}: {figure.source})"
        for name, figure in (named | profile.figures).items()
        if figure is not None and name.startswith(heads)
    ]
