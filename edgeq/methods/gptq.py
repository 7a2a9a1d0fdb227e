"""GPTQ: weights are rounded one after another, and those that are left make up for the error of each.

Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv 2210.17323, algorithm 1 and equations 2 and 3, with columns by decreasing diagonal of the Hessian (act-order) and
scales found before (static groups). With U the upper Cholesky factor of the inverse of the damped Hessian, column j has
the error e = (w_j - q_j) / U_jj, and all columns k behind it become w_k - e U_jk.

Its own here: convolutions, transposed ones too, are what they are as matrices, group by group
(`edgeq.methods.columns`); layers of more than 4096 inputs are cut, and positions drawn, so that memory and time are
bounded (`edgeq.methods.hessian`); the Hessian is that of the variance of the error, since the bias makes up for its
mean; and the scale of few bits is one of least squared error, each weight's as heavy as its diagonal. Levels that are
not evenly spaced are found before, like scales, by k-means with each weight as heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeq.methods.k_means import k_means
from edgeq.methods.method import Change, Seen, Wanted
from edgeq.methods.scales import least_costly, rounded, scales
from edgeq.model.model import Model
from edgeq.numerics.weights import QuantizedWeight, rows

if TYPE_CHECKING:
    import torch

    from edgeq.methods.hessian import Curved

DAMPING = 0.01
"""What is added to the diagonal of a Hessian, in parts of its mean."""

BLOCK = 128
"""Columns whose errors are carried to all that are behind them at once."""

TOLD_APART = 1 << 12
"""How many weights of columns there are, up to the largest."""

FEW_BITS = 4
"""Up to so many bits, the scale is the one with the least squared error, each weight's as heavy as its diagonal."""


def gptq(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    """Rounds each layer against what the float model gives it on the calibration samples."""
    from edgeq.methods.hessian import hessians

    return Change({layer.one.layer: by_hessian(layer) for layer in hessians(model, wanted, seen)})


def by_hessian(layer: Curved) -> QuantizedWeight:
    """One layer, of which the Hessian is known."""
    one, at, hessian = layer
    weighty = np.empty(one.weight.shape)
    weighty.reshape(-1)[at] = hessian.diagonal(dim1=1, dim2=2).numpy()[:, None]
    if one.scheme.levels is not None:
        begun = k_means(one, weighty if weighty.any() else None)
    else:
        few = one.scheme.width <= FEW_BITS
        begun = rounded(one, least_costly(one, lambda error: np.square(error) * weighty) if few else scales(one))
    shape = rows(one.weight, one.scheme).shape
    scale, zero = (np.broadcast_to(part, shape).reshape(-1)[at] for part in begun.q.shaped(len(shape)))
    integers, ends = begun.integers.reshape(-1), (one.scheme.quant_min, one.scheme.quant_max)
    integers[at] = compensated(one.weight.reshape(-1)[at], hessian, scale, zero, ends, begun.levels)
    return QuantizedWeight(integers.reshape(one.weight.shape), begun.q, begun.levels)


def compensated(
    weight: NDArray[np.float32],
    hessian: torch.Tensor,
    scale: NDArray[Any],
    zero_point: NDArray[Any],
    ends: tuple[int, int],
    levels: NDArray[np.float32] | None = None,
) -> NDArray[Any]:
    """The integers of matrices, by algorithm 1.

    Args:
        weight: [blocks, outputs, inputs].
        hessian: float64 [blocks, inputs, inputs].
        scale, zero_point: float32 and int32, of each weight, in its shape.
        ends: the lowest and the highest integer.
        levels: ascending, which the integers are then places among.

    Returns:
        In the weight's shape, whole numbers in float32.
    """
    import torch

    order = by_weight(hessian.diagonal(dim1=1, dim2=2))
    block = torch.arange(len(order))[:, None]
    # inputs first: a column of all outputs lies in a row
    w, s, z = (torch.from_numpy(array).mT[block, order] for array in (weight, scale, zero_point))
    u = _inverse_root(hessian[block[..., None], order[:, :, None], order[:, None, :]])
    w, whole = w.double(), torch.empty(w.shape)
    known = None if levels is None else torch.from_numpy(levels)
    middles = torch.empty(0) if known is None else (known[1:] + known[:-1]) / 2
    for start in range(0, w.shape[1], BLOCK):
        end = min(start + BLOCK, w.shape[1])
        errors = torch.empty_like(w[:, start:end])
        for j in range(start, end):
            near = w[:, j].float() / s[:, j]
            if known is None:
                steps = (torch.round(near) + z[:, j]).clamp(*ends)
                level = steps - z[:, j]
            else:
                steps = torch.bucketize(near.contiguous(), middles)
                level = known[steps]
            whole[:, j] = steps
            error = errors[:, j - start] = (w[:, j] - level * s[:, j]) / u[:, j, j, None]
            w[:, j:end] -= u[:, j, j:end, None] * error[:, None]
        w[:, end:] -= u[:, start:end, end:].mT @ errors
    found = torch.empty_like(whole)
    found[block, order] = whole
    return found.mT.numpy()


def by_weight(diagonal: torch.Tensor) -> torch.Tensor:
    """The columns of each block by decreasing diagonal. Those of one kernel are often as heavy but for rounding errors,
    and keep their places then: or else each machine would have its own integers."""
    largest = diagonal.amax(dim=1, keepdim=True)
    return (diagonal * (TOLD_APART / largest.clamp(min=1e-30))).round().argsort(dim=1, descending=True, stable=True)


def _inverse_root(hessian: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factors of the inverses of damped Hessians. An input that never changes has no part in any
    other's error: its weights are rounded to nearest."""
    import torch

    mean = hessian.diagonal(dim1=1, dim2=2).mean(dim=1)
    added = torch.where(mean > 0, DAMPING * mean, 1.0)
    damped = hessian + added[:, None, None] * torch.eye(hessian.shape[1], dtype=hessian.dtype)
    root: torch.Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    return root
