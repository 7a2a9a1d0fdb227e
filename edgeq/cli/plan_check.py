"""`edgeq plan --check`: what an edited plan is expected to cost, from the plan alone."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from edgeq.cli.plan_show import cost_text, label
from edgeq.cli.shell import Shell
from edgeq.cli.tables import table
from edgeq.errors import UsageError


def plan_check(shell: Shell, path: Path, target: str | None) -> int:
    """Costs an edited plan anew, or says what is wrong with it.

    Args:
        target: the plan's, where it is a file of the user's.
    """
    from edgeq.planning.explain.explain import recost
    from edgeq.plans.plan import read_plan
    from edgeq.registry.load import load_target

    found = recost(read_plan(path), load_target(target) if target else None)
    if shell.json:
        shell.document(found)
    else:
        for note in found.notes:
            shell.console.print(Text(f"note: {note}"), soft_wrap=True)
        for fault in found.faults:
            shell.console.print(Text(fault), soft_wrap=True)
        if not found.faults:
            rows = table("", "this plan", "as it was planned")
            for measure, value in found.costs.items():
                before = cost_text(measure, found.before.get(measure, 0.0))
                rows.add_row(label(measure, found.latency_from), cost_text(measure, value), before)
            shell.console.print(rows)
            shell.console.print("predicted from the plan's own costs; edgeq deploy --plan measures it")
    return UsageError.exit_code if found.faults else 0
