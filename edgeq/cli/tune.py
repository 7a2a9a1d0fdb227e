"""`edgeq train` of a language model: it learns from a text beside packed weights that stay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeq.cli.shell import Shell
from edgeq.errors import UsageError


def tune(shell: Shell, model: str, text: str, out: Path, asked: Mapping[str, Any]) -> int:
    """Tunes it, and tells what that changed.

    Args:
        asked: what of `edgeq.language.tuning.tune.TuneRequest` the command line says.
    """
    if asked["adapt"] is None:
        remedy = "--adapt bitfit learns biases on 8-bit weights, --adapt qlora low-rank matrices beside 4-bit ones"
        raise UsageError("nothing says what of a language model learns", where="--adapt", remedy=remedy)
    with shell.stages() as stages:
        from edgeq.language.tuning.tune import TuneRequest, tune_language

        tuned = tune_language(TuneRequest(model, train=text, out=out, progress=stages, **asked))
    if shell.json:
        shell.document({**tuned._asdict(), "epochs": [epoch._asdict() for epoch in tuned.epochs]})
    elif not shell.quiet:
        before = f"float {tuned.float_perplexity:.3f}, packed {tuned.base_perplexity:.3f}"
        learned = f"{tuned.numbers} numbers learned, epoch {tuned.best} of {len(tuned.epochs) - 1}"
        shell.console.print(
            f"{out}: perplexity {tuned.perplexity:.3f} of held-out text; {before}; {learned}", soft_wrap=True
        )
        shell.console.print(f"next: edgeq deploy {out} --target ... --calib ... --eval ... --out build", soft_wrap=True)
    return 0
