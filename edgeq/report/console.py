"""The closing words on the console: the verdict, a row for each format, where the files are, where the time went."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from edgeq.records import summary
from edgeq.records.schema import Build, Report
from edgeq.records.wording import (
    bytes_text,
    conformance_text,
    decoding_text,
    drop_text,
    npu_text,
    number,
    score_text,
    seconds_text,
    sqnr_text,
    times_text,
)

WIDTH = 100
_VERDICT = {"passed": "bold green", "failed": "bold red", "not validated": "bold yellow"}
_LONGEST_LIST = 12


def render(report: Report, console: Console, folder: Path | None = None) -> None:
    """Print the outcome within 100 columns, in plain characters.

    Args:
        report: what to tell.
        console: where; rich leaves colours out when it is no terminal.
        folder: the folder of the build, shown before the names of its files.
    """
    width = min(WIDTH, console.width)

    def say(*parts: str | tuple[str, str]) -> None:
        fitting = [_fit(p, console) if isinstance(p, str) else (_fit(p[0], console), p[1]) for p in parts]
        console.print(Text.assemble(*fitting), width=width, soft_wrap=False)

    say("")
    say((report.verdict.upper(), _VERDICT[report.verdict]), "  ", report.verdict_text)
    say("")
    if report.builds:
        console.print(_table(report, console), width=width)
    remarks = Table.grid(padding=(0, 1))
    remarks.add_column(no_wrap=True)
    remarks.add_column()
    for subject, style, remark in _remarks(report):
        remarks.add_row(Text(_fit(subject, console), "bold"), Text(_fit(remark, console), style))
    if remarks.row_count:
        console.print(remarks, width=width)
    say("")
    for name, size in _files(report):
        say(str(folder / name) if folder is not None else name, (f"  {size}", "dim"))
    stages = sorted(report.seconds.items(), key=lambda item: -item[1])
    if stages:
        total = seconds_text(sum(report.seconds.values()))
        say((f"{total}: " + ", ".join(f"{name} {seconds_text(s)}" for name, s in stages if s >= 0.05), "dim"))


def _table(report: Report, console: Console) -> Table:
    table = Table(box=box.SIMPLE_HEAD if _unicode(console) else box.ASCII, padding=(0, 1), pad_edge=False)
    table.add_column("")
    for heading in ("accuracy\n(float)", "drop\n(95 % interval)", "median", "speed\nto float"):
        table.add_column(_lines(heading), justify="right")
    for heading in ("size\n(to float)", "integer\nMACs", "gates\nheld"):
        table.add_column(_lines(heading), justify="right")
    for build in summary.in_order(report):
        kept = build.format == report.chosen and len(report.builds) > 1
        table.add_row(*(_cell(_fit(cell, console), kept) for cell in _cells(build)))
    return table


def _lines(text: str) -> Group:
    return Group(*map(Text, text.split("\n")))


def _cell(text: str, kept: bool) -> Group:
    """The first line, and what stands below it with less weight."""
    first, *rest = text.split("\n")
    return Group(Text(first, "bold" if kept else ""), *(Text(line, "dim") for line in rest))


def _cells(build: Build) -> list[str]:
    cells = [f"{build.format}\n{build.runtime}"]
    accuracy = build.accuracy
    drop = None if accuracy is None else summary.shown_drop(accuracy)
    if accuracy is None:
        cells += ["not run", "-"]
    else:
        score = score_text(accuracy.score, accuracy)
        cells.append("-" if accuracy.score is None else f"{score}\n({score_text(accuracy.float_score, accuracy)})")
        cells.append(
            ("-" if accuracy.sqnr_db is None else f"{sqnr_text(accuracy.sqnr_db)}\nworst SQNR")
            if drop is None
            else f"{drop_text(drop.value, accuracy)}\n({summary.interval_text(drop, accuracy, unit=False)})"
            + ("\nunlike float" if accuracy.drop is None else "")
        )
    faster = summary.speedup(build)
    timed = build.speed is not None and not build.emulated
    cells.append(seconds_text(build.speed.artifact.p50) if timed and build.speed is not None else "not\nmeasured")
    cells.append("-" if faster is None else times_text(faster))
    if not build.size_bytes:
        cells += ["-", "-"]
    else:
        smaller = summary.shrink(build)
        cells.append(bytes_text(build.size_bytes) + ("" if smaller is None else f"\n({number(smaller)}x less)"))
        cells.append(f"{build.audit.integer_mac_percent:.1f} %" if build.audit else "not audited")
    passed = sum(g.passed for g in build.gates)
    cells.append(f"{passed} of {len(build.gates)}" if build.gates else "none")
    return cells


def _remarks(report: Report) -> list[tuple[str, str, str]]:
    """(subject, style, remark): what the rows cannot hold."""
    lines = []
    for build in summary.in_order(report):
        for i, (style, remark) in enumerate(_build_remarks(build)):
            lines.append(("" if i else build.format, style, remark))
    if report.chosen:
        lines.append(("kept", "", f"{report.chosen}: {report.chosen_because}"))
    return lines + [("warning", "yellow", warning) for warning in report.warnings]


def _build_remarks(build: Build) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    if build.error is not None:
        lines.append(("red", f"failed: {' '.join(build.error.split())}"))
    elif not build.validated:
        lines.append(("yellow", f"not validated: {build.not_validated_because or 'it was not run'}"))
    elif build.emulated:
        lines.append(("yellow", f"run on an emulated device ({build.device}): accuracy counts, timing does not"))
    if build.validated and not build.emulated and build.speed is None and build.no_speed_because:
        lines.append(("yellow", f"latency not measured: {build.no_speed_because}"))
    if build.audit is not None and build.audit.conformance is not None:
        lines.append(("", conformance_text(build.audit.conformance)))
    if build.remark:
        lines.append(("yellow", build.remark))
    if build.decoding is not None and not build.emulated:
        lines.append(("", decoding_text(build.decoding, build.peak_memory_bytes)))
    if build.sustained is not None and not build.emulated:
        lines.append(("", summary.sustained_text(build.sustained)))
    if build.precision != "float32":
        lines.append(("", f"what is in float ran in {build.precision}: set the runtime's inference precision to it"))
    if build.accuracy is not None and len(build.accuracy.outputs) > 1:
        lines.append(("", f"worst output: {summary.likeness_text(build.accuracy)}"))
    for figure in build.modelled:
        lines.append(("yellow", f"modelled, not measured: {figure.name} {figure.value} ({figure.source})"))
    for gate in build.gates:
        if not gate.passed:
            remark = f"; {gate.reason}" if gate.reason else ""
            lines.append(("red", f"missed: {gate.name} {gate.measured}, limit {gate.limit}{remark}"))
        elif "not certain" in gate.reason or "slower" in gate.reason:
            lines.append(("yellow", f"{gate.name}: {gate.reason}"))
    if build.arena_bytes is not None:
        lines.append(("", f"arena: {bytes_text(build.arena_bytes)}, counted by the interpreter on this machine"))
    if build.npu is not None:
        lines.append(("yellow", f"estimated by {build.npu.by}, not measured: {npu_text(build.npu)}"))
    if build.fallen_back:
        lines.append(("yellow", summary.fallen_back_text(build)))
    left = build.audit.float_operators if build.audit else []
    if left:
        lines.append(("dim", f"in float: {summary.some([one.layer for one in left])}"))
    return lines


def _files(report: Report) -> list[tuple[str, str]]:
    builds = summary.in_order(report)
    files = [(name, bytes_text(size)) for b in builds for name, size in (*b.files.items(), *b.sources.items())]
    if len(files) <= _LONGEST_LIST:
        return files
    return [*files[: _LONGEST_LIST - 1], (f"and {len(files) - _LONGEST_LIST + 1} more", "")]


def _unicode(console: Console) -> bool:
    return console.encoding.lower().replace("-", "").startswith("utf")


def _fit(text: str, console: Console) -> str:
    """Names from outside may hold characters that the terminal cannot show."""
    return text if _unicode(console) else text.encode(console.encoding, "replace").decode(console.encoding)
