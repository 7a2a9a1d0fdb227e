"""The figures of a profile that its time and energy are modelled from, and the memories that a build has to fit: their
names, and what units they may have."""

from __future__ import annotations

PER_DEVICE, PER_CORE = "multiply-accumulates a cycle", "multiply-accumulates a cycle and core"
TYPES = ("int4", "int8", "int16", "float16", "bfloat16", "float32")
"""What a device multiplies, `uint8` being `int8` here. Where weights are of another type than activations, a figure is
that of both: `int8_int4` for 8-bit activations with 4-bit weights."""

HERTZ = {"MHz": 1e6, "GHz": 1e9}
BYTES_A_SECOND = {"MB/s": 1e6, "GB/s": 1e9}
MACS_A_SECOND = {"TOPS": 0.5e12, "TFLOPS": 0.5e12}
"""A multiply-accumulate is two operations."""
JOULES = {"pJ": 1e-12, "nJ": 1e-9}
BYTES = {"B": 1.0, "kB": 1e3, "KiB": 1024.0, "MB": 1e6, "MiB": 1024.0**2, "GB": 1e9, "GiB": 1024.0**3}

_BY_TYPE = {
    "macs_per_cycle_": dict.fromkeys((PER_DEVICE, PER_CORE), 1.0),
    "peak_": MACS_A_SECOND,
    "energy_per_mac_": JOULES,
}
_ALONE = {
    "clock": HERTZ,
    "bandwidth": BYTES_A_SECOND,
    "weight_bandwidth": BYTES_A_SECOND,
    "energy_per_byte": JOULES,
    "sram": BYTES,
    "flash": BYTES,
}


def problem(name: str, value: float, unit: str) -> str | None:
    """What is wrong with a figure; None if nothing is. Figures that nothing is computed from may be anything."""
    units = _ALONE.get(name)
    for head, of_type in _BY_TYPE.items():
        if name.startswith(head):
            activations, _, weights = name.removeprefix(head).partition("_")
            if activations not in TYPES or (weights or activations) not in TYPES:
                return f"{name}: is of no known type; {' or '.join(TYPES)}, or two of them such as int8_int4"
            units = of_type
    if units is None:
        return None
    if unit not in units:
        return f"{name}: cannot be computed with in {unit!r}; write it in {' or '.join(units)}"
    return None if 0 < value < float("inf") else f"{name}: must be above 0"
