"""`edgeq cache`: what earlier runs computed, kept for later ones."""

from __future__ import annotations

import re
import time
from datetime import datetime, timezone
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from edgeq.cli.shell import Shell
from edgeq.errors import UsageError

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def cache(shell: Shell) -> int:
    """Show what is kept of earlier runs, stage by stage."""
    from edgeq.cache import describe, open_cache

    opened = open_cache()
    found = describe(opened.root)
    total = sum(usage.bytes for usage in found)
    if shell.json:
        stages = [
            {
                "stage": usage.stage,
                "entries": usage.entries,
                "bytes": usage.bytes,
                "oldest": _utc(usage.oldest),
                "newest": _utc(usage.newest),
                "last_used": _utc(usage.last_used),
            }
            for usage in found
        ]
        shell.document({"folder": opened.root, "limit_bytes": opened.limit, "bytes": total, "stages": stages})
        return 0
    from edgeq.records.wording import bytes_text

    if opened.root is None:
        shell.console.print("nothing is kept: the cache is off")
        return 0
    if found:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("stage", "results", "size", "oldest", "newest", "last used"):
            table.add_column(heading, justify="left" if heading == "stage" else "right")
        for usage in found:
            times = (_ago(then) for then in (usage.oldest, usage.newest, usage.last_used))
            table.add_row(Text(usage.stage, "bold"), str(usage.entries), bytes_text(usage.bytes), *times)
        shell.console.print(table)
    kept = f"{bytes_text(total)} of at most {bytes_text(opened.limit)}" if found else "nothing"
    shell.console.print(Text(f"{kept} in {opened.root}"), soft_wrap=True)
    return 0


def clear(
    shell: Shell,
    stage: Annotated[
        str | None, typer.Argument(metavar="STAGE", help="Remove only results of this stage.", show_default=False)
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="7d", help="Remove only what was not used for so long: 2w, 7d, 12h, 30min.")
    ] = None,
) -> int:
    """Remove what is kept. Later runs compute it again."""
    from edgeq.cache import clear as remove
    from edgeq.cache import open_cache

    age = None if older_than is None else _seconds(older_than)
    freed = remove(open_cache().root, stage, age)
    if shell.json:
        shell.document(freed)
    elif not shell.quiet:
        from edgeq.records.wording import bytes_text

        results = "1 result" if freed.entries == 1 else f"{freed.entries} results"
        shell.console.print(f"removed {results}, {bytes_text(freed.bytes)}")
    return 0


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h|d|w)", text.strip())
    if match is None:
        raise UsageError(f"cannot read {text!r}", where="--older-than", remedy="write it as 2w, 7d, 12h or 30min")
    return float(match[1]) * _UNITS[match[2]]


def _ago(then: float) -> str:
    """The largest unit that is full at least twice; before the clock was set back is now."""
    seconds = max(time.time() - then, 0.0)
    unit = next((unit for unit in ("d", "h", "min") if seconds >= 2 * _UNITS[unit]), "s")
    return f"{seconds / _UNITS[unit]:.0f} {unit} ago"


def _utc(then: float) -> str:
    return datetime.fromtimestamp(then, timezone.utc).isoformat(timespec="seconds")
