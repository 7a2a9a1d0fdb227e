"""`edgeq deploy` and `edgeq validate`: from a model, or from an artefact, to a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeq.cli import options as o
from edgeq.cli.shell import Shell
from edgeq.errors import GateError

if TYPE_CHECKING:
    from edgeq.report.schema import Report
    from edgeq.validation.gates import Limits


def deploy(
    shell: Shell,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A .pt2, TorchScript, torch.save or safetensors file.")],
    target: o.TargetName,
    calib: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="Samples to set ranges by: .npz, .npy, a folder of images, or package.module:function.",
            rich_help_panel="Data",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for artefacts and report; must be new or empty.")],
    evaluation: o.Evaluation = None,
    preprocess: o.Preprocess = None,
    metric: o.MetricName = None,
    format: Annotated[o.FormatChoice, typer.Option(help="What to build: the best, all, or one.")] = o.FormatChoice.auto,
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
    max_drop: o.MaxDrop = None,
    max_latency: o.MaxLatency = None,
    max_size: o.MaxSize = None,
    min_speedup: o.MinSpeedup = None,
    allow_slower: o.AllowSlower = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier build in --out.")] = False,
) -> int:
    """Quantize a model, build the artefact, and prove it on its device.

    Exit codes: 0 done and all limits held; 2 wrong use;
    3 a limit was missed (artefact and report are written);
    4 not supported; 5 device or runtime failed.
    """
    limits = _limits(max_drop, max_latency, max_size, min_speedup, allow_slower)
    with shell.stages() as stages:
        from edgeq.deploy import deploy as build

        report = build(
            model,
            target=target,
            calibration=calib,
            evaluation=evaluation,
            out=out,
            format=format.value,
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
            overwrite=overwrite,
            progress=stages,
        )
    return conclude(shell, report, out)


def validate(
    shell: Shell,
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A .onnx, .xml or .tflite file.")],
    model: Annotated[str, typer.Option(metavar="MODEL", help="The float model that it was made from.")],
    target: o.TargetName,
    evaluation: Annotated[
        str,
        typer.Option(
            "--eval",
            metavar="DATA",
            help="Samples with labels to judge by: .npz, .npy, a folder of images, or package.module:function.",
            rich_help_panel="Data",
        ),
    ],
    preprocess: o.Preprocess = None,
    metric: o.MetricName = None,
    device: o.DeviceName = None,
    threads: o.Threads = 1,
    inputs: o.Inputs = [],  # noqa: B006
    arch: o.Arch = None,
    trust_pickle: o.TrustPickle = False,
    max_drop: o.MaxDrop = None,
    max_latency: o.MaxLatency = None,
    max_size: o.MaxSize = None,
    min_speedup: o.MinSpeedup = None,
    allow_slower: o.AllowSlower = False,
) -> int:
    """Measure an artefact that is there already against the float model.

    Exit codes are those of `edgeq deploy`.
    """
    limits = _limits(max_drop, max_latency, max_size, min_speedup, allow_slower)
    with shell.stages() as stages:
        from edgeq.deploy import validate as measure

        report = measure(
            artifact,
            model=model,
            target=target,
            evaluation=evaluation,
            preprocess=preprocess,
            metric=metric,
            limits=limits,
            device=device,
            threads=threads,
            inputs=inputs,
            arch=arch,
            trust_pickle=trust_pickle,
            progress=stages,
        )
    return conclude(shell, report, None)


def conclude(shell: Shell, report: Report, folder: Path | None) -> int:
    """Show a report; returns the exit code that its verdict asks for."""
    from edgeq.report.console import render

    if not shell.quiet:
        render(report, shell.console, folder)
    if shell.json:
        shell.document(report)
    if report.verdict != "failed":
        return 0
    missed = [
        f"{gate.name} {gate.measured}, limit {gate.limit}"
        for build in report.builds
        if build.format == report.chosen or len(report.builds) == 1
        for gate in build.gates
        if not gate.passed
    ]
    return shell.tell(
        GateError(
            "; ".join(missed) or report.verdict_text,
            where=f"{report.model} on {report.target}",
            remedy="the report says where the loss or the time arises; artefact and report are written all the same"
            if folder is not None
            else "change the model or its plan, or the limit",
        )
    )


def _limits(
    max_drop: str | None, max_latency: str | None, max_size: str | None, min_speedup: str | None, allow_slower: bool
) -> Limits:
    from edgeq.validation.gates import Limits

    return Limits.parse(
        max_drop=max_drop,
        max_latency=max_latency,
        max_size=max_size,
        min_speedup=min_speedup,
        allow_slower=allow_slower,
    )
