"""What methods that look at the whole network begin with: it is nearer than the nearest integers."""

from __future__ import annotations

from collections.abc import Sequence

from edgeq.methods import GPTQ
from edgeq.methods.bias_correction import corrected
from edgeq.methods.gptq import FEW_BITS
from edgeq.methods.method import Change, Seen, Wanted
from edgeq.model.model import Model
from edgeq.quantization.quantized import Quantized


def begun(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Quantized:
    """The model as far as it is quantized, with what GPTQ makes of layers of few bits."""
    few = [one for one in wanted if one.scheme.width <= FEW_BITS]
    if not few:
        return seen.quantized
    groups = {group.name: group for group in model.groups}
    weights = seen.by(GPTQ)(model, few, seen).weights
    biases = {one.layer: corrected(groups[one.layer], one, weights[one.layer], seen.calibration) for one in few}
    return Change(weights, biases).on(seen.quantized)
