"""What Vela, Arm's compiler for Ethos-U NPUs, makes of a `.tflite` file, and estimates of it: cycles by operator,
memory, and what it leaves to the CPU. It compiles for the device and reports the schedule that it made: a model of the
device, no measurement, and it knows nothing of the time of what the CPU runs."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from edgeq.errors import MissingExtraError, UnsupportedError
from edgeq.records.schema import LeftToCpu, Placement
from edgeq.registry.schema import VelaSystem

DISTRIBUTION = "ethos-u-vela"
TIMEOUT = 600.0

_LEFT = re.compile(r"^Warning \(.+\) operator: (?P<op>\S+), ofm: '(?P<name>.*)'\nReason: (?P<reason>(?:.+\n)+)", re.M)
_PLACED = re.compile(r"^NPU operators = (\d+)", re.M)


@dataclass(frozen=True)
class Estimate:
    """One file, as Vela compiled it.

    Attributes:
        seconds, cycles: of one inference, without what the CPU runs.
        sram, dram, flash: bytes.
        rows: what runs, in order, with its share of `seconds`; `where` is `NPU` or `CPU`. One operator of the file may
            be several of them on the NPU.
        on_npu: how many operators of the file the NPU runs.
        left: those that it does not, and why.
    """

    seconds: float
    cycles: int
    sram: int
    dram: int
    flash: int
    rows: list[Placement]
    on_npu: int
    left: list[LeftToCpu]


def version() -> str | None:
    """The installed Vela, or None."""
    try:
        return metadata.version(DISTRIBUTION) if find_spec("ethosu") is not None else None
    except metadata.PackageNotFoundError:
        return None


def in_words(system: VelaSystem) -> str:
    """A system in words."""
    return f"{system.accelerator}, system {system.system}, memory mode {system.memory} of {system.config}"


def estimate(path: Path, system: VelaSystem, to: Path | None = None) -> Estimate:
    """Compiles a file for a system.

    Args:
        path: of a `.tflite` file.
        to: where to leave what was compiled; nowhere if None.

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
        if to is not None:
            shutil.copyfile(Path(scratch) / f"{path.stem}_vela.tflite", to)
        return _read(summary, layers, ran.stdout)


def _read(summary: Path, layers: Path, said: str) -> Estimate:
    with summary.open(newline="", encoding="utf-8") as file:
        network = next(csv.DictReader(file))
    clock = float(network["core_clock"])
    sram, dram, *flash = (
        round(1024 * float(network[f"{name}_memory_used"]))
        for name in ("sram", "dram", "on_chip_flash", "off_chip_flash")
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
    placed, cycles = _PLACED.search(said), float(network["cycles_total"])
    if placed is None:
        raise _refused("it does not say how many operators the NPU runs")
    return Estimate(
        seconds=cycles / clock,
        cycles=round(cycles),
        sram=sram,
        dram=dram,
        flash=sum(flash),
        rows=rows,
        on_npu=int(placed[1]),
        left=_left(rows, said),
    )


def _left(rows: list[Placement], said: str) -> list[LeftToCpu]:
    """Every operator that the CPU runs, with the reason that was printed for it."""
    reasons = {found["name"]: " ".join(found["reason"].split()) for found in _LEFT.finditer(f"{said}\n")}
    return [
        LeftToCpu(name=row.name, op=row.op, reason=reasons.get(row.name, "no reason was given"))
        for row in rows
        if row.where == "CPU"
    ]


def _refused(why: str) -> UnsupportedError:
    return UnsupportedError(f"Vela cannot compile the file: {why}", remedy="run vela on it by hand to see all of it")
