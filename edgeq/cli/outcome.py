"""The limits that a run has to hold, and how its report is shown and becomes an exit code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.cli.options import PlanLimits
from edgeq.cli.shell import Shell
from edgeq.errors import GateError

if TYPE_CHECKING:
    from edgeq.limits import Limits
    from edgeq.records.schema import Report


def limits_from(told: PlanLimits) -> Limits:
    """The limits as they stand on the command line. A plan is free to be slower than float.

    Raises:
        UsageError: one of them cannot be read.
    """
    from edgeq.limits import Limits

    return Limits.parse(**{"allow_slower": True, **vars(told)})


def conclude(shell: Shell, report: Report, folder: Path | None) -> int:
    """Show a report; returns the exit code that its verdict asks for."""
    from edgeq.report.console import render

    if not shell.quiet:
        render(report, shell.console, folder)
    if shell.json:
        shell.document(report)
    if report.verdict != "failed":
        return 0
    missed = [
        f"{gate.name} {gate.measured}, limit {gate.limit}"
        for build in report.builds
        if build.format == report.chosen or len(report.builds) == 1
        for gate in build.gates
        if not gate.passed
    ]
    return shell.tell(
        GateError(
            "; ".join(missed) or report.verdict_text,
            where=f"{report.model} on {report.target}",
            remedy="the report says where the loss or the time arises; artefact and report are written all the same"
            if folder is not None
            else "change the model or its plan, or the limit",
        )
    )
