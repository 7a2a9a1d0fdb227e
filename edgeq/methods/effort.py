"""How much is tried for a better rounding, by the names that users give."""

from __future__ import annotations

from typing import Literal, NamedTuple

from edgeq.methods import RECONSTRUCT

EffortName = Literal["fast", "balanced", "max"]


class Effort(NamedTuple):
    """What is tried, beside rounding to nearest.

    Attributes:
        methods: see `edgeq.methods`, one after the other.
        steps: of learning.
    """

    methods: tuple[str, ...]
    steps: int


DEFAULT: EffortName = "balanced"

EFFORTS: dict[EffortName, Effort] = {
    "fast": Effort((), 0),
    "balanced": Effort((RECONSTRUCT,), 100),
    "max": Effort((RECONSTRUCT,), 1000),
}
