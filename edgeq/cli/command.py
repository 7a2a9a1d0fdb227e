"""Turns a function that takes a `Shell` into a command: adds the options that all have, catches what goes wrong."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from edgeq.cli import signals
from edgeq.cli.shell import Shell

Parameters = ParamSpec("Parameters")

_PANEL = "Common options"
_FLAGS = {
    "json": "Write one JSON document to standard output, everything else to standard error.",
    "quiet": "Show no progress and no notes.",
    "debug": "Show tracebacks, and what libraries print.",
}


def command(function: Callable[Concatenate[Shell, Parameters], int]) -> Callable[..., None]:
    """The function as typer takes it: its first parameter is filled in, its result is the exit code. A parameter
    that is a dataclass stands for a group of options, its fields."""
    own = _parameters(function)[1:]
    groups: dict[str, Any] = {p.name: p.annotation for p in own if is_dataclass(p.annotation)}

    def run(context: typer.Context, **given: Any) -> None:
        # One set for a group and its commands: a flag may stand before `targets` as well as behind `show`.
        flags: set[str] = context.ensure_object(set)
        flags.update(flag for flag in _FLAGS if given.pop(flag))
        if context.invoked_subcommand is not None:
            return
        shell = Shell(**dict.fromkeys(flags, True))
        for name, group in groups.items():
            given[name] = group(**{option.name: given.pop(option.name) for option in fields(group)})

        def work() -> int:
            done = function(shell, **given)  # type: ignore[call-arg]
            signals.check()
            return done

        with shell.silenced():
            code = shell.ended(shell.guard(work))
        raise typer.Exit(code)

    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    options = [o for p in own for o in (_parameters(p.annotation) if p.name in groups else [p])]
    parameters = [*(o.replace(kind=o.KEYWORD_ONLY) for o in options), context, *map(_flag, _FLAGS)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = function.__doc__
    run.__name__ = function.__name__
    return run


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function, eval_str=True).parameters.values())


def _flag(name: str) -> inspect.Parameter:
    option = typer.Option(f"--{name}", help=_FLAGS[name], rich_help_panel=_PANEL)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option])
