"""The clipping of AWQ: of each scale, the part of the weights' range that moves the layer's outputs least.

Source: Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
arXiv 2306.00978, and `auto_clip` in the authors' code: for each w, min over c of |Q(clip(w, c)) x - w x|^2. The scaling
of salient channels, which is the rest of AWQ, changes the layers before, and no method does that.

Its own here: the parts that are tried go further down, for types of fewer bits; a range need not be symmetric; and the
error is its variance over positions (see `edgeq.methods.hessian`), since the bias makes up for its mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeq.methods.method import Change, Seen, Wanted
from edgeq.methods.scales import least_costly, rounded
from edgeq.model.model import Model
from edgeq.numerics.weights import QuantizedWeight

if TYPE_CHECKING:
    from edgeq.methods.hessian import Curved


def awq_clip(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    """Finds the scales, and rounds to nearest."""
    from edgeq.methods.hessian import hessians

    layers = hessians(model, wanted, seen, by_group=True)
    return Change({layer.one.layer: clipped(layer) for layer in layers})


def clipped(layer: Curved) -> QuantizedWeight:
    """One layer, whose Hessian has a block for each group of weights that share a scale."""
    one, at, hessian = layer
    curved = hessian.float().numpy()

    def cost(error: NDArray[np.float32]) -> NDArray[Any]:
        """e H e^T of each output, as what each of its weights adds to it."""
        e = error.reshape(-1)[at]
        found = np.empty(error.size)
        found[at] = e * (e @ curved)
        return found.reshape(error.shape)

    return rounded(one, least_costly(one, cost))
