"""`edgeq generate`: what a build of a language model answers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edgeq.cli import options as o
from edgeq.cli.shell import Shell


def generate(
    shell: Shell,
    *,
    build: Annotated[Path, typer.Argument(metavar="BUILD", help="The --out folder of `edgeq deploy`.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to go on from.")],
    most: Annotated[int, typer.Option(min=1, metavar="N", help="No more new tokens than that.")] = 128,
    chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is what a user says, put into the model's own template.")
    ] = False,
    device: o.DeviceName = None,
    threads: Annotated[
        int, typer.Option(min=0, max=1024, metavar="N", help="Threads of the runtime; 0 for every core.")
    ] = 0,
) -> int:
    """Let a build of a language model answer: its own artefact, in its own runtime, the likeliest token every time."""
    with shell.stages():
        from edgeq.language.generate import generate as answer

        def heard(words: str) -> None:
            if not shell.json:
                shell.console.print(words, end="", markup=False, highlight=False, soft_wrap=True)

        found = answer(build, prompt, most=most, chat=chat, device=device, threads=threads, heard=heard)
    if shell.json:
        shell.document(asdict(found))
    else:
        shell.console.print()
    return 0
