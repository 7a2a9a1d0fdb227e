"""Machines that are emulated in user mode. The runtimes are real builds for them, so their arithmetic is real; time and
memory are not.

`arm64` runs aarch64 builds in a root of its own, `qemu-aarch64 -L ROOT ROOT/usr/bin/python3 worker.py`. `x86_64` runs
this machine's own Python on a CPU model with fewer instructions, `qemu-x86_64 -cpu Haswell python worker.py`. Neither
needs a chroot, support by the kernel, or root.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeq.devices.device import Device
from edgeq.devices.link import PythonWorker
from edgeq.devices.local import run_here
from edgeq.errors import DeviceError, UsageError
from edgeq.runtimes import RUNTIMES, RuntimeInfo

DEFAULT_CPU = {"arm64": "cortex-a76", "x86_64": "Haswell"}
"""By kind of machine: a common core with the 8-bit dot product, in phones and single-board computers; and the first
core with AVX2, which lacks VNNI."""

EMULATOR = {"arm64": "qemu-aarch64", "x86_64": "qemu-x86_64"}

ARM_RUNTIMES = ("onnxruntime", "litert")
"""Runtimes that the Arm machine is given, as far as they are installed here."""


@dataclass(frozen=True)
class Machine:
    """A set-up machine.

    Attributes:
        kind: `arm64` or `x86_64`.
        folder: holds the emulator; for arm64 also `root`, a Debian root, and `site`, the Python packages.
        packages: version of each runtime's package that it has of its own; x86_64 uses this machine's.
    """

    kind: str
    folder: Path
    packages: Mapping[str, str]

    @property
    def emulator(self) -> Path:
        return self.folder / EMULATOR[self.kind]

    def python(self, cpu: str) -> list[str]:
        """The command that starts the machine's Python on a CPU model."""
        start = [str(self.emulator), "-cpu", cpu]
        if self.kind == "x86_64":
            return [*start, sys.executable]
        settings = {"PYTHONPATH": str(self.folder / "site"), "PYTHONNOUSERSITE": "1"}
        # Byte code is kept in any case: compiling under emulation doubles the time that a start takes.
        foreign = ("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
        for key, value in settings.items():
            start += ["-E", f"{key}={value}"]
        for key in foreign:
            start += ["-U", key]
        root = self.folder / "root"
        return [*start, "-L", str(root), str(root / "usr/bin/python3")]

    def has(self, info: RuntimeInfo) -> bool:
        """Whether it can run a runtime."""
        return info.available() if self.kind == "x86_64" else info.distribution in self.packages


def devices_folder() -> Path:
    """Where set-up devices are kept: below `$EDGEQ_HOME`, or `~/.cache/edgeq`."""
    home = os.environ.get("EDGEQ_HOME")
    return (Path(home).expanduser().resolve() if home else Path.home() / ".cache/edgeq") / "devices"


def set_up_command(kind: str) -> str:
    """What a user types to set a machine up."""
    return f"edgeq device setup {kind}"


def wanted_packages(kind: str) -> dict[str, str]:
    """The packages that a machine is to have of its own, in the versions installed here."""
    infos = [RUNTIMES[name] for name in ARM_RUNTIMES] if kind == "arm64" else []
    return {info.distribution: version for info in infos if (version := info.version()) is not None}


def read_machine(folder: Path) -> Machine | None:
    """The machine in a folder, or None where none is set up."""
    try:
        facts = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
        return Machine(facts["kind"], folder, facts["packages"])
    except (OSError, ValueError, KeyError):
        return None


def cpu_models(machine: Machine) -> list[str]:
    """The CPU models that the emulator knows.

    Raises:
        DeviceError: the emulator does not run.
    """
    remedy = f"{set_up_command(machine.kind)} --force"
    try:
        # Exits with 1 after listing them. A list of CPU features may follow, after an empty line.
        told = subprocess.run([machine.emulator, "-cpu", "help"], capture_output=True, text=True)
    except OSError as error:
        raise DeviceError(f"the emulator does not run: {error}", remedy=remedy) from error
    listed = told.stdout.split("\n\n")[0].splitlines()
    models = [line.split()[0] for line in listed if line.startswith(" ")]
    if not models:
        raise DeviceError(f"the emulator does not run: {told.stderr.strip()}", remedy=remedy)
    return models


def open_emulated(kind: str, cpu: str = "") -> Device:
    """An emulated machine with a CPU model, or with the default one.

    Raises:
        DeviceError: it is not set up.
        UsageError: the emulator does not know the CPU model.
    """
    machine = read_machine(devices_folder() / kind)
    if machine is None:
        raise DeviceError(f"the emulated {kind} machine is not set up", remedy=set_up_command(kind))
    cpu = cpu or DEFAULT_CPU[kind]
    models = cpu_models(machine)
    if cpu not in models:
        raise UsageError(f"the emulator has no CPU model {cpu!r}", remedy=f"one of {', '.join(models)}")
    return device_on(machine, cpu)


def open_qemu(rest: str) -> Device:
    """The same by an address: `qemu://arm64?cpu=cortex-a53`.

    Raises:
        DeviceError: it is not set up.
        UsageError: it cannot be read, or the emulator does not know the CPU model.
    """
    kind, _, options = rest.partition("?")
    key, _, cpu = options.partition("=")
    if kind not in EMULATOR or (options and key != "cpu"):
        machines = " or ".join(f"qemu://{one}?cpu={cpu}" for one, cpu in DEFAULT_CPU.items())
        raise UsageError(f"cannot read 'qemu://{rest}'", remedy=machines)
    return open_emulated(kind, cpu)


def device_on(machine: Machine, cpu: str) -> Device:
    """A machine with a CPU model as a device."""

    def missing(info: RuntimeInfo) -> DeviceError:
        if machine.kind == "x86_64":
            return info.missing()
        remedy = "run it on another device"
        if info.name in ARM_RUNTIMES:
            remedy = f"install {info.distribution} here too, then {set_up_command(machine.kind)}"
        has = ", ".join(machine.packages) or "no runtime"
        return DeviceError(f"{info.distribution} is not on the emulated machine, which has {has}", remedy=remedy)

    told = {"emulator": f"{EMULATOR[machine.kind]} -cpu {cpu}"}
    if machine.kind == "x86_64":
        # Here the emulator shows the host's /proc/cpuinfo, which the runtimes do not look at.
        told |= {"cpu": cpu, "cpu_isa": "as the model has it"}
    return Device(
        name=f"{machine.kind}:{cpu}",
        emulated=True,
        link=run_here,
        missing=missing,
        runner=PythonWorker(machine.python(cpu)),
        facts=told,
        shares_host=True,
    )
