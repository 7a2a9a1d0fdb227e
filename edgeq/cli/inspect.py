"""`edgeq inspect`: what a model is, before anything is done to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from edgeq.cli import options as o
from edgeq.cli.inspect_file import SUFFIX, inspect_file, is_for_these
from edgeq.cli.shell import Shell
from edgeq.errors import EdgeqError, UsageError

if TYPE_CHECKING:
    from edgeq.lowering.inspect import Inspection
    from edgeq.model.model import Model
    from edgeq.registry.schema import Target


def inspect(
    shell: Shell,
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model file as for `deploy`."),
    ],
    target: Annotated[
        list[str], typer.Option("--target", metavar="T", help="Look at these targets only.", show_default=False)
    ] = [],  # noqa: B006
    profile: Annotated[
        str | None,
        typer.Option("--profile", metavar="P", help="A device of the one target, by name or .toml file."),
    ] = None,
    inputs: o.Inputs = [],  # noqa: B006
    arch: o.Arch = None,
    trust_pickle: o.TrustPickle = False,
) -> int:
    """Show what a model is made of, and what of it each target can run on integers.

    A target that is asked for by name and has a compiler here (npu-ethos-u, Vela) also tells what goes to the CPU.
    Of an .onnx file and a target that is asked for by name and cannot be run here (nvidia-gpu): whether the file holds
    the documented rules of its runtime. Exit code 3 where it breaks one.
    """
    from edgeq.registry.load import load_target, target_names

    wanted = [load_target(name) for name in target or target_names()]
    if target and model.lower().endswith(SUFFIX) and is_for_these(wanted):
        return inspect_file(shell, Path(model), wanted)
    from edgeq.frontends.load import from_loaded
    from edgeq.frontends.read import read
    from edgeq.lowering.inspect import inspect_model

    loaded = read(model, inputs=inputs, arch=arch, trust_pickle=trust_pickle)
    if profile is not None and len(target) != 1:
        raise UsageError("a profile is of one target", where="--profile", remedy="name its target with --target")
    model_read = from_loaded(loaded)
    found = inspect_model(model_read, wanted, loaded.notes)
    if target:
        found = _with_npus(found, model_read, wanted, profile)
    if shell.json:
        shell.document(found)
    else:
        _print(shell, found)
    return 0


def _with_npus(found: Inspection, model: Model, targets: list[Target], profile: str | None) -> Inspection:
    """With what the compilers of NPUs say; a note where one does not."""
    from edgeq.cache import open_cache
    from edgeq.export.npu import compiler_for
    from edgeq.export.npu_ahead import on_npu_ahead
    from edgeq.registry.load import profile_of

    fits, notes = list(found.targets), list(found.notes)
    every = [(target, runtime) for target in targets for runtime in target.runtimes]
    for place, (target, runtime) in enumerate(every):
        system = compiler_for(runtime, profile_of(target, profile))
        if system is None:
            continue
        try:
            npu = on_npu_ahead(model, runtime, system, open_cache())
        except EdgeqError as error:
            notes.append(f"what {system.accelerator} leaves to the CPU is not known: {error.cause}; {error.remedy}")
            continue
        fits[place] = fits[place].model_copy(update={"npu": npu})
    return found.model_copy(update={"targets": fits, "notes": notes})


def _print(shell: Shell, found: Inspection) -> None:
    from edgeq.records.wording import count_text, left_text, npu_text

    console = shell.console
    console.print(Text.assemble((found.source, "bold"), f"  {found.kind}, sha256 {found.sha256[:12]}"))
    for label, ports in (("input", found.inputs), ("output", found.outputs)):
        for port in ports:
            shape = ", ".join("N" if size is None else str(size) for size in port.shape)
            console.print(Text(f"{label:<7} {port.name} [{shape}] {port.dtype}"))
    console.print(
        f"{count_text(found.parameters)} parameters, {count_text(found.macs)} multiply-accumulates a sample, "
        f"{len(found.layers)} layers"
    )
    layers = _table("layer", "operator", "parameters", "MACs")
    for layer in found.layers:
        op = f"{layer.op} + {layer.activation}" if layer.activation else layer.op
        layers.add_row(Text(layer.name), Text(op), str(layer.parameters or "-"), str(layer.macs or "-"))
    console.print(layers)
    fits = _table("target", "runtime", "integer MACs", "stays in float")
    fits.columns[2].justify = "right"
    for fit in found.targets:
        floats = ", ".join(f"{op} ({count})" if count > 1 else op for op, count in fit.float_operators.items())
        share = "-" if fit.integer_mac_percent is None else f"{fit.integer_mac_percent:.1f} %"
        fits.add_row(Text(fit.target, "bold"), fit.runtime, share, Text(floats or "nothing"))
    console.print(fits)
    for fit in found.targets:
        if fit.npu is not None:
            console.print(Text(f"estimated by {fit.npu.by}, on made-up ranges: {npu_text(fit.npu)}"))
            for left in fit.npu.left_to_cpu:
                console.print(Text.assemble(("left to the CPU: ", "yellow"), left_text(left)))
    for note in found.notes:
        console.print(Text.assemble(("note: ", "yellow"), note))


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in ("parameters", "MACs") else "left")
    return table
