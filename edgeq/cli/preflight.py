"""`edgeq preflight`: what an artefact would answer on the other CPUs of its family."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from edgeq.cli import options as o
from edgeq.cli.shell import Shell
from edgeq.errors import GateError, UsageError
from edgeq.files import refuse_unwritable, write_json

if TYPE_CHECKING:
    from edgeq.records.preflight import Preflight

_LONGEST_LIST = 12

_Devices = Annotated[
    list[str],
    typer.Option("--device", metavar="D", help="What to compare instead of the family; the first is the reference."),
]


def preflight(
    shell: Shell,
    *,
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A build, or a .onnx, .xml or .tflite file.")],
    evaluation: o.Evaluation = None,
    preprocess: o.Preprocess = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="T", help="What it is for; that of the build if not given.")
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", min=1, help="How many samples are run.")] = 200,
    device: _Devices = [],  # noqa: B006 (typer copies it)
    remedy: Annotated[
        Path | None,
        typer.Option(metavar="PLAN", help="Where to write the build's plan with what makes the answers the same."),
    ] = None,
) -> int:
    """Run an artefact on the CPUs of its family: which answers differ, from which layer on, and why.

    Exit code 3 where answers differ, 5 where the reference, or all others, cannot be run.
    """
    if remedy is not None:
        if not artifact.is_dir():
            raise UsageError("only a build has a plan", where=str(artifact), remedy="leave --remedy away")
        refuse_unwritable(remedy, option="--remedy")
    with shell.stages() as stages:
        from edgeq.api.preflight import preflight as compare

        found = compare(
            artifact,
            samples=evaluation,
            preprocess=preprocess,
            most=samples,
            target=target,
            devices=device,
            progress=stages,
        )
    if remedy is not None and found.layers:
        from edgeq.api.preflight import remedied
        from edgeq.plans.plan import read_plan

        write_json(remedy, remedied(read_plan(artifact / "plan.json"), found.layers))
    if shell.json:
        shell.document(found)
    else:
        _show(shell, found)
        if remedy is not None:
            shell.console.print(Text(str(remedy) if found.layers else "no remedy is needed, or known"), soft_wrap=True)
    differing = {name: len(one.differing) for name, one in found.members.items() if one.differing}
    if not differing:
        return 0
    counts = ", ".join(f"{count} of {found.samples} on {name}" for name, count in differing.items())
    return shell.tell(
        GateError(f"answers differ from those on {found.reference}: {counts}", remedy=_advice(artifact, found))
    )


def _advice(artifact: Path, found: Preflight) -> str:
    if not found.layers:
        return "see the layer that is named"
    if artifact.is_dir():
        return "--remedy plan.json, then deploy with that plan"
    return f"give these layers weights of 7 bits: {', '.join(found.layers)}"


def _show(shell: Shell, found: Preflight) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("on", "is", "other answers", "from layer", "cause"):
        table.add_column(heading)
    for name, one in found.members.items():
        if one.unreached:
            cells = ["not run", "-", one.unreached]
        elif name == found.reference:
            cells = ["reference", "-", "-"]
        elif one.difference is None:
            by = "moved to what is no number" if one.moved is None else f"moved by {one.moved:.3g}"
            cells = [f"{len(one.differing)} of {found.samples}", "-", "-" if one.moved == 0 else by]
        else:
            where = f"{one.difference.layer}, {one.difference.steps} steps"
            cells = [f"{len(one.differing)} of {found.samples}", where, one.difference.cause]
        table.add_row(Text(name, "bold"), Text(one.about), *map(Text, cells))
    shell.console.print(table)
    for warning in found.warnings:
        shell.console.print(Text.assemble(("warning", "yellow"), f" {warning}"), soft_wrap=True)
    for name, one in found.members.items():
        if one.differing:
            more = ", ..." if len(one.differing) > _LONGEST_LIST else ""
            listed = ", ".join(map(str, one.differing[:_LONGEST_LIST]))
            shell.console.print(Text(f"{name}: samples {listed}{more}"), soft_wrap=True)
    if found.layers:
        shell.console.print(Text(f"weights of 7 bits would do in: {', '.join(found.layers)}"), soft_wrap=True)
