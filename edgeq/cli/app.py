"""The commands, put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from edgeq import __version__
from edgeq.cli import (
    cache,
    deploy,
    device,
    explain,
    generate,
    inspect,
    plan,
    preflight,
    probe,
    report,
    targets,
    train,
    validate,
    verify,
)
from edgeq.cli.command import command
from edgeq.cli.shell import Shell
from edgeq.errors import UsageError


def run(arguments: Sequence[str]) -> int:
    """Run the program with these arguments; returns its exit code."""
    # How an error in the arguments themselves is told depends on flags among them.
    shell = Shell(**{flag: f"--{flag}" in arguments for flag in ("json", "quiet", "debug")})
    return shell.guard(lambda: _start(arguments))


def _start(arguments: Sequence[str]) -> int:
    try:
        return int(app(args=list(arguments), prog_name="edgeq", standalone_mode=False) or 0)
    except SystemExit as ended:  # the reader of a help text has left
        return int(ended.code or 0)


def _root(
    shell: Shell,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> int:
    """From a trained model to an artefact proven on the device it was made for."""
    if not version:
        raise UsageError("a command is missing", remedy="see edgeq --help")
    if shell.json:
        shell.document({"edgeq": __version__})
    else:
        shell.console.print(__version__)
    return 0


def _group(text: str) -> typer.Typer:
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=text)


app = _group("From a trained model to an artefact proven on the device it was made for.")
app.callback(invoke_without_command=True)(command(_root))
app.command()(command(deploy.deploy))
app.command()(command(plan.plan))
app.command()(command(train.train))
app.command()(command(explain.explain))
app.command()(command(inspect.inspect))
app.command()(command(probe.probe))

_targets = _group("What can be built for.")
_targets.callback(invoke_without_command=True)(command(targets.targets))
_targets.command()(command(targets.show))
app.add_typer(_targets, name="targets")

_device = _group("Where artefacts can run.")
_device.command("list")(command(device.list_devices))
_device.command()(command(device.add))
_device.command()(command(device.remove))
_device.command()(command(device.doctor))
_device.command()(command(device.setup))
app.add_typer(_device, name="device")

_cache = _group("What earlier runs computed, kept for later ones.")
_cache.callback(invoke_without_command=True)(command(cache.cache))
_cache.command()(command(cache.clear))
app.add_typer(_cache, name="cache")

app.command()(command(generate.generate))
app.command()(command(validate.validate))
app.command()(command(verify.verify))
app.command()(command(preflight.preflight))
app.command()(command(report.report))
