"""`edgeq plan`: the best plan within limits."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from edgeq.cli import options as o
from edgeq.cli.outcome import limits_from
from edgeq.cli.shell import Shell
from edgeq.cli.tables import table as _table
from edgeq.errors import GateError, UsageError

if TYPE_CHECKING:
    from edgeq.planning.plan import Compiled, ModelledBy, Plan, Planned, Proof


class Minimize(str, Enum):
    """What the best plan has the least of."""

    latency = "latency"
    size = "size"
    loss = "loss"
    energy = "energy"


def plan(
    shell: Shell,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="A .pt2, TorchScript, torch.save or safetensors file.", show_default=False
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="T", help="What to plan for: a name from `edgeq targets`, or a .toml file."),
    ] = None,
    calib: o.Calibration = None,
    evaluation: o.Evaluation = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where the plan is written.")] = Path(
        "plan.json"
    ),
    minimize: Annotated[
        Minimize, typer.Option(help="What to have the least of, within the limits.")
    ] = Minimize.latency,
    rules: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .toml file with [[rules]]: what some layers have to be.")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(metavar="PLAN", help="Cost an edited plan anew, without a build; nothing else is done."),
    ] = None,
    preprocess: o.Preprocess = None,
    metric: o.MetricName = None,
    format: Annotated[o.FormatChoice, typer.Option(help="Plan for the best format, or for one.")] = o.FormatChoice.auto,
    device: o.DeviceName = None,
    profile: o.ProfileName = None,
    threads: o.Threads = 1,
    inputs: o.Inputs = [],  # noqa: B006
    arch: o.Arch = None,
    trust_pickle: o.TrustPickle = False,
    pareto: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Measure N plans along the trade of accuracy for latency or size.",
        ),
    ] = None,
    max_drop: o.MaxDrop = None,
    max_latency: o.MaxLatency = None,
    max_size: o.MaxSize = None,
) -> int:
    """Find the best plan that the device allows: measured costs, measured sensitivity, solved, built and proved.

    A device that cannot be timed here is modelled from its profile, and what is modelled is never called held.

    Exit codes: 0 done and all limits held that can be judged here; 2 wrong use;
    3 a limit cannot be held (the best plan is written);
    4 not supported; 5 device or runtime failed.
    """
    if check is not None:
        return _check(shell, check, target)
    for value, option in ((model, "MODEL"), (target, "--target"), (calib, "--calib"), (evaluation, "--eval")):
        if value is None:
            raise UsageError(f"{option} is missing", remedy="see edgeq plan --help")
    assert model is not None and target is not None and calib is not None and evaluation is not None
    if pareto is not None and (max_drop or max_latency or max_size):
        raise UsageError("a front has no limits", remedy="leave --pareto or the limits away")
    limits = limits_from(max_drop, max_latency, max_size, None, True)
    with shell.stages() as stages:
        import json

        from edgeq.files import atomic_write
        from edgeq.planning.planner import plan as find
        from edgeq.planning.rules import read_rules

        ruled = read_rules(rules) if rules else []
        if not out.parent.is_dir():
            raise UsageError(
                "there is no such folder", where=str(out.parent), remedy="make it, or choose another --out"
            )
        how: dict[str, Any] = {
            "target": target,
            "calibration": calib,
            "evaluation": evaluation,
            "format": format.value,
            "preprocess": preprocess,
            "metric": metric,
            "device": device,
            "profile": profile,
            "threads": threads,
            "inputs": inputs,
            "arch": arch,
            "trust_pickle": trust_pickle,
            "rules": ruled,
            "progress": stages,
        }
        if pareto is not None:
            return _front(shell, out, model, pareto, minimize, how)
        found = find(model, minimize=minimize.value, limits=limits, **how)
        atomic_write(out, json.dumps(found.model_dump(mode="json"), indent=2) + "\n")
    if not shell.quiet:
        _show(shell, found, out)
    if shell.json:
        shell.document(found)
    planned = found.planned
    assert planned is not None
    for text in planned.unvalidated:
        shell.warn(f"not validated: {text}")
    if planned.held:
        return 0
    if planned.proof is None:
        return shell.tell(
            GateError(
                "no file that was built is within --max-size; the smallest plan is written",
                where=str(out),
                remedy=f"allow {planned.size} bytes, or a larger drop",
            )
        )
    from edgeq.planning.explain import guiltiest

    return shell.tell(
        GateError(
            "no plan that was built holds every limit; the best one is written",
            where=str(out),
            remedy=f"loosen a limit; most of what is lost comes from {', '.join(guiltiest(found)) or 'no layer'}",
        )
    )


def _front(shell: Shell, out: Path, model: str, points: int, minimize: Minimize, how: dict[str, Any]) -> int:
    import json

    from edgeq.files import atomic_write
    from edgeq.planning.front import front
    from edgeq.report.html import render_front

    if minimize in (Minimize.loss, Minimize.energy):
        raise UsageError("a front is over latency or size", remedy="choose --minimize latency or size")
    found = front(model, points=points, over="size" if minimize is Minimize.size else "latency", **how)
    atomic_write(out, json.dumps(found.model_dump(mode="json"), indent=2) + "\n")
    for number, point in enumerate(found.points, start=1):
        plan_file = out.with_name(f"{out.stem}.{number}.json")
        atomic_write(plan_file, json.dumps(point.plan.model_dump(mode="json"), indent=2) + "\n")
    page = out.with_suffix(".html")
    atomic_write(page, render_front(found))
    if not shell.quiet:
        table = _table("plan", found.over, f"drop of {found.metric}", "interval", "file")
        for number, point in enumerate(found.points, start=1):
            interval = "" if point.drop_low is None else f"{point.drop_low:.2f} to {point.drop_high:.2f}"
            name = Text(point.name, "bold" if point.on_front else "dim")
            cost = _cost(found.over, point.value)
            table.add_row(name, cost, f"{point.drop:.2f}", interval, f"{out.stem}.{number}.json")
        shell.console.print(table)
        shell.console.print(Text(f"{out}  {page}"), soft_wrap=True)
    if shell.json:
        shell.document(found)
    return 0


def _check(shell: Shell, path: Path, target: str | None) -> int:
    from edgeq.planning.explain import recost
    from edgeq.planning.plan import read_plan
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
            table = _table("", "this plan", "as it was planned")
            for measure, value in found.costs.items():
                before = _cost(measure, found.before.get(measure, 0.0))
                table.add_row(_label(measure, found.latency_from), _cost(measure, value), before)
            shell.console.print(table)
            shell.console.print("predicted from the plan's own costs; edgeq deploy --plan measures it")
    return UsageError.exit_code if found.faults else 0


def _show(shell: Shell, found: Plan, out: Path) -> None:
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
            console.print(Text(f"{what}: {_cost('latency', seconds)}{_times(planned.proof, seconds)}"))
    if planned.compiled is not None:
        console.print(Text(_compiler(planned.compiled)), soft_wrap=True)
    how = f"{planned.method}, within {100 * planned.gap:.2g} % of the best predicted" if planned.gap else planned.method
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
    table = _table("", "predicted", "built" if proof is None else "measured")
    measured = {"latency": proof.latency if proof is not None else None, "size": planned.size}
    for measure, value in planned.predicted.items():
        known = measured.get(measure)
        row = _label(measure, planned.latency_from, planned.latency_by)
        table.add_row(row, _cost(measure, value), "" if known is None else _cost(measure, known))
    if planned.peak_memory is not None:
        table.add_row("activations, peak (from the schedule)", _cost("size", planned.peak_memory), "")
    if proof is not None and proof.drop is not None:
        interval = f" ({proof.drop_low:.2f} to {proof.drop_high:.2f})" if proof.drop_low is not None else ""
        table.add_row(f"drop of {proof.metric}", "", f"{proof.drop:.2f}{interval}")
    return table


def _label(measure: str, latency_from: str | None, by: ModelledBy | None = None) -> str:
    if measure == "energy":
        return "energy (modelled)"
    if measure == "latency" and latency_from == "modelled":
        return f"latency (modelled by {by.by})" if by is not None else "latency (modelled)"
    return measure


def _compiler(compiled: Compiled) -> str:
    left = f"; left to the CPU: {', '.join(compiled.left_to_cpu)}" if compiled.left_to_cpu else "; nothing on the CPU"
    return (
        f"the plan's file as {compiled.by} compiles it (modelled): {_cost('latency', compiled.seconds)}, "
        f"SRAM {_cost('size', compiled.sram)}, other memory {_cost('size', compiled.flash)}{left}"
    )


def _times(proof: Proof, seconds: float) -> str:
    return f", {seconds / proof.latency:.2f}x the plan's" if proof.latency else ""


def _cost(measure: str, value: float) -> str:
    from edgeq.report.wording import bytes_text, joules_text, seconds_text

    if measure == "latency":
        return seconds_text(value)
    if measure == "energy":
        return joules_text(value)
    return bytes_text(round(value)) if measure == "size" else f"{value:.3g}"
