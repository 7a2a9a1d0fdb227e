"""Block reconstruction: rounding, scales and biases are learned so that each block gives what it gives in float.

Source: Li et al. 2021, "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", equation 10,
with all outputs weighted alike. In place of AdaRound's relaxation (Nagel et al. 2020), which takes 20,000 steps,
weights are rounded as `edgeq.methods.learned` says: a hundred steps do. Scales of activations are learned with them
(`edgeq.methods.learned_scale`).
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeq.methods import GPTQ, RECONSTRUCT
from edgeq.methods.bias_correction import corrected
from edgeq.methods.by_blocks import changed, learn_blocks
from edgeq.methods.gptq import FEW_BITS
from edgeq.methods.method import Change, Seen, Wanted
from edgeq.model.blocks import MOST
from edgeq.model.model import Model
from edgeq.quantization.quantized import Quantized

STEP_MACS = 1e8


def reconstruct(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    """Rounds layers together, block by block. Few bits begin with what GPTQ makes of them: it is nearer than the
    nearest."""
    start = _start(model, wanted, seen)
    return learn_blocks(model, wanted, seen, start, name=RECONSTRUCT, most=MOST, step_macs=STEP_MACS)


def _start(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Quantized:
    few = [one for one in wanted if one.scheme.width <= FEW_BITS]
    if not few:
        return seen.quantized
    groups = {group.name: group for group in model.groups}
    weights = seen.by(GPTQ)(model, few, seen).weights
    biases = {one.layer: corrected(groups[one.layer], one, weights[one.layer], seen.calibration) for one in few}
    return changed(seen.quantized, Change(weights, biases))
