"""`edgeq deploy --plan` with a fleet: every artefact once, validated for every target that it serves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from edgeq.cli.options import BuildLimits
from edgeq.cli.plan_fleet import limits_by_target
from edgeq.cli.shell import Shell
from edgeq.errors import GateError, UsageError

if TYPE_CHECKING:
    from edgeq.api.deploy_fleet import FleetReport


def deploy_fleet(
    shell: Shell, model: str, path: Path, alone: Mapping[str, object], limits: BuildLimits, how: Mapping[str, Any]
) -> int:
    """Builds a fleet and shows the report of each target.

    Args:
        path: the fleet file.
        alone: options that make sense for one target only, as they were given.
        how: what `edgeq.api.deploy_fleet.deploy_fleet` is called with besides; where data is None, it is what the fleet
            was planned with.
    """
    from edgeq.plans.fleet import read_fleet
    from edgeq.plans.remembered import completed

    for option, value in alone.items():
        if value is not None:
            raise UsageError(
                f"{option} goes with one target, and {path.name} is a fleet",
                remedy=f"leave {option} away, or give --plan one of the plans beside it",
            )
    fleet, plans = read_fleet(path)
    how = completed(fleet.given, how)
    by_target = limits_by_target([member.given for member in fleet.targets], limits)
    with shell.stages() as stages:
        from edgeq.api.deploy_fleet import deploy_fleet as build

        report = build(model, fleet=fleet, plans=plans, limits=by_target, progress=stages, **how)
    if not shell.quiet:
        _show(shell, report, how["out"])
    if shell.json:
        shell.document(report)
    failed = {target: one for target, one in report.reports.items() if one.verdict == "failed"}
    if not failed:
        return 0
    return shell.tell(
        GateError(
            "; ".join(f"{target}: {one.verdict_text}" for target, one in failed.items()),
            where=str(path),
            remedy="the reports say where the loss or the time arises; artefacts and reports are written all the same",
        )
    )


def _show(shell: Shell, report: FleetReport, out: Path) -> None:
    from edgeq.report.console import render

    for target, one in report.reports.items():
        shell.console.print()
        shell.console.print(Text(target, "bold"), end="")
        render(one, shell.console, out / Path(report.folders[target]).parts[0])
        shell.console.print(Text(f"{out / report.folders[target] / 'report.html'}"), soft_wrap=True)
    shell.console.print(Text(f"{out / 'fleet.json'}"), soft_wrap=True)
