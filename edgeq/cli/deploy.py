"""`edgeq deploy`: from a model to an artefact and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeq.cli import options as o
from edgeq.cli.deploy_fleet import deploy_fleet
from edgeq.cli.language import deploy_language
from edgeq.cli.outcome import conclude, limits_from
from edgeq.cli.shell import Shell
from edgeq.errors import UsageError


def deploy(
    shell: Shell,
    *,
    model: o.ModelFile,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", help="Folder for artefacts and report; must be new or empty."),
    ],
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="T", help="What to build for: a name from `edgeq targets`, or a .toml file."),
    ] = None,
    calib: o.Calibration = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A plan or a fleet of `edgeq plan`; target and data are those that it was made with, if not given.",
        ),
    ] = None,
    evaluation: o.Evaluation = None,
    format: o.FormatName = "auto",
    device: o.DeviceName = None,
    profile: o.ProfileName = None,
    threads: o.Threads = 1,
    io: Annotated[
        o.IoChoice | None,
        typer.Option(
            help="Types at the model's ends; the target's own if not given.", rich_help_panel="Where and how it runs"
        ),
    ] = None,
    emit: Annotated[
        str | None,
        typer.Option(
            metavar="c|context",
            help="Also write C for LiteRT for Microcontrollers, with a golden input and its answer; "
            "or what Qualcomm's library compiles for the Hexagon of the profile.",
            rich_help_panel="Where and how it runs",
        ),
    ] = None,
    read: o.Judging,
    smooth_quant: o.SmoothQuant = o.SmoothChoice.auto,
    effort: o.EffortOption = None,
    method: o.MethodName = None,
    language: o.Language,
    limits: o.BuildLimits,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier build in --out.")] = False,
) -> int:
    """Quantize a model, build the artefact, and prove it on its device.

    Exit codes: 0 done and all limits held; 2 wrong use;
    3 a limit was missed (artefact and report are written);
    4 not supported; 5 device or runtime failed.
    """
    how: dict[str, Any] = {
        "calibration": calib,
        "evaluation": evaluation,
        "out": out,
        "threads": threads,
        "overwrite": overwrite,
        **vars(read),
    }
    from edgeq.hugging_face.folder import is_decoder

    if is_decoder(Path(model)):
        others = {"--io": io, "--emit": emit, "--smooth-quant": smooth_quant if smooth_quant.value == "off" else None}
        asked = {"method": method, "effort": effort, **vars(language), "format": format, "device": device}
        return deploy_language(
            shell, model, plan, {**how, **asked, "target": target, "profile": profile}, others, limits
        )
    if told := [name for name, value in vars(language).items() if value is not None]:
        raise UsageError(
            f"--{told[0]} is for language models", remedy="leave it away, or give a folder of a language model"
        )
    made = None
    if plan is not None:
        from edgeq.plans.fleet import is_fleet
        from edgeq.plans.plan import read_plan
        from edgeq.plans.remembered import completed

        if is_fleet(plan):
            alone = {"--target": target, "--device": device, "--profile": profile, "--io": io}
            alone["--format"] = None if format == "auto" else format
            alone["--smooth-quant"] = None if smooth_quant is o.SmoothChoice.auto else smooth_quant
            alone |= {"--method": method, "--effort": effort, "--emit": emit}
            return deploy_fleet(shell, model, plan, alone, limits, how)
        made = read_plan(plan)
        how = completed(made.given, how)
        target, device = target or made.target, device or (made.given.device if made.given else None)
    if target is None or how["calibration"] is None:
        option = "--target" if target is None else "--calib"
        raise UsageError(f"{option} is missing", remedy=f"give {option}, or a plan with --plan")
    how |= {
        "target": target,
        "format": format,
        "limits": limits_from(limits),
        "device": device,
        "profile": profile,
        "io": None if io is None else "integer" if io is o.IoChoice.int8 else "float",
        "smooth_quant": smooth_quant.value,
        "effort": None if effort is None else effort.value,
        "method": method,
        "plan": made,
        "emit": emit,
    }
    return _build(shell, model, how, {"calibration": calib, "evaluation": evaluation})


def _build(shell: Shell, model: str, how: dict[str, Any], told: dict[str, str | None]) -> int:
    """Builds, and shows the report.

    Args:
        how: what `edgeq.deploy` is called with.
        told: what of it the command line says of data; the plan says the rest.
    """
    with shell.stages() as stages:
        from edgeq.cache import open_cache
        from edgeq.data.kept import begin_reading

        for option, role in (("--calib", "calibration"), ("--eval", "evaluation")):
            if how[role] != told[role]:
                stages.note(f"{option} {how[role]}, as the plan says")
        # while the rest is imported
        begin_reading({"calibration": how["calibration"], "evaluation": how["evaluation"]}, open_cache())
        from edgeq.api.deploy import deploy as build

        report = build(model, progress=stages, **how)
    return conclude(shell, report, how["out"])
