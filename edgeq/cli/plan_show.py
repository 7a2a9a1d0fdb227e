"""How plans, and what is known of them, are shown to people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from edgeq.cli.shell import Shell
from edgeq.cli.tables import table

if TYPE_CHECKING:
    from edgeq.planning.front import Front
    from edgeq.plans.plan import Compiled, ModelledBy, Plan, Planned, Proof


def show_plan(shell: Shell, found: Plan, out: Path) -> None:
    """A plan: what it is made of, predicted beside what is known of it."""
    planned, console = found.planned, shell.console
    assert planned is not None
    kinds: dict[str, int] = {}
    for layer in found.layers:
        kinds[layer.choice] = kinds.get(layer.choice, 0) + 1
    console.print(Text.assemble((f"{found.format} in {found.runtime}", "bold"), f": {_verdict(planned)}"))
    console.print(Text(", ".join(f"{count} layers {choice}" for choice, count in sorted(kinds.items()))))
    console.print(_costs(planned))
    if planned.proof is not None:
        for name, seconds in planned.proof.latency_of.items():
            what = "the preferred kernels everywhere" if name == "preferred" else f"{name}, in turns"
            console.print(Text(f"{what}: {cost_text('latency', seconds)}{_times(planned.proof, seconds)}"))
    if planned.compiled is not None:
        console.print(Text(_compiler(planned.compiled)), soft_wrap=True)
    how: str = planned.method if planned.method != "given" else "the best of what was measured"
    if planned.gap:
        how += f", within {100 * planned.gap:.2g} % of the best predicted"
    done = "built and measured" if planned.proof is not None else "built, none of them run"
    console.print(Text(f"{planned.minimize} minimized: {how}; {len(planned.attempts)} {done}"))
    if found.float_precision != "float32":
        console.print(Text(f"what is in float computes in {found.float_precision}: a setting of {found.runtime}"))
    for note in planned.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)
    console.print(Text(f"{out}  (edgeq explain, edgeq deploy --plan)"), soft_wrap=True)


def _verdict(planned: Planned) -> str:
    if not planned.held:
        return "a limit was missed"
    if planned.proof is None:
        return "not validated"
    return "every limit held" + (" that can be judged here" if planned.unvalidated else "")


def _costs(planned: Planned) -> Table:
    """What was predicted beside what was measured; what is modelled says so in its own row."""
    proof = planned.proof
    rows = table("", "predicted", "built" if proof is None else "measured")
    measured: dict[str, float | None] = {"size": planned.size}
    if proof is not None:
        measured |= {"latency": proof.latency, "loss": proof.loss}
    for measure, value in planned.predicted.items():
        known = measured.get(measure)
        name = label(measure, planned.latency_from, planned.latency_by)
        rows.add_row(name, cost_text(measure, value), "" if known is None else cost_text(measure, known))
    if planned.peak_memory is not None:
        rows.add_row("activations, peak (from the schedule)", cost_text("size", planned.peak_memory), "")
    if proof is not None and proof.drop is not None:
        interval = f" ({proof.drop_low:.2f} to {proof.drop_high:.2f})" if proof.drop_low is not None else ""
        rows.add_row(f"drop of {proof.metric}", "", f"{proof.drop:.2f}{interval}")
    return rows


def label(measure: str, latency_from: str | None, by: ModelledBy | None = None) -> str:
    if measure == "energy":
        return "energy (modelled)"
    if measure == "latency" and latency_from == "modelled":
        return f"latency (modelled by {by.by})" if by is not None else "latency (modelled)"
    return measure


def _compiler(compiled: Compiled) -> str:
    left = f"; left to the CPU: {', '.join(compiled.left_to_cpu)}" if compiled.left_to_cpu else "; nothing on the CPU"
    return (
        f"the plan's file as {compiled.by} compiles it (modelled): {cost_text('latency', compiled.seconds)}, "
        f"SRAM {cost_text('size', compiled.sram)}, other memory {cost_text('size', compiled.flash)}{left}"
    )


def _times(proof: Proof, seconds: float) -> str:
    return f", {seconds / proof.latency:.2f}x the plan's" if proof.latency else ""


def show_front(shell: Shell, found: Front, names: list[str]) -> None:
    """The points of a front, with the files of their plans."""
    rows = table("plan", found.over, f"drop of {found.metric}", "interval", "file")
    for point, file in zip(found.points, names, strict=True):
        interval = "" if point.drop_low is None else f"{point.drop_low:.2f} to {point.drop_high:.2f}"
        name = Text(point.name, "bold" if point.on_front else "dim")
        rows.add_row(name, cost_text(found.over, point.value), f"{point.drop:.2f}", interval, file)
    shell.console.print(rows)


def cost_text(measure: str, value: float) -> str:
    """A cost with its unit."""
    from edgeq.records.wording import bytes_text, joules_text, seconds_text

    if measure == "latency":
        return seconds_text(value)
    if measure == "energy":
        return joules_text(value)
    return bytes_text(round(value)) if measure == "size" else f"{value:.3g}"
