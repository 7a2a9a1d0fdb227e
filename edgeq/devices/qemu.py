"""Arm machines that are emulated in user mode: real aarch64 builds of the runtimes, so their NEON arithmetic is real.
Time and memory are not.

No chroot, no kernel support, no root: `qemu-aarch64 -L ROOT ROOT/usr/bin/python3 worker.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgeq.devices.device import Device
from edgeq.devices.local import run_here
from edgeq.errors import DeviceError, UsageError
from edgeq.runtimes import RUNTIMES, RuntimeInfo

DEFAULT_CPU = "cortex-a76"
"""A common core with the 8-bit dot product, in phones and single-board computers."""

EMULATED = ("onnxruntime", "litert")
"""Runtimes that the emulated machine is given, as far as they are installed here."""

SET_UP = "edgeq device setup arm64"


@dataclass(frozen=True)
class Machine:
    """A set-up Arm machine.

    Attributes:
        folder: holds the emulator, `root` (a Debian root) and `site` (the Python packages).
        qemu: the emulator.
        packages: version of each runtime's package in `site`.
    """

    folder: Path
    qemu: Path
    packages: dict[str, str]

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def site(self) -> Path:
        return self.folder / "site"

    def python(self, cpu: str) -> list[str]:
        """The command that starts the machine's Python on a CPU model."""
        settings = {"PYTHONPATH": str(self.site), "PYTHONNOUSERSITE": "1"}
        # Byte code is kept in any case: compiling under emulation doubles the time that a start takes.
        foreign = ("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
        return [
            str(self.qemu), "-cpu", cpu, "-L", str(self.root),
            *(word for key, value in settings.items() for word in ("-E", f"{key}={value}")),
            *(word for key in foreign for word in ("-U", key)),
            str(self.root / "usr/bin/python3"),
        ]  # fmt: skip


def devices_folder() -> Path:
    """Where set-up devices are kept: below `$EDGEQ_HOME`, or `~/.cache/edgeq`."""
    home = os.environ.get("EDGEQ_HOME")
    return (Path(home).expanduser().resolve() if home else Path.home() / ".cache/edgeq") / "devices"


def installed_pins() -> dict[str, str]:
    """The packages that an emulated machine is to have, in the versions installed here."""
    infos = [RUNTIMES[name] for name in EMULATED]
    return {info.distribution: version for info in infos if (version := info.version()) is not None}


def read_machine(folder: Path) -> Machine | None:
    """The machine in a folder, or None where none is set up."""
    try:
        facts = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
        return Machine(folder, folder / facts["qemu"], facts["packages"])
    except (OSError, ValueError, KeyError):
        return None


def cpu_models(machine: Machine) -> list[str]:
    """The CPU models that the emulator knows.

    Raises:
        DeviceError: the emulator does not run.
    """
    try:
        # Exits with 1 after listing them.
        told = subprocess.run([machine.qemu, "-cpu", "help"], capture_output=True, text=True)
    except OSError as error:
        raise DeviceError(f"the emulator does not run: {error}", remedy=f"{SET_UP} --force") from error
    models = [line.split()[0] for line in told.stdout.splitlines() if line.startswith(" ")]
    if not models:
        raise DeviceError(f"the emulator does not run: {told.stderr.strip()}", remedy=f"{SET_UP} --force")
    return models


def open_arm64(cpu: str = DEFAULT_CPU) -> Device:
    """The emulated Arm machine with a CPU model.

    Raises:
        DeviceError: it is not set up.
        UsageError: the emulator does not know the CPU model.
    """
    machine = read_machine(devices_folder() / "arm64")
    if machine is None:
        raise DeviceError("the emulated Arm machine is not set up", where="arm64", remedy=SET_UP)
    models = cpu_models(machine)
    if cpu not in models:
        raise UsageError(f"the emulator has no CPU model {cpu!r}", remedy=f"one of {', '.join(models)}")
    return device_on(machine, cpu)


def device_on(machine: Machine, cpu: str) -> Device:
    """A machine with a CPU model as a device."""

    def missing(info: RuntimeInfo) -> DeviceError:
        has = ", ".join(machine.packages) or "no runtime"
        remedy = f"{SET_UP}, with {info.distribution} installed here" if info.name in EMULATED else "run it elsewhere"
        return DeviceError(f"{info.distribution} is not on the emulated machine, which has {has}", remedy=remedy)

    return Device(
        name=f"arm64:{cpu}",
        emulated=True,
        run=partial(run_here, machine.python(cpu)),
        missing=missing,
    )
