"""`edgeq explain`: why each layer got what it got, what its loss comes from, and what to change next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from edgeq.cli import options as o
from edgeq.cli.shell import Shell
from edgeq.cli.tables import table
from edgeq.errors import UsageError

if TYPE_CHECKING:
    from edgeq.plans.explained import AttributedLayer, Attribution, Change, Explanation, LostFusion, Recovered
    from edgeq.plans.plan import Plan

WORST = 3
"""Places and conversions that are spelt out below the table."""

NEARLY = 0.9
"""Of two choices that bring back nearly as much, the one that the runtime prefers is named."""

_ATTRIBUTION = "What the loss comes from (simulated)"


def explain(
    shell: Shell,
    *,
    file: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan of `edgeq plan`.")],
    layer: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Only layers whose name matches, such as features.1*.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="The plan's model: run the plan without each cause of loss, layer by layer.",
            rich_help_panel=_ATTRIBUTION,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Calibration samples to run; 16 if not given.", rich_help_panel=_ATTRIBUTION
        ),
    ] = None,
    every: Annotated[
        bool,
        typer.Option(
            "--all", help="Every layer, not only the 16 with the most expected loss.", rich_help_panel=_ATTRIBUTION
        ),
    ] = False,
    target: Annotated[
        str | None, typer.Option("--target", metavar="T", help="The plan's target, where it is a .toml file of yours.")
    ] = None,
    calib: o.Calibration = None,
    read: o.Reading,
) -> int:
    """Say why each layer got its choice, what each alternative would cost, and what to change next.

    With --model, also what each layer's loss comes from: the plan is simulated without clipping, without rounded
    weights, and so on, one layer and one cause at a time.
    """
    from edgeq.planning.explain.explain import Simulated
    from edgeq.planning.explain.explain import explain as work_out
    from edgeq.plans.plan import read_plan
    from edgeq.registry.load import load_target

    if model is None and (samples or every or calib or any(vars(read).values())):
        raise UsageError("this needs the plan's model", remedy="give --model, or leave the other options away")
    plan, aim = read_plan(file), load_target(target) if target else None
    if model is None:
        found = work_out(plan, layer, target=aim)
        if shell.json:
            shell.document(found)
        else:
            _show(shell, found)
        return 0
    with shell.stages() as stages:
        from edgeq.planning.explain.attribution import GUILTIEST, SAMPLES, attribute
        from edgeq.planning.explain.follow import job_of

        job = job_of(plan, model, target=aim, calibration=calib, progress=stages, **vars(read))
        why = attribute(job, plan, samples=samples or SAMPLES, pattern=layer, most=None if every else GUILTIEST)
    told = None
    if plan.planned is not None:
        simulated = {
            (one.name, new.choice): Simulated(-new.recovered.share, new.recovered.chance)
            for one in why.layers
            for new in one.instead
        }
        told = work_out(plan, target=aim, simulated=simulated)
    if shell.json:
        from edgeq.cli.shell import plain

        shell.document({**(plain(told) if told else {}), "attribution": why})
    else:
        _show_attribution(shell, plan, why, told)
    return 0


def _show(shell: Shell, found: Explanation) -> None:
    rows = table("layer", "choice", "instead", _latency(found), "size", "loss")
    for layer in found.layers:
        cells = [[change.choice, *_delta(change)] for change in layer.alternatives] or [[""] * 4]
        for number, more in enumerate(cells):
            head = (Text(layer.name), layer.choice) if number == 0 else ("", "")
            rows.add_row(*head, *more)
    shell.console.print(rows)
    _show_steps(shell, found)
    if found.latency_from == "modelled":
        shell.console.print("latency: modelled, not measured; size from builds, loss from one Gauss-Newton pass")
    else:
        shell.console.print("predicted: latency and size from measured builds, loss from one Gauss-Newton pass")
    _show_footnote(shell, found)


def _show_footnote(shell: Shell, found: Explanation) -> None:
    if found.losses_alone:
        ranks = found.rank_correlation
        tail = "" if ranks is None else f"; rank correlation with the prediction {ranks:.2f}"
        text = f"* simulated, with this layer alone rounded, as {found.losses_alone} choices were{tail}"
        shell.console.print(Text(text), soft_wrap=True)


def _latency(found: Explanation) -> str:
    return "latency (modelled)" if found.latency_from == "modelled" else "latency"


def _show_steps(shell: Shell, found: Explanation) -> None:
    console = shell.console
    for note in found.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)
    for title, steps in (("to gain accuracy", found.gain_accuracy), ("to gain speed", found.gain_speed)):
        if steps:
            console.print(Text(title, "bold"))
        for change in steps:
            latency, size, loss = _delta(change)
            latency += " (modelled)" if latency and found.latency_from == "modelled" else ""
            how = " (simulated)" if change.loss_from == "simulated" else ""
            console.print(
                Text(f"  {change.layer}: {change.choice}  {latency} {size}  loss {loss}{how}"), soft_wrap=True
            )


def _show_attribution(shell: Shell, plan: Plan, why: Attribution, told: Explanation | None) -> None:
    console = shell.console
    if not why.layers:
        console.print("nothing is rounded in this plan: it loses nothing")
        return
    unfused = any(x.layer == layer.name for x in why.lost_fusion for layer in why.layers)
    heads = ["layer", "choice", "loss", "clipping", "weights", "activ.", "bias", "at ends"]
    rows = table(*heads, *(["fusion"] if unfused else []))
    for layer in why.layers:
        causes, ends = layer.causes, layer.causes.saturation
        rows.add_row(
            Text(layer.name),
            layer.choice,
            *(_percent(c) for c in (causes.all, causes.clipping, causes.weights, causes.activations, causes.bias)),
            "" if ends is None else _share(ends.low + ends.high),
            *([_fusion(why, layer.name)] if unfused else []),
        )
    console.print(rows)
    lines = [
        f"simulated on {why.samples} samples: the plan loses {why.loss:.3g}"
        + (f" (predicted {why.predicted_loss:.3g})" if why.predicted_loss is not None else "")
        + "; figures are % of that",
        "what is lost less without the cause at that layer; in brackets: may be chance (2 standard errors)",
    ]
    if len(why.layers) > 1:
        added = f"added up: {100 * why.added:.1f} %"
        lines.append(f"all {len(why.layers)} in float at once: {_percent(why.together)} % less; {added}")
    guilty = sorted((x for x in why.layers if x.causes.largest), key=lambda x: -x.causes.all.share)[:WORST]
    lines += [f"{x.name}: {_cause_text(x)}" for x in guilty]
    how = "modelled" if told is not None and told.latency_from == "modelled" else "predicted"
    lines += [f"{x.layer}: {_fusion_text(x, how)}" for x in why.lost_fusion[:WORST]]
    lines += [f"note: {note}" for note in why.notes]
    for line in lines:
        console.print(Text(line), soft_wrap=True)
    if told is None:
        console.print("the plan carries no costs: edgeq plan makes one that says what to change next")
    else:
        # what the rules say is among the notes already
        _show_steps(shell, told.model_copy(update={"notes": []}))
        _show_footnote(shell, told)
    proof = plan.planned.proof if plan.planned else None
    if proof is not None and proof.drop is not None:
        interval = f" ({proof.drop_low:.2f} to {proof.drop_high:.2f})" if proof.drop_low is not None else ""
        text = f"measured in {plan.runtime}, when it was planned: drop of {proof.metric} {proof.drop:.2f}{interval}"
        console.print(Text(text), soft_wrap=True)


def _cause_text(layer: AttributedLayer) -> str:
    """What the largest cause is, in figures, and what a person can do about it."""
    causes, reach = layer.causes, layer.reach
    most = max((x.recovered.share for x in layer.instead), default=0.0)
    best = next((x for x in layer.instead if x.recovered.share >= NEARLY * most), None)
    sure = best is not None and best.recovered.beyond_chance
    other = f"; {best.choice} instead: {_percent(best.recovered)} % less" if best and sure else ""
    if causes.largest == "clipping" and reach is not None:
        wider = f"; with a range that reaches them: {_percent(causes.widened)} % less" if causes.widened else ""
        return (
            f"clipping, range {reach.low:.3g} to {reach.high:.3g}, values {reach.seen_low:.3g} to "
            f"{reach.seen_high:.3g}{wider}"
        )
    if causes.largest == "bias" and causes.bias_corrected is not None:
        return f"a shift of the mean is left; its correction has won {_percent(causes.bias_corrected)} %{other}"
    what = {"weights": "rounded weights", "activations": "rounded activations", "bias": "a shift of the mean"}
    ties = causes.ties
    tied = f"; {ties.planned:.2g} % of answers tie, {ties.without:.2g} % without" if ties and ties.planned else ""
    return f"{what.get(causes.largest or '', 'clipping')}{tied}{other}"


def _fusion_text(lost: LostFusion, how: str) -> str:
    """What runs beside the kernel, and what an integer choice would change."""
    time = f", {_micro(lost.latency)}" if lost.latency is not None else ""
    if lost.instead is None:
        stuck = "; it can be nothing else" if time and lost.neighbours else ""
        return f"{lost.text}{time}{f' {how}' if time else ''}{stuck}"
    latency, _, loss = _delta(lost.instead)
    return f"{lost.text}{time}; {lost.instead.choice} instead: {latency} in all, loss {loss}, {how}"


def _fusion(why: Attribution, layer: str) -> str:
    lost = [x for x in why.lost_fusion if x.layer == layer]
    seconds = sum(x.latency or 0.0 for x in lost)
    return _micro(seconds) if seconds else "unfused" if lost else ""


def _micro(seconds: float) -> str:
    return f"{1e6 * seconds:.0f} us"


def _share(share: float) -> str:
    return "< 0.01 %" if 0 < share < 1e-4 else f"{100 * share:.2g} %"


def _percent(one: Recovered | None) -> str:
    if one is None:
        return ""
    text = f"{100 * one.share + 0.0:.1f}"
    return text if one.beyond_chance else f"({text})"


def _delta(change: Change) -> list[str]:
    latency = "" if change.latency is None else f"{1e6 * change.latency:+.0f} us"
    mark = "*" if change.loss_from == "alone" else ""
    return [latency, f"{change.size / 1000:+.1f} kB", f"{100 * change.loss:+.1f} %{mark}"]
