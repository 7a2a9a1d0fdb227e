"""The report's part on one artefact, from its files and what was measured on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeq.devices import Device
from edgeq.errors import EdgeqError
from edgeq.evaluation.measure import Measured
from edgeq.limits import Limits, Room, judge
from edgeq.records.schema import Audit, Build, Layer, OnNpu
from edgeq.registry.figures import BYTES
from edgeq.registry.schema import Profile, Runtime
from edgeq.runtimes import RUNTIMES

_ENDS = frozenset({"DequantizeLinear", "QuantizeLinear"})


def describe_build(
    runtime: Runtime,
    device: Device | None,
    files: Sequence[Path],
    measured: Measured | None,
    limits: Limits,
    *,
    float_files: Sequence[Path] = (),
    audit: Audit | None = None,
    layers: Sequence[Layer] = (),
    precision: str = "float32",
    quantized: bool = True,
    no_device_because: str = "",
    npu: OnNpu | None = None,
    profile: Profile | None = None,
) -> Build:
    """Judges the artefact and says what is known of it.

    Args:
        device: where it was measured; None where nothing could be.
        precision: what the runtime was told to compute in where layers are in float.
        float_files: of the float model in the same format.
        quantized: whether anything in the artefact is.
        no_device_because: why there is no device.
        npu: what goes to the device in place of the files, from where these lie.
        profile: of the device, whose memories have to hold the artefact.
    """
    emulated = device is not None and device.emulated
    why_not = None if measured else no_device_because or "no evaluation data was given"
    no_speed = measured.no_speed_because if measured else why_not
    accuracy, speed = (measured.accuracy, measured.speed) if measured else (None, None)
    sizes = {file.name: file.stat().st_size for file in files}
    size = sum(sizes.values())
    if npu is not None:
        size = sizes[npu.file] = files[0].with_name(npu.file).stat().st_size
    info = RUNTIMES.get(runtime.name)
    fallen = fallen_back(measured, info.accelerator) if measured and info and info.accelerator else None
    if npu is not None:
        fallen = [left.name for left in npu.left_to_cpu]
    arena = measured.arena_bytes if measured else None
    return Build(
        format=runtime.format,
        runtime=runtime.name,
        runtime_version=(info.version() or "not installed") if info else "not run here",
        precision=precision,
        device=device.name if device else "none",
        emulated=emulated,
        files=sizes,
        size_bytes=size,
        validated=measured is not None,
        not_validated_because=why_not,
        remark=info.remark if info and measured else "",
        accuracy=accuracy,
        speed=speed,
        no_speed_because=no_speed,
        peak_memory_bytes=measured.peak_memory_bytes if measured else None,
        cold_start_seconds=measured.cold_start_seconds if measured else None,
        arena_bytes=arena,
        placements=measured.placements if measured else [],
        fallen_back=fallen,
        npu=npu,
        audit=audit,
        layers=list(layers),
        gates=judge(
            limits,
            accuracy=accuracy,
            speed=speed,
            size_bytes=size,
            emulated=emulated,
            quantized=quantized,
            not_validated_because=why_not,
            no_speed_because=no_speed,
            fallen_back=fallen,
            no_fallback_because="nothing was compiled" if runtime.name == "vela" else None,
            board=_board(profile, npu, arena, size),
        ),
        float_size_bytes=sum(file.stat().st_size for file in float_files) or None,
    )


def _board(profile: Profile | None, npu: OnNpu | None, arena: int | None, size: int) -> list[Room]:
    """What the profile says of memories that a firmware has to share with the artefact."""
    counted = "the arena, as the interpreter on this machine counts it"
    needed = {
        "SRAM": (arena, "no arena was measured" if arena is None else counted),
        "flash": (size, "what goes to the device, without the rest of the firmware"),
    }
    if npu is not None:
        needed["SRAM"] = npu.sram_bytes, f"estimated by {npu.by}"
    figures = {} if profile is None else profile.figures
    told = {name: figures[name.lower()] for name in needed if name.lower() in figures}
    return [Room(name, figure.value * BYTES[figure.unit], *needed[name]) for name, figure in told.items()]


def fallen_back(measured: Measured, accelerator: str) -> list[str]:
    """Operators that ran elsewhere; not what rounds inputs, and makes outputs real. More of the latter than there are
    outputs make weights real, so that the accelerator computes with these in float."""
    elsewhere = [row for row in measured.placements if row.where != accelerator]
    real = [row for row in elsewhere if row.op == "DequantizeLinear"]
    ends = _ENDS if len(real) <= len(measured.outputs) else _ENDS - {"DequantizeLinear"}
    return [row.name or row.op for row in elsewhere if row.op not in ends]


def failed_build(runtime: Runtime, device: Device | None, error: EdgeqError) -> Build:
    """A format that could not be built, and why."""
    return Build(
        format=runtime.format,
        runtime=runtime.name,
        runtime_version="",
        device=device.name if device else "none",
        emulated=device is not None and device.emulated,
        files={},
        size_bytes=0,
        validated=False,
        not_validated_because=error.cause,
        accuracy=None,
        speed=None,
        no_speed_because=error.cause,
        peak_memory_bytes=None,
        cold_start_seconds=None,
        placements=[],
        audit=Audit(tensors_checked=0, bytes_checked=0, integer_mac_percent=0.0, float_operators=[]),
        layers=[],
        gates=[],
        error=str(error),
    )
