"""How much is tried for a better rounding, by the names that users give."""

from __future__ import annotations

from typing import Literal, NamedTuple

from edgeq.methods import GPTQ, NEAREST, RECONSTRUCT, SQUEEZELLM, fits
from edgeq.numerics import Scheme

EffortName = Literal["fast", "balanced", "max"]


class Effort(NamedTuple):
    """What is tried, beside rounding to nearest.

    Attributes:
        few: the methods for layers of few bits, where others are not tried together with them: what planning compares
            choices by. A layer takes the first that rounds to its levels.
        methods: of the whole model, tried one after the other.
        steps: of learning, for each block.
    """

    few: tuple[str, ...]
    methods: tuple[str, ...]
    steps: int

    def of(self, scheme: Scheme) -> str:
        """The method for a layer of few bits."""
        return next(name for name in self.few if fits(name, scheme))


DEFAULT: EffortName = "balanced"

EFFORTS: dict[EffortName, Effort] = {
    "fast": Effort((NEAREST,), (), 100),
    "balanced": Effort((GPTQ, SQUEEZELLM), (RECONSTRUCT,), 100),
    "max": Effort((GPTQ, SQUEEZELLM), (RECONSTRUCT,), 1000),
}
