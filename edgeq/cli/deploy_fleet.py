"""`edgeq deploy --plan` with a fleet: every artefact once, validated for every target that it serves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from edgeq.cli.plan_fleet import limits_by_target
from edgeq.cli.shell import Shell
from edgeq.errors import GateError, UsageError

if TYPE_CHECKING:
    from edgeq.deploy_fleet import FleetReport


def deploy_fleet(
    shell: Shell,
    model: str,
    path: Path,
    single: Mapping[str, object],
    data: Mapping[str, Any],
    limits: tuple[str | None, str | None, str | None, str | None, bool, bool],
    how: dict[str, Any],
) -> int:
    """Builds a fleet and shows the report of each target.

    Args:
        path: the fleet file.
        single: options that make sense for one target only, as they were given.
        data: what `edgeq.deploy_fleet.deploy_fleet` is to read; where it is None, what the fleet was planned with.
        limits: as they stand on the command line.
        how: what it is called with besides.
    """
    from edgeq.plans.fleet import read_fleet
    from edgeq.plans.remembered import data_of, metric_of

    for option, value in single.items():
        if value is not None:
            raise UsageError(
                f"{option} goes with one target, and {path.name} is a fleet",
                remedy=f"leave {option} away, or give --plan one of the plans beside it",
            )
    fleet, plans = read_fleet(path)
    given = fleet.given
    how |= {
        "calibration": data_of(given, "--calib", data["calibration"], "calibration"),
        "evaluation": data_of(given, "--eval", data["evaluation"], "evaluation"),
        "preprocess": data["preprocess"] or given.preprocess,
        "metric": metric_of(given, data["metric"]),
    }
    by_target = limits_by_target([member.given for member in fleet.targets], *limits)
    with shell.stages() as stages:
        from edgeq.deploy_fleet import deploy_fleet as build

        report = build(
            model,
            fleet=fleet,
            plans=plans,
            limits=by_target,
            progress=stages,
            **how,
        )
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
