"""Distillation: the whole network learns to give the outputs of the float model.

It learns what block reconstruction does, with the network as one block. A block on its own cannot know which of its
errors matter behind it: a range that cuts off outliers which nobody reads looks wrong there, and is right. With few
bits, what a few hundred samples say of the outputs is too little to round every weight by: it begins with
reconstructed blocks.

Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", with mean squares of the outputs (section
2.1), which are in no need of being probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgeq.methods import DISTIL, RECONSTRUCT
from edgeq.methods.by_blocks import learn_blocks
from edgeq.methods.gptq import FEW_BITS
from edgeq.methods.method import Change, Seen, Wanted
from edgeq.model.model import Model

STEP_MACS = 4e9

REFINED = 0.3
"""Of the pace, after blocks were reconstructed: at the whole of it, a hundred steps shake scales that fit already more
than they mend."""


def distil(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    """Rounds all layers together."""
    start, pace = seen.quantized, 1.0
    if any(one.scheme.width <= FEW_BITS for one in wanted):
        start = seen.by(RECONSTRUCT)(model, wanted, seen).on(start)
        pace = REFINED
    return learn_blocks(model, wanted, seen, start, name=DISTIL, most=math.inf, step_macs=STEP_MACS, pace=pace)
