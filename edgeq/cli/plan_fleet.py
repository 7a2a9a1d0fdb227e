"""`edgeq plan` with several targets: the fewest artefacts that serve them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from edgeq.cli.options import PlanLimits
from edgeq.cli.outcome import limits_from
from edgeq.cli.plan_show import cost_text
from edgeq.cli.shell import Shell
from edgeq.errors import GateError, UsageError

if TYPE_CHECKING:
    from edgeq.limits import Limits
    from edgeq.plans.fleet import Fleet, Gain, Member

WIDTH = 100
_STYLES = {"held": "green", "missed": "red", "not validated": "yellow"}


def plan_fleet(shell: Shell, out: Path, model: str, how: dict[str, Any]) -> int:
    """Plans a fleet and writes it, with a plan for each of its artefacts.

    Args:
        how: what `edgeq.planning.fleet.fleet.fleet` is called with besides.
    """
    from edgeq.planning.fleet.fleet import fleet
    from edgeq.plans.fleet import write_fleet

    found, plans = fleet(model, **how)
    found = write_fleet(out, found, plans)
    if not shell.quiet:
        show_fleet(shell, found, out)
    if shell.json:
        shell.document(found)
    if found.held:
        return 0
    missed = [f"{m.target} ({m.verdict.because})" for m in found.targets if m.verdict.status == "missed"]
    return shell.tell(
        GateError(
            f"no artefact holds every limit of {', '.join(missed)}; what comes closest is written",
            where=str(out),
            remedy="loosen the limit, for one target as in --max-drop NAME=1%, or leave the target away",
        )
    )


def limits_by_target(targets: Sequence[str], told: PlanLimits) -> dict[str, Limits]:
    """The limits of each target: `1%` counts for all, `phone=2%` for one, and `1%,phone=2%` for all with one exception.

    Args:
        targets: as they were given: names or target files.

    Raises:
        UsageError: a limit cannot be read, or names no target.
    """
    from edgeq.registry.load import load_target

    names = [load_target(target).name for target in targets]
    texts = {limit: text for limit, text in vars(told).items() if isinstance(text, str)}
    own = {limit: _by_target(f"--{limit.replace('_', '-')}", text, names) for limit, text in texts.items()}
    return {
        name: limits_from(replace(told, **{limit: of_target[name] for limit, of_target in own.items()}))
        for name in names
    }


def _by_target(option: str, text: str, names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, str | None] = dict.fromkeys(names)
    # the rule for all counts first, wherever it stands
    parts = sorted((part.rpartition("=") for part in text.split(",")), key=lambda part: bool(part[1]))
    for name, equals, value in parts:
        if equals and name.strip() not in names:
            raise UsageError(
                f"there is no target {name.strip()!r} here", where=option, remedy=f"one of: {', '.join(names)}"
            )
        found |= dict.fromkeys([name.strip()] if equals else names, value)
    return found


def show_fleet(shell: Shell, found: Fleet, out: Path) -> None:
    """A row for each target: its artefact, what was measured there, and what one of its own would gain."""
    console = shell.console
    console.print(Text(found.why, "bold"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, right in (("target", 0), ("artefact", 0), ("limits", 0), ("drop", 1), ("latency", 1), ("size", 1)):
        table.add_column(heading, justify="right" if right else "left")
    table.add_column("with its own", overflow="fold")
    sizes = {artefact.name: artefact.size for artefact in found.artefacts}
    for member in found.targets:
        table.add_row(*_cells(member, sizes[member.artefact]))
    console.print(table, width=min(WIDTH, console.width))
    for member in found.targets:
        if member.verdict.status != "held":
            console.print(Text(f"{member.target}: {member.verdict.status}: {member.verdict.because}"), soft_wrap=True)
        elif member.verdict.emulated:
            console.print(Text(f"{member.target}: {member.verdict.because}, which is emulated"), soft_wrap=True)
    for note in found.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)
    for artefact in found.artefacts:
        served = ", ".join(artefact.serves)
        console.print(Text(f"{out.with_name(artefact.plan)}  {artefact.format} for {served}"), soft_wrap=True)
    console.print(Text(f"{out}  (edgeq deploy --plan)"), soft_wrap=True)


def _cells(member: Member, size: int) -> list[Text]:
    verdict, proof = member.verdict, member.verdict.proof
    drop = "" if proof is None or proof.drop is None else f"{proof.drop:.2f}"
    latency = "" if proof is None or proof.latency is None else cost_text("latency", proof.latency)
    return [
        Text(member.target),
        Text(member.artefact),
        Text(verdict.status, _STYLES[verdict.status]),
        Text(drop),
        Text(latency),
        Text(cost_text("size", size)),
        Text("(is its own)" if member.alone is None else _gain(member.alone), "dim"),
    ]


def _gain(gain: Gain) -> str:
    parts = []
    if gain.latency is not None:
        turns = "" if gain.in_turns else " (not in turns)"
        parts.append(_less(gain.latency, cost_text("latency", abs(gain.latency))) + turns)
    parts.append(_less(gain.size, cost_text("size", abs(gain.size))))
    if gain.drop:
        parts.append(f"drop {_less(gain.drop, f'{abs(gain.drop):.2f}')}")
    return ", ".join(parts)


def _less(value: float, text: str) -> str:
    return f"{text} {'more' if value < 0 else 'less'}"
