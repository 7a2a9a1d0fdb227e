"""The rows of the bench beside other tools, as JSON and as a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One artefact, or why there is none.

    Attributes:
        error: empty where there is one.
        score, float_score: of the metric, as is `drop` with the ends of its 95 % interval.
        agreement: percent of answers that are the float model's.
        size, float_size: bytes of all files.
        latency: in units of the float model's, with the ends of its 95 % interval.
        latency_to_ours: in units of edgeq's artefact of the same precision.
        seconds: that it took to make; `units` in those of one tool that all are compared with.
        peak_bytes: of the process that made it.
    """

    model: str
    runtime: str
    precision: str
    tool: str
    version: str = ""
    error: str = ""
    metric: str = ""
    score: float | None = None
    float_score: float | None = None
    drop: float | None = None
    drop_low: float | None = None
    drop_high: float | None = None
    agreement: float | None = None
    size: int | None = None
    float_size: int | None = None
    latency: float | None = None
    latency_low: float | None = None
    latency_high: float | None = None
    latency_to_ours: float | None = None
    seconds: float | None = None
    units: float | None = None
    peak_bytes: int | None = None


def write_rows(rows: Sequence[Row], path: Path) -> None:
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")


def page(
    rows: Sequence[Row], about: Mapping[str, str], command: str, ours: str, unit: str, cpu: Mapping[str, str]
) -> str:
    """Markdown: a table for each model and runtime.

    Args:
        about: what each tool does, by name.
        command: that gave the rows.
        ours: what latencies are also told in units of.
        unit: likewise, seconds.
        cpu: that all ran on.
    """
    versions = {row.tool: row.version for row in rows if row.version}
    lines = [
        "# edgeq beside other tools",
        "",
        "Same model, calibration samples, evaluation samples and runtime for all. `w4a8` is 4-bit weights with a scale"
        f" for each channel in every layer but the first and the last. CPU: {cpu['cpu']} ({cpu['cpu_isa']}).",
        "",
        "```text",
        command,
        "```",
        "",
        "- drop: points lost to the float model on the same samples, with its 95 % interval",
        "- same: share of answers that are the float model's",
        "- latency: in units of the float model's in the same runtime, with its 95 % interval; all of a table ran in"
        f" turns in one process. In brackets: in units of {ours}'s artefact of the same precision",
        f"- made in: seconds from the model file to the artefact, imports left out; in brackets: in units of {unit}'s",
        "- memory: the most that was resident while it was made",
        "",
        "| tool | version | what it does |",
        "|---|---|---|",
        *(f"| {name} | {versions.get(name, '')} | {text} |" for name, text in about.items()),
    ]
    for model, runtime in dict.fromkeys((row.model, row.runtime) for row in rows):
        lines += ["", f"## {model} in {runtime}", ""]
        some = [row for row in rows if (row.model, row.runtime) == (model, runtime)]
        whole = next((row for row in some if row.float_score is not None), None)
        if whole is not None:
            lines += [f"The float model: {whole.metric} {whole.float_score:.2f} %, {_kilo(whole.float_size)} kB.", ""]
        lines += ["| tool | bits | score | drop | same | kB | latency | made in | memory |", "|---|---|" + "---|" * 7]
        lines += [_line(row) for row in some]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    if row.error:
        cells = [f"none: {row.error}".replace("|", "\\|"), "", "", "", ""]
    else:
        drop = "" if row.drop is None else f"{row.drop:.2f} ({row.drop_low:.2f} to {row.drop_high:.2f})"
        latency = "" if row.latency is None else f"{row.latency:.2f} ({row.latency_low:.2f} to {row.latency_high:.2f})"
        latency += "" if row.latency_to_ours is None else f" [{row.latency_to_ours:.2f}]"
        cells = [_number(row.score), drop, _number(row.agreement), _kilo(row.size), latency]
    spent = "" if row.seconds is None else f"{row.seconds:.1f} s" + ("" if row.units is None else f" [{row.units:.2f}]")
    memory = "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f} MB"
    return "| " + " | ".join([row.tool, row.precision, *cells, spent, memory]) + " |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _kilo(size: int | None) -> str:
    return "" if size is None else f"{size / 1e3:.1f}"
