"""`edgeq targets`: what can be built for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from edgeq.cli.shell import Shell
from edgeq.errors import UsageError

if TYPE_CHECKING:
    from edgeq.registry.schema import Kernel, Runtime, Target

_RUNS_HERE = {
    "local": "yes",
    "qemu-aarch64": "emulated",
    "qemu-x86_64": "emulated",
    "qnn-emulator": "emulated",
    "tflite-micro": "emulated",
    "none": "no, export only",
}


def targets(
    shell: Shell,
    check: Annotated[
        bool, typer.Option("--check", help="Check every target and profile file that is shipped.")
    ] = False,
) -> int:
    """List the targets, or check their files."""
    from edgeq.registry.load import check_all, load_target, target_names

    if check:
        return _check(shell, check_all())
    found = [load_target(name) for name in target_names()]
    if shell.json:
        shell.document({"targets": found})
        return 0
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("target", "runtimes, best first", "runs here", "default device"):
        table.add_column(heading)
    for target in found:
        runtimes = ", ".join(runtime.name for runtime in target.runtimes)
        table.add_row(Text(target.name, "bold"), runtimes, _RUNS_HERE[target.execution], target.default_profile or "-")
    shell.console.print(table)
    shell.console.print("edgeq targets show NAME lists what runs on integers.")
    return 0


def show(
    shell: Shell, name: Annotated[str, typer.Argument(metavar="NAME", help="A target's name, or a .toml file.")]
) -> int:
    """Show one target: what each of its runtimes can run on integers, and how that is known."""
    from edgeq.registry.load import load_target

    target = load_target(name)
    if shell.json:
        shell.document(target)
        return 0
    console = shell.console
    console.print(Text.assemble((target.name, "bold"), f"  {target.summary}"))
    console.print(
        Text(f"runs here: {_RUNS_HERE[target.execution]}; default device: {target.default_profile or 'none'}")
    )
    for runtime in target.runtimes:
        console.print()
        console.print(Text.assemble((runtime.name, "bold"), f", {runtime.format} files"))
        console.print(_kernels(target, runtime))
        for line in _doubts(target, runtime):
            console.print(Text(line), soft_wrap=True)
    for note in target.notes:
        console.print(Text(f"- {note}"))
    return 0


def _check(shell: Shell, problems: list[str]) -> int:
    if shell.json:
        shell.document({"problems": problems})
    elif not problems:
        shell.console.print("every target and profile file is well")
    else:
        for problem in problems:
            for line in problem.splitlines():
                shell.console.print(Text(line), soft_wrap=True)
    return UsageError.exit_code if problems else 0


def _kernels(target: Target, runtime: Runtime) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("operators, the default kernel first", ratio=1)
    for heading in ("activations", "weights", "bias", "evidence"):
        table.add_column(heading)
    for kernel in runtime.kernels:
        evidence = _evidence(target, runtime, kernel)
        activations = kernel.activations + ("" if kernel.dynamic is None else " in every call")
        table.add_row(", ".join(kernel.ops), activations, _weights(kernel), kernel.bias or "-", evidence)
    return table


def _evidence(target: Target, runtime: Runtime, kernel: Kernel) -> str:
    """How many of a kernel's cells the shipped evidence proves."""
    from edgeq.probing.evidence import shipped, standing

    found = shipped(target, runtime)
    cells = [standing(found, runtime, op, kernel) for op in kernel.ops]
    proven = sum(cell is not None and cell.proven for cell in cells)
    if proven == len(cells):
        return "proven"
    if proven:
        return f"{proven} of {len(cells)} proven"
    return "not proven" if any(cells) else "no evidence"


def _doubts(target: Target, runtime: Runtime) -> Iterator[str]:
    """Where evidence comes from, and the cells that it does not prove, with why. Nothing for runtimes without any."""
    from edgeq.probing.evidence import cells_of, shipped, standing

    found = shipped(target, runtime)
    if found is None:
        return
    emulated = " (emulated)" if found.emulated else ""
    yield f"evidence: edgeq probe, {found.runtime} {found.version} on {found.device}{emulated}"
    for op, kernel in cells_of(runtime):
        cell = standing(found, runtime, op, kernel)
        if cell is None or not cell.proven:
            yield f"- {op} {kernel.name}: " + ("no evidence" if cell is None else f"not proven: {cell.doubt}")


def _weights(kernel: Kernel) -> str:
    if kernel.weights is None:
        return "-"
    bits = f" ({kernel.weight_bits} bits)" if kernel.weight_bits else ""
    return f"{kernel.weights}{bits} a {kernel.weight_granularity}"
