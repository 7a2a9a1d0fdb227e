"""What Vela, Arm's compiler for Ethos-U NPUs, estimates of a `.tflite` file: cycles by operator, memory, and what it
leaves to the CPU. It compiles for the device and reports the schedule that it made: a model of the device, no
measurement, and it knows nothing of the time of what the CPU runs."""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from edgeq.errors import MissingExtraError, UnsupportedError
from edgeq.records.schema import Placement
from edgeq.registry.schema import VelaSystem

DISTRIBUTION = "ethos-u-vela"
TIMEOUT = 600.0


@dataclass(frozen=True)
class Estimate:
    """One file, as Vela compiled it.

    Attributes:
        seconds: of one inference, without what the CPU runs.
        sram, flash: bytes of SRAM, and of flash or DRAM, that the NPU's part takes.
        rows: operators in the order in which they run, with their share of `seconds`; `where` is `NPU` or `CPU`.
    """

    seconds: float
    sram: int
    flash: int
    rows: list[Placement]


def version() -> str | None:
    """The installed Vela, or None."""
    try:
        return metadata.version(DISTRIBUTION) if find_spec("ethosu") is not None else None
    except metadata.PackageNotFoundError:
        return None


def estimate(path: Path, system: VelaSystem) -> Estimate:
    """Compiles a file for a system.

    Args:
        path: of a `.tflite` file.

    Raises:
        MissingExtraError: Vela is not installed.
        UnsupportedError: it cannot compile the file, or does not know the system; says what it said.
    """
    if version() is None:
        raise MissingExtraError(DISTRIBUTION, "ethos-u")
    with tempfile.TemporaryDirectory(prefix="edgeq-vela-") as scratch:
        command = [
            *(sys.executable, "-m", "ethosu.vela", str(path.resolve()), "--output-dir", scratch),
            *("--accelerator-config", system.accelerator, "--config", system.config),
            *("--system-config", system.system, "--memory-mode", system.memory, "--verbose-performance"),
        ]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, cwd=scratch)
        except subprocess.TimeoutExpired as error:
            raise _refused(f"it was not done after {TIMEOUT:g} s") from error
        summary, layers = (next(Path(scratch).glob(name), None) for name in ("*_summary_*.csv", "*_per-layer.csv"))
        if ran.returncode or summary is None or layers is None:
            said = f"{ran.stdout}\n{ran.stderr}".split("\n")
            raise _refused(next((line.strip() for line in reversed(said) if line.strip()), f"code {ran.returncode}"))
        return _read(summary, layers)


def _read(summary: Path, layers: Path) -> Estimate:
    with summary.open(newline="", encoding="utf-8") as file:
        network = next(csv.DictReader(file))
    clock = float(network["core_clock"])
    sram, *others = (
        1024 * float(network[f"{name}_memory_used"]) for name in ("sram", "dram", "on_chip_flash", "off_chip_flash")
    )
    rows = []
    with layers.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            npu = row["Target"].strip() == "NPU"
            rows.append(
                Placement(
                    name=row["Name"].strip(),
                    op=row["Original Operator"].strip(),
                    where="NPU" if npu else "CPU",
                    integer=npu or None,
                    microseconds=1e6 * float(row["Op Cycles"]) / clock if npu else None,
                )
            )
    return Estimate(float(network["cycles_total"]) / clock, round(sram), round(sum(others)), rows)


def _refused(why: str) -> UnsupportedError:
    return UnsupportedError(f"Vela cannot compile the file: {why}", remedy="run vela on it by hand to see all of it")
