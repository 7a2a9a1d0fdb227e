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
    *,
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A .onnx, .xml or .tflite file.")],
    model: Annotated[str, typer.Option(metavar="MODEL", help="The float model that it was made from.")],
    target: o.TargetName,
    evaluation: o.NeededEvaluation,
    device: o.DeviceName = None,
    threads: o.Threads = 1,
    read: o.Judging,
    limits: o.BuildLimits,
) -> int:
    """Measure an artefact that is there already against the float model.

    Exit codes are those of `edgeq deploy`.
    """
    held = limits_from(limits)
    with shell.stages() as stages:
        from edgeq.api.validate import validate as measure

        report = measure(
            artifact,
            model=model,
            target=target,
            evaluation=evaluation,
            limits=held,
            device=device,
            threads=threads,
            progress=stages,
            **vars(read),
        )
    return conclude(shell, report, None)
