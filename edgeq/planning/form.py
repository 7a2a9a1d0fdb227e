"""What a choice reads and writes: float or integers. Told from its name, and nowhere else."""

from __future__ import annotations

import re


def on_integers(choice: str) -> bool:
    """Whether a layer with this choice reads and writes integers.

    `w8a8`, `w4a8` and `a16` do. `float32` does not; nor do `w8` and `w4g32`, whose weights are stored as integers and
    computed with in float.
    """
    return re.search(r"a\d+$", choice) is not None
