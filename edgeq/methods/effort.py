"""How much is tried for a better rounding, by the names that users give."""

from __future__ import annotations

from typing import Literal, NamedTuple

from edgeq.methods import DISTIL, GPTQ, NEAREST, RECONSTRUCT

EffortName = Literal["fast", "balanced", "max"]


class Effort(NamedTuple):
    """What is tried, beside rounding to nearest.

    Attributes:
        few: the method for layers of few bits, where others are not tried together with them: what planning compares
            choices by.
        methods: of the whole model, tried one after the other; blocks are reconstructed where a layer has few bits.
        steps: of learning, for each block.
        rewrites: of the float network, one after the other (see `edgeq.rewrites`).
    """

    few: str
    methods: tuple[str, ...]
    steps: int
    rewrites: tuple[str, ...]


EVERY_REWRITE = ("smooth_quant", "equalize", "smooth_links", "absorb", "awq", "outlier_columns", "low_rank")

DEFAULT: EffortName = "balanced"

EFFORTS: dict[EffortName, Effort] = {
    "fast": Effort(NEAREST, (), 100, ("smooth_quant",)),
    "balanced": Effort(GPTQ, (RECONSTRUCT, DISTIL), 100, ("smooth_quant",)),
    "max": Effort(GPTQ, (RECONSTRUCT, DISTIL), 1000, EVERY_REWRITE),
}
