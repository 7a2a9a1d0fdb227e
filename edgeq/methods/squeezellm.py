"""SqueezeLLM's levels: k-means in which each weight counts as much as it moves the layer's outputs.

Source: Kim et al. 2023, "SqueezeLLM: Dense-and-Sparse Quantization", arXiv 2306.07629, equation 3: the levels minimize
sum F_ii (w_i - Q(w_i))^2. Sparse outliers, which are the rest of it, have no place in the files here.

Its own here: F is not the Fisher information of the loss, for which labels are needed, but the diagonal of the Hessian
of the layer's squared error (see `edgeq.methods.hessian`): the variance of what the weight meets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeq.methods.k_means import k_means
from edgeq.methods.method import Change, Seen, Wanted
from edgeq.model.model import Model

LEAST = 0.01
"""What a weight counts at least, in parts of the mean: on other samples it may meet something."""


def squeezellm(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    """Finds levels and scales, and rounds to the nearest level."""
    from edgeq.methods.hessian import hessians

    found = {}
    for one, at, hessian in hessians(model, wanted, seen):
        heavy = np.empty(one.weight.shape)
        heavy.reshape(-1)[at] = hessian.diagonal(dim1=1, dim2=2).numpy()[:, None]
        found[one.layer] = k_means(one, heavy + LEAST * heavy.mean() if heavy.any() else None)
    return Change(found)
