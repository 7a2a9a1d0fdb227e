"""`edgeq plan`: the best plan within limits for one target, or with several the fewest artefacts for all of them."""

from __future__ import annotations

from enum import Enum
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeq.cli import options as o
from edgeq.cli.language import plan_language
from edgeq.cli.outcome import limits_from
from edgeq.cli.plan_check import plan_check
from edgeq.cli.plan_fleet import limits_by_target, plan_fleet
from edgeq.cli.plan_front import plan_front
from edgeq.cli.plan_show import show_plan
from edgeq.cli.shell import Shell
from edgeq.errors import GateError, UsageError

if TYPE_CHECKING:
    from edgeq.limits import Limits
    from edgeq.plans.plan import Plan, Proof


class Minimize(str, Enum):
    """What the best plan has the least of."""

    latency = "latency"
    size = "size"
    loss = "loss"
    energy = "energy"


def plan(
    shell: Shell,
    *,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="A .pt2, TorchScript, torch.save or safetensors file.", show_default=False
        ),
    ] = None,
    target: Annotated[
        list[str],
        typer.Option(
            "--target",
            metavar="T",
            help="What to plan for: a name from `edgeq targets`, or a .toml file. "
            "Given several times: the fewest artefacts that serve all of them.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    calib: o.Calibration = None,
    evaluation: o.Evaluation = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where the plan is written.")] = Path(
        "plan.json"
    ),
    minimize: Annotated[
        Minimize, typer.Option(help="What to have the least of, within the limits.")
    ] = Minimize.latency,
    rules: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .toml file of rules: what some layers have to be.")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(metavar="PLAN", help="Cost an edited plan anew, without a build; nothing else is done."),
    ] = None,
    format: o.FormatName = "auto",
    device: o.DeviceName = None,
    profile: o.ProfileName = None,
    threads: o.Threads = 1,
    workers: o.Workers = None,
    engine: o.EngineName = None,
    read: o.Judging,
    smooth_quant: o.SmoothQuant = o.SmoothChoice.auto,
    effort: o.EffortOption = None,
    method: o.MethodName = None,
    pareto: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Measure N plans along the trade of accuracy for latency or size.",
        ),
    ] = None,
    limits: o.PlanLimits,
) -> int:
    """Find the best plan that the device allows: measured costs, measured sensitivity, solved, built and proved.

    A device that cannot be timed here is modelled from its profile, and what is modelled is never called held.
    With several targets: a plan for each, and of all of them the fewest artefacts that serve every target.

    Exit codes: 0 done and all limits held that can be judged here; 2 wrong use;
    3 a limit cannot be held (the best plan is written);
    4 not supported; 5 device or runtime failed.
    """
    several = len(target) > 1
    alone = {"--check": check, "--pareto": pareto, "--device": device, "--profile": profile}
    if several and (told := [option for option, value in alone.items() if value is not None]):
        raise UsageError(f"{told[0]} goes with one target, not with {len(target)}", remedy="give --target once")
    if check is not None:
        return plan_check(shell, check, target[0] if target else None)
    for value, option in ((model, "MODEL"), (target, "--target"), (calib, "--calib"), (evaluation, "--eval")):
        if not value:
            raise UsageError(f"{option} is missing", remedy="see edgeq plan --help")
    assert model is not None
    from edgeq.hugging_face.folder import is_decoder

    if is_decoder(Path(model)):
        others: dict[str, object] = {"--pareto": pareto, "--rules": rules, "--workers": workers, "--engine": engine}
        others["--smooth-quant"] = smooth_quant if smooth_quant is o.SmoothChoice.off else None
        others["--minimize"] = None if minimize is Minimize.latency else minimize
        others["--max-latency"] = limits.max_latency
        asked: dict[str, Any] = {"calibration": calib, "evaluation": evaluation, "format": format, "device": device}
        asked |= {"method": method, "effort": effort, "profile": profile, "threads": threads, **vars(read)}
        return plan_language(shell, model, target, out, asked, others, limits)
    how: dict[str, Any] = {
        "calibration": calib,
        "evaluation": evaluation,
        "format": format,
        "threads": threads,
        "smooth_quant": smooth_quant.value,
        "effort": None if effort is None else effort.value,
        "method": method,
        "minimize": minimize.value,
        **vars(read),
    }
    how |= {"targets": target} if several else {"target": target[0], "device": device, "profile": profile}
    if pareto is None:
        how["limits"] = limits_by_target(target, limits) if several else limits_from(limits)
    elif limits.max_drop or limits.max_latency or limits.max_size:
        raise UsageError("a front has no limits", remedy="leave --pareto or the limits away")
    return _find(shell, out, model, how, pareto, {"name": engine, "workers": workers}, rules)


def _find(
    shell: Shell,
    out: Path,
    model: str,
    how: dict[str, Any],
    pareto: int | None,
    engine: dict[str, Any],
    rules: Path | None,
) -> int:
    """Plans for one target or several, or measures a front.

    Args:
        how: what finds it is called with.
        pareto: points of a front.
        engine: what `open_engine` is called with.
        rules: their file.
    """
    with shell.stages() as how["progress"]:
        from edgeq.cache import open_cache
        from edgeq.data.kept import begin_reading
        from edgeq.files import refuse_unwritable

        if pareto is not None and out.suffix == ".html":
            raise UsageError("that is the name of its page", where=str(out), remedy="give --out a name in .json")
        # a front or a fleet writes a plan for each of its members too, and a front a page
        refuse_unwritable(out, f"{escape(out.stem)}.*" if "targets" in how or pareto is not None else "")
        begin_reading({role: how[role] for role in ("calibration", "evaluation")}, open_cache())
        from edgeq.engine import open_engine  # while the data is read
        from edgeq.plans.rules import read_rules

        how["rules"] = read_rules(rules) if rules else []
        with open_engine(**engine) as how["engine"]:
            if "targets" in how:
                return plan_fleet(shell, out, model, how)
            if pareto is not None:
                return plan_front(shell, out, model, pareto, how)
            return _plan_one(shell, out, model, how)


def _plan_one(shell: Shell, out: Path, model: str, how: dict[str, Any]) -> int:
    from edgeq.files import write_json
    from edgeq.planning.planner import plan as find

    found = find(model, **how)
    write_json(out, found)
    if not shell.quiet:
        show_plan(shell, found, out)
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
    return shell.tell(
        GateError(
            "no plan that was built holds every limit; the best one is written",
            where=str(out),
            remedy="; ".join(_ways_out(found, planned.proof, how["limits"])),
        )
    )


def _ways_out(found: Plan, proof: Proof, limits: Limits) -> list[str]:
    """For each limit that was missed, what it would have to be."""
    from edgeq.limits import exceeded
    from edgeq.planning.explain.explain import guiltiest
    from edgeq.records.wording import seconds_text

    missed = exceeded(limits, proof.measured)
    ways = []
    if "recognizable" in missed:
        ways.append("leave more in float, or pass --allow-unrecognizable")
    if "size" in missed:
        ways.append(f"allow {proof.size} bytes")
    if "latency" in missed and proof.latency is not None:
        ways.append(f"allow {seconds_text(proof.latency)}")
    if "drop" in missed:
        ways.append(f"allow a larger drop: most of it comes from {', '.join(guiltiest(found)) or 'no layer'}")
    return ways
