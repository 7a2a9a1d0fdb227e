"""`edgeq probe`: what a target's table claims, tried cell by cell in the real runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from edgeq.cli import options as o
from edgeq.cli.shell import Shell
from edgeq.errors import DeviceError, GateError, UsageError
from edgeq.files import refuse_unwritable

if TYPE_CHECKING:
    from edgeq.probing.evidence import Cell, Evidence
    from edgeq.registry.schema import Target


def probe(
    shell: Shell,
    target: Annotated[
        str, typer.Option("--target", metavar="T", help="Whose table: a name from `edgeq targets`, or a .toml file.")
    ],
    device: o.DeviceName = None,
    runtime: Annotated[
        str | None, typer.Option("--runtime", metavar="R", help="Only this runtime of the target.", show_default=False)
    ] = None,
    op: Annotated[
        list[str],
        typer.Option("--op", metavar="OP", help="Only this operator class, once for each.", show_default=False),
    ] = [],  # noqa: B006
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Where the evidence goes: a file for one runtime, a folder for several.",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Try every cell of a target's table: does it convert, run, stay on integers and give the right answers.

    Each is a network of one operator on random data: it tells what a kernel can do, not how a model fares.

    Exit codes: 0 every cell is proven; 2 wrong use; 3 the table claims more than was proven;
    5 device or runtime failed.
    """
    from edgeq.devices import open_device
    from edgeq.evaluation.measure import DEVICES
    from edgeq.registry.load import load_target

    aim = load_target(target)
    _check_ops(aim, runtime, op)
    if aim.execution == "none":
        raise DeviceError(f"{aim.name} cannot be executed from this machine", remedy="see edgeq targets")
    with shell.stages() as stages:
        from edgeq.probing.probe import probe as try_all
        from edgeq.probing.probe import runtimes_on

        where = open_device(device or DEVICES[aim.execution])
        there = runtimes_on(aim, where, runtime, stages)
        if op:
            there = [r for r in there if r.ops.intersection(op)]
        files = [] if out is None else _places(out, aim, [r.name for r in there])
        found = try_all(aim, where, there, op, stages)
        _write(found, files)
    if shell.json:
        shell.document({"evidence": found, "unproven": [_row(e, c) for e, c in _unproven(found)]})
    elif not shell.quiet:
        _show(shell, found)
        for file in files:
            shell.console.print(str(file), markup=False, soft_wrap=True)
    return _told(shell, found, f"{aim.name} on {where.name}")


def _told(shell: Shell, found: list[Evidence], where: str) -> int:
    missed = [f"{cell.op} {cell.kernel} in {evidence.runtime}" for evidence, cell in _unproven(found)]
    if not missed:
        return 0
    remedy = "take these kernels out of the table, or out of plans"
    return shell.tell(GateError(f"not proven: {', '.join(missed)}", where=where, remedy=remedy))


def _check_ops(target: Target, runtime: str | None, ops: list[str]) -> None:
    for op in ops:
        if not any(op in r.ops for r in target.runtimes if runtime in (None, r.name)):
            raise UsageError(
                f"no kernel of {target.name} lists {op!r}", where="--op", remedy=f"see edgeq targets show {target.name}"
            )


def _places(out: Path, target: Target, runtimes: list[str]) -> list[Path]:
    from edgeq.probing.evidence import file_name

    if out.is_dir():
        files = [out / file_name(target.name, name) for name in runtimes]
        for file in files:
            refuse_unwritable(file)
        return files
    if len(runtimes) > 1:
        raise UsageError(
            f"{len(runtimes)} runtimes are {len(runtimes)} files: this must be a folder that exists",
            where=str(out),
            remedy="give a folder, or choose one with --runtime",
        )
    if not out.parent.is_dir() or out.suffix != ".json":
        raise UsageError(
            "there is no such folder", where=str(out), remedy="make it, or give a file in one that ends in .json"
        )
    refuse_unwritable(out)
    return [out]


def _write(found: list[Evidence], files: list[Path]) -> None:
    from edgeq.probing.evidence import write_evidence

    for evidence, file in zip(found, files, strict=False):  # without --out there are none
        write_evidence(evidence, file)


def _unproven(found: list[Evidence]) -> list[tuple[Evidence, Cell]]:
    return [(evidence, cell) for evidence in found for cell in evidence.cells if not cell.proven]


def _row(evidence: Evidence, cell: Cell) -> dict[str, str]:
    return {"runtime": evidence.runtime, "op": cell.op, "kernel": cell.kernel, "why": cell.doubt}


def _show(shell: Shell, found: list[Evidence]) -> None:
    for evidence in found:
        emulated = ", emulated" if evidence.emulated else ""
        heading = f" {evidence.version} on {evidence.device}{emulated}, {evidence.cpu}"
        shell.console.print(Text.assemble((evidence.runtime, "bold"), heading), soft_wrap=True)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("operator", "kernel", "steps off", "of float's time", "verdict"):
            table.add_column(name, justify="right" if name in ("steps off", "of float's time") else "left")
        for cell in evidence.cells:
            steps = "-" if cell.steps is None else str(cell.steps)
            time = "-" if cell.speed is None else f"{cell.speed.integer_us / cell.speed.float_us:.2f}"
            verdict = Text("proven", "green") if cell.proven else Text(f"not proven: {cell.doubt}", "yellow")
            table.add_row(Text(cell.op, "bold"), cell.kernel, steps, time, verdict)
        shell.console.print(table)
    shell.console.print(Text(f"each: {found[0].data}; times are of that operator alone"), soft_wrap=True)
