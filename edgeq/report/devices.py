"""An artefact on several devices, on the console: a column a device."""

from __future__ import annotations

from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeq.records import summary
from edgeq.records.devices import DevicesReport
from edgeq.records.schema import Build
from edgeq.records.wording import drop_text, score_text, seconds_text, sqnr_text, times_text

STYLES = {"passed": "green", "failed": "red", "not validated": "yellow"}


def render_devices(report: DevicesReport, console: Console) -> None:
    """Prints a table, what was missed, and which devices could not be used, and why."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for device in (*report.reports, *report.unreached):
        table.add_column(Text(device), justify="right")
    verdicts = [Text(one.verdict, STYLES[one.verdict]) for one in report.reports.values()]
    table.add_row("verdict", *verdicts, *(Text("unreached", "red") for _ in report.unreached))
    builds = [one.builds[0] for one in report.reports.values()]
    for name, cell in ROWS.items():
        table.add_row(name, *(Text(cell(build)) for build in builds), *("-" for _ in report.unreached))
    console.print(table)
    for device, one in report.reports.items():
        build = one.builds[0]
        told = [f"{gate.name} {gate.measured}, limit {gate.limit}" for gate in build.gates if not gate.passed]
        for text in filter(None, (build.remark, summary.fallen_back_text(build), *told, *one.warnings)):
            console.print(Text.assemble((device, "bold"), ": ", text), soft_wrap=True)
    for device, why in report.unreached.items():
        console.print(Text.assemble((device, "bold"), f": {why.cause}; {why.remedy}"), soft_wrap=True)


def _accuracy(build: Build) -> str:
    accuracy = build.accuracy
    if accuracy is None or accuracy.score is None:
        return "-"
    return f"{score_text(accuracy.score, accuracy)} ({score_text(accuracy.float_score, accuracy)})"


def _drop(build: Build) -> str:
    drop = None if build.accuracy is None else summary.shown_drop(build.accuracy)
    return "-" if drop is None or build.accuracy is None else drop_text(drop.value, build.accuracy)


def _worst(build: Build) -> str:
    accuracy = build.accuracy
    return "-" if accuracy is None or accuracy.sqnr_db is None else sqnr_text(accuracy.sqnr_db)


def _median(build: Build) -> str:
    if build.emulated:
        return "emulated"
    return "-" if build.speed is None else seconds_text(build.speed.artifact.p50)


def _faster(build: Build) -> str:
    faster = summary.speedup(build)
    return "-" if faster is None else times_text(faster)


def _sustained(build: Build) -> str:
    return "-" if build.sustained is None or build.emulated else times_text(build.sustained.throttled) + " of the time"


def _gates(build: Build) -> str:
    return f"{sum(gate.passed for gate in build.gates)} of {len(build.gates)}" if build.gates else "none"


ROWS: dict[str, Callable[[Build], str]] = {
    "accuracy (float)": _accuracy,
    "drop": _drop,
    "worst SQNR": _worst,
    "median": _median,
    "speed to float": _faster,
    "after a long run": _sustained,
    "gates held": _gates,
}
