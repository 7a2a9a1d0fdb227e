"""`edgeq plan --pareto`: plans along the trade of accuracy for latency or size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.text import Text

from edgeq.cli.plan_show import show_front
from edgeq.cli.shell import Shell


def plan_front(shell: Shell, out: Path, model: str, points: int, how: dict[str, Any]) -> int:
    """Measures a front, and writes it, a page, and a plan for each of its points.

    Args:
        how: what `edgeq.planning.front.front` is called with besides.
    """
    from edgeq.files import atomic_write, write_json
    from edgeq.planning.front import front
    from edgeq.report.html import render_front

    found = front(model, points=points, **how)
    write_json(out, found)
    plans = [out.with_name(f"{out.stem}.{number}.json") for number in range(1, len(found.points) + 1)]
    for point, path in zip(found.points, plans, strict=True):
        write_json(path, point.plan)
    page = out.with_suffix(".html")
    atomic_write(page, render_front(found))
    if not shell.quiet:
        show_front(shell, found, [path.name for path in plans])
        shell.console.print(Text(f"{out}  {page}"), soft_wrap=True)
    if shell.json:
        shell.document(found)
    return 0
