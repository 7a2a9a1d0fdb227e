"""What a choice reads and writes: float, or integers of so many bits. Told from its name, and nowhere else."""

from __future__ import annotations

import re

from edgeq.numerics.scheme import Scheme


def form(choice: str) -> str | None:
    """The form of the values that a layer with this choice reads and writes: `a8` or `a16`, None for float.

    `w8a8`, `w4a8` and `a16` read and write integers. `float32` does not; nor do `w8` and `w4g32`, whose weights are
    stored as integers and computed with in float, and `w8a8dyn`, which rounds what it reads in every call.
    """
    found = re.search(r"a\d+$", choice)
    return None if found is None else found[0]


def form_of(scheme: Scheme) -> str:
    """The form of integer values."""
    return f"a{scheme.stored_bits}"


def on_integers(choice: str) -> bool:
    """Whether a layer with this choice reads and writes integers."""
    return form(choice) is not None


def dynamic(choice: str) -> bool:
    """Whether a layer with this choice computes on integers between floats."""
    return choice.endswith("dyn")
