"""`edgeq inspect FILE.onnx`: a file that is there already against the documented rules of what it is for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from edgeq.cli.shell import Shell
from edgeq.errors import GateError

if TYPE_CHECKING:
    from edgeq.registry.schema import Target

SUFFIX = ".onnx"
"""What there are rules for."""


def is_for_these(targets: Sequence[Target]) -> bool:
    """Whether files for all of these targets are held against rules, since nothing of them is run here."""
    from edgeq.runtimes import NOT_RUN

    return all(one.name in NOT_RUN for target in targets for one in target.runtimes)


def inspect_file(shell: Shell, path: Path, targets: Sequence[Target]) -> int:
    """Holds a file against the rules of the runtimes of these targets; exit code 3 where it breaks one.

    Raises:
        UsageError: it is no ONNX file.
    """
    from edgeq.records.wording import conformance_text
    from edgeq.runtimes import NOT_RUN

    ruled = [(target, one) for target in targets for one in target.runtimes]
    found = [(target.name, one.name, NOT_RUN[one.name].hold(path)) for target, one in ruled]
    if shell.json:
        rows = [{"target": target, "runtime": name} | held.model_dump() for target, name, held in found]
        shell.document({"source": str(path), "targets": rows})
    for target, _, held in found:
        if not shell.json:
            shell.console.print(Text.assemble((f"{target}: ", "bold"), conformance_text(held)), soft_wrap=True)
        for breach in held.breaches:
            what = f"{breach.node or path.name}: {breach.cause}"
            effect = "" if breach.refused else "; read all the same, and slower than it might be"
            shell.console.print(Text.assemble((breach.rule, "bold"), f"  {what}"), soft_wrap=True)
            for line in (f"rule: {breach.text}{effect}", f"source: {breach.source}", f"remedy: {breach.remedy}"):
                shell.console.print(Text(f"  {line}"), soft_wrap=True)
    broken = {breach.rule: held.rulebook for _, _, held in found for breach in held.breaches}
    if not broken:
        return 0
    return shell.tell(
        GateError(
            f"the file breaks {', '.join(dict.fromkeys(broken.values()))}: {', '.join(broken)}",
            where=str(path),
            remedy="each is told above with its remedy",
        )
    )
