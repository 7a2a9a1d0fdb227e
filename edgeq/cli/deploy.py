"""`edgeq deploy`: from a model to an artefact and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeq.cli import options as o
from edgeq.cli.deploy_fleet import deploy_fleet
from edgeq.cli.outcome import conclude, limits_from
from edgeq.cli.shell import Shell
from edgeq.errors import UsageError


def deploy(
    shell: Shell,
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
    preprocess: o.Preprocess = None,
    metric: o.MetricName = None,
    format: o.FormatName = "auto",
    device: o.DeviceName = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="P",
            help="A device of the target, by name or .toml file.",
            rich_help_panel="Where and how it runs",
        ),
    ] = None,
    threads: o.Threads = 1,
    io: Annotated[
        o.IoChoice | None,
        typer.Option(
            help="Types at the model's ends; the target's own if not given.", rich_help_panel="Where and how it runs"
        ),
    ] = None,
    inputs: o.Inputs = [],  # noqa: B006
    arch: o.Arch = None,
    trust_pickle: o.TrustPickle = False,
    smooth_quant: o.SmoothQuant = o.SmoothChoice.auto,
    max_drop: o.MaxDrop = None,
    max_latency: o.MaxLatency = None,
    max_size: o.MaxSize = None,
    min_speedup: o.MinSpeedup = None,
    allow_slower: o.AllowSlower = False,
    allow_unrecognizable: o.AllowUnrecognizable = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier build in --out.")] = False,
) -> int:
    """Quantize a model, build the artefact, and prove it on its device.

    Exit codes: 0 done and all limits held; 2 wrong use;
    3 a limit was missed (artefact and report are written);
    4 not supported; 5 device or runtime failed.
    """
    made = None
    calibration: str | Path | None = calib
    judged_by: str | Path | None = evaluation
    if plan is not None:
        from edgeq.plans.fleet import is_fleet
        from edgeq.plans.plan import read_plan
        from edgeq.plans.remembered import data_of, metric_of

        if is_fleet(plan):
            single = {"--target": target, "--device": device, "--profile": profile, "--io": io}
            if format != "auto":
                single["--format"] = format
            if smooth_quant is not o.SmoothChoice.auto:
                single["--smooth-quant"] = smooth_quant
            how: dict[str, Any] = {
                "out": out,
                "threads": threads,
                "inputs": inputs,
                "arch": arch,
                "trust_pickle": trust_pickle,
                "overwrite": overwrite,
            }
            data = {"calibration": calib, "evaluation": evaluation, "preprocess": preprocess, "metric": metric}
            limits_told = (max_drop, max_latency, max_size, min_speedup, allow_slower, allow_unrecognizable)
            return deploy_fleet(shell, model, plan, single, data, limits_told, how)

        made = read_plan(plan)
        target = target or made.target
        metric = metric_of(made.given, metric)
        calibration = data_of(made.given, "--calib", calib, "calibration")
        judged_by = data_of(made.given, "--eval", evaluation, "evaluation")
        if made.given is not None:
            preprocess, device = preprocess or made.given.preprocess, device or made.given.device
    for value, option in ((target, "--target"), (calibration, "--calib")):
        if value is None:
            raise UsageError(f"{option} is missing", remedy=f"give {option}, or a plan with --plan")
    assert target is not None and calibration is not None
    limits = limits_from(max_drop, max_latency, max_size, min_speedup, allow_slower, allow_unrecognizable)
    with shell.stages() as stages:
        from edgeq.cache import open_cache
        from edgeq.data.kept import begin_reading

        for option, told, taken in (("--calib", calib, calibration), ("--eval", evaluation, judged_by)):
            if taken != told:
                stages.note(f"{option} {taken}, as the plan says")
        begin_reading({"calibration": calibration, "evaluation": judged_by}, open_cache())  # while the rest is imported
        from edgeq.deploy import deploy as build

        report = build(
            model,
            target=target,
            calibration=calibration,
            evaluation=judged_by,
            out=out,
            format=format,
            preprocess=preprocess,
            metric=metric,
            limits=limits,
            device=device,
            profile=profile,
            threads=threads,
            io=None if io is None else "integer" if io is o.IoChoice.int8 else "float",
            inputs=inputs,
            arch=arch,
            trust_pickle=trust_pickle,
            smooth_quant=smooth_quant.value,
            plan=made,
            overwrite=overwrite,
            progress=stages,
        )
    return conclude(shell, report, out)
