"""`edgeq validate`: from an artefact that is there already to its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeq.cli import options as o
from edgeq.cli.outcome import conclude, limits_from
from edgeq.cli.shell import Shell


def validate(
    shell: Shell,
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A .onnx, .xml or .tflite file.")],
    model: Annotated[str, typer.Option(metavar="MODEL", help="The float model that it was made from.")],
    target: o.TargetName,
    evaluation: o.NeededEvaluation,
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
    allow_unrecognizable: o.AllowUnrecognizable = False,
) -> int:
    """Measure an artefact that is there already against the float model.

    Exit codes are those of `edgeq deploy`.
    """
    limits = limits_from(max_drop, max_latency, max_size, min_speedup, allow_slower, allow_unrecognizable)
    with shell.stages() as stages:
        from edgeq.validate import validate as measure

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
