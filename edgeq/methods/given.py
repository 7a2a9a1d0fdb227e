"""Weights that are integers already stay those: a model that was quantized elsewhere, or trained on its grids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeq.errors import UnsupportedError
from edgeq.methods.method import Change, Seen, Wanted
from edgeq.model.grids import Rounded
from edgeq.model.model import Model
from edgeq.numerics.quantize import stored_type
from edgeq.numerics.weights import QuantizedWeight

GIVEN = "given"
"""What plans call it. It is nobody's choice: such weights are never rounded."""


def given(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    """The integers, scales and biases that the model came with.

    Raises:
        UnsupportedError: it came with none, or a kernel has no place for them.
    """
    weights = {group.name: group.weight for group in model.groups}
    held = {} if model.grids is None else model.grids.weights
    found = {one.layer: _stored(one, held.get(weights[one.layer] or "")) for one in wanted}
    return Change(found, {one.layer: one.bias for one in wanted})


def _stored(one: Wanted, rounded: Rounded | None) -> QuantizedWeight:
    channels = one.axis, one.weight.shape[one.axis]
    fit = None if rounded is None else rounded.grid.of_weights(one.scheme, rounded.integers, channels)
    if fit is None:
        what = (
            "the model came with no integers for it" if rounded is None else f"its {rounded.grid} have no place there"
        )
        raise UnsupportedError(
            f"its weights are to be {one.scheme.dtype} from {one.scheme.quant_min} to {one.scheme.quant_max}, by "
            f"{one.scheme.granularity}: {what}",
            where=f"layer {one.layer}",
            remedy="give the plan that it was trained with, take another target, or quantize the float model",
        )
    integers, q = fit
    return QuantizedWeight(np.asarray(integers, stored_type(one.scheme)), q)
