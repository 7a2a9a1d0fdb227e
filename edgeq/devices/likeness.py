"""Whether a device's CPU is of the class that a target describes: with other instructions the same file may compute
otherwise, and takes another time."""

from __future__ import annotations

from collections.abc import Mapping

from edgeq.devices.device import Device
from edgeq.on_device.worker import ISA
from edgeq.registry.load import load_target, target_names
from edgeq.registry.schema import Target


def unlike(target: Target, device: Device, environment: Mapping[str, str]) -> str:
    """Why what is measured on a device does not speak for a target; empty if it does, or if nobody knows the device's
    instructions.

    Args:
        environment: of the device, from `Device.environment`.
    """
    found = _differences(target, environment)
    if not found:
        return ""
    others = [other for name in target_names() if _describes(other := load_target(name), environment)]
    advice = f"; {others[0].name} describes it (--target {others[0].name} --device {device.name})" if others else ""
    return (
        f"the CPU of {device.name} ({environment['cpu']}) {' and '.join(found)}, unlike those of {target.name}: "
        f"answers and times are not of that target{advice}"
    )


def _differences(target: Target, environment: Mapping[str, str]) -> list[str]:
    told = environment.get("cpu_isa", "unknown").split()
    if not set(told) <= set(ISA):  # words: an emulator, or a system that does not list them
        return []
    missing = [name for name in target.cpu.has if name not in told]
    beyond = [name for name in target.cpu.lacks if name in told]
    return [f"{verb} {', '.join(names)}" for verb, names in (("lacks", missing), ("has", beyond)) if names]


def _describes(target: Target, environment: Mapping[str, str]) -> bool:
    return bool(target.cpu.has) and not _differences(target, environment)
