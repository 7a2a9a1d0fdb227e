"""Tables of figures on the console."""

from __future__ import annotations

from rich import box
from rich.table import Table


def table(*headings: str) -> Table:
    """The first column names a row; figures stand to the right."""
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for number, heading in enumerate(headings):
        found.add_column(heading, justify="left" if number == 0 else "right", overflow="fold", no_wrap=number > 0)
    return found
