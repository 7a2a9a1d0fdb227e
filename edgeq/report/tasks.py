"""Scores in tasks on the console: a row a metric."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeq.records.tasks import TaskScore, TasksReport


def render_tasks(report: TasksReport, console: Console) -> None:
    """Prints a table, and what has to be said of it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    beside = report.model is not None
    headings = ["task", "metric", "n", report.format]
    headings += ["float", "difference", "95 %, points"] if beside else []
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < 2 else "right")
    for score in report.scores:
        row = [score.task, _metric(score), str(score.samples), _with_error(score.score, score.stderr)]
        if beside:
            row += [_with_error(score.float_score, score.float_stderr), _difference(score), _paired(score)]
        table.add_row(*map(Text, row))
    console.print(table)
    emulated = " (emulated)" if report.emulated else ""
    where = f"{report.runtime} {report.runtime_version} on {report.device}{emulated}"
    console.print(Text(f"{where}; lm-evaluation-harness {report.harness}"), soft_wrap=True)
    for warning in report.warnings:
        console.print(Text(f"warning: {warning}"), soft_wrap=True)


def _metric(score: TaskScore) -> str:
    name = score.metric if score.filter == "none" else f"{score.metric} ({score.filter})"
    return name if score.higher_is_better is None else f"{name} {'↑' if score.higher_is_better else '↓'}"


def _with_error(value: float | None, stderr: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if stderr is None else f"{value:.4f} ± {stderr:.4f}"


def _difference(score: TaskScore) -> str:
    return "-" if score.difference is None else f"{score.difference:+.4f}"


def _paired(score: TaskScore) -> str:
    """Of the difference, in percentage points: negative where the artefact is worse."""
    drop = score.drop
    return "-" if drop is None else f"{-drop.high:+.1f} to {-drop.low:+.1f}"
