"""Low rank apart: a linear layer becomes one that is rounded, and a small one beside it that stays in float.

    W x = L1 L2 x + R x,    R = W - L1 L2

What is large in many weights at once, and would make the steps of all of them coarse, is often of low rank: the small
branch takes it, and what remains is easier to round. L1 L2 S is the truncated singular value decomposition of W S, with
S the root mean square of each channel of the input, so that a weight counts by what it is multiplied by.

A parameter is the rank, in parts of the smaller side of W. Each value has the one that gains the layers that read it
most in few bits, less the price of the branch (`edgeq.rewrites.price`), or none.

Its own here: the input is not smoothed again, which `smooth_quant` and `awq` have done by then; and what is decomposed
is the weight, as in SVDQuant, not its rounding error, as in LQER: one branch serves every way of rounding. LQER scales
by mean magnitudes; with root mean squares, what is left out adds the least to the squared error of the outputs where
channels are not correlated.

Sources: Li et al. 2024, "SVDQuant: Absorbing Outliers by Low-Rank Components for 4-Bit Diffusion Models",
arXiv 2411.05007, section 4.2; the scaling by the input: Zhang et al. 2024, "LQER: Low-Rank Quantization Error
Reconstruction for LLMs", arXiv 2402.02446.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeq.model.branches import Branch, with_branches
from edgeq.model.model import Model
from edgeq.registry.schema import Kernel, Runtime
from edgeq.rewrites.few_bits import few_bits, fitting, rounded, with_few_bits
from edgeq.rewrites.price import price_db
from edgeq.rewrites.readers import linear_readers
from edgeq.rewrites.rewrite import Asked, Channels, Chosen, Observed, Parameters, Rewrite

SHARES = (1 / 64, 1 / 32, 1 / 16)

POSITIONS = 256
"""Rows of a layer's input that its error is measured on."""

SMALLEST = 1e-3
"""Channels of the input below this part of the largest one count as it."""

Floats = NDArray[np.float32]


class Parts(NamedTuple):
    """W = up down + rest, [outputs, rank], [rank, inputs] and [outputs, inputs], float32."""

    up: Floats
    down: Floats
    rest: Floats


def parts(weight: Floats, channels: Channels, share: float) -> Parts:
    """The low rank of a weight, and the rest.

    Args:
        weight: [outputs, inputs].
        channels: of the input.
    """
    met = np.hypot(channels.mean.astype(np.float64), channels.deviation)
    scale = np.maximum(met / max(float(met.max()), 1e-30), SMALLEST)
    rank = max(1, round(share * min(weight.shape)))
    left, values, right = np.linalg.svd(weight * scale, full_matrices=False)
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    # which of the two signs a vector has is up to the library
    signs = np.sign(left[np.abs(left).argmax(axis=0), np.arange(rank)])
    up = (left * signs * np.sqrt(values)).astype(np.float32)
    down = (right * signs[:, None] * np.sqrt(values)[:, None] / scale).astype(np.float32)
    rest = weight - up.astype(np.float64) @ down.astype(np.float64)
    return Parts(up, down, rest.astype(np.float32))


def low_rank_apart(model: Model, observed: Observed, shares: Parameters) -> Model:
    """The model with the low rank of layers in branches of their own. It computes what it did, to rounding.

    Args:
        shares: by graph node of a value that linear layers read.
    """
    state: dict[str, Floats] = {}
    branches = {}
    for value, readers in linear_readers(model).items():
        for group in readers if value in shares else ():
            weight = group.weight or ""
            found = parts(model.state[weight], observed[value], shares[value])
            state[weight] = found.rest
            beside = f"{weight.removesuffix('.weight')}.low_rank"
            branches[group.root] = Branch({f"{beside}.down": found.down, f"{beside}.up": found.up})
    return model.with_program(with_branches(model.program, state, branches))


def best_share(weights: Sequence[Floats], kernels: Sequence[Kernel], channels: Channels, rows: Floats) -> float:
    """The share of rank that gains most less its price; 0 where none gains as much.

    Args:
        rows: of the value that the weights are multiplied by, [positions, inputs].
    """

    def error(which: Sequence[Floats]) -> NDArray[np.float64]:
        pairs = [(weight, rounded(weight, kernel)) for weight in which for kernel in kernels]
        lost = [np.square(rows @ (real - weight).T).sum(dtype=np.float64) for weight, real in pairs]
        total: NDArray[np.float64] = np.reshape(lost, (len(which), len(kernels))).sum(axis=0)
        return np.maximum(total, 1e-30)

    def worth(share: float) -> float:
        found = [parts(weight, channels, share) for weight in weights]
        gained = np.mean(10 * np.log10(whole / error([one.rest for one in found])))
        added = sum(one.up.size + one.down.size for one in found)
        return float(gained) - price_db(added, sum(weight.size for weight in weights))

    whole = error(weights)
    worths = {share: worth(share) for share in SHARES} if kernels else {}
    best = max(worths, key=worths.__getitem__, default=0.0)
    return best if worths.get(best, 0.0) > 0 else 0.0


def _places(model: Model, runtimes: Sequence[Runtime]) -> dict[str, int]:
    return dict.fromkeys(linear_readers(model), -1) if few_bits(runtimes) else {}


def _choose(asked: Asked) -> Chosen:
    from edgeq.rewrites.channels import rows_of  # PyTorch takes seconds to import
    from edgeq.rewrites.judged import best_of

    model, found = asked.model, linear_readers(asked.model)
    rows = rows_of(model, asked.samples.observed, list(found), POSITIONS)
    shares = {}
    for value, readers in found.items():
        names = [group.weight or "" for group in readers]
        kernels, weights = fitting(model, asked.runtimes, names), [model.state[name] for name in names]
        shares[value] = best_share(weights, kernels, asked.observed[value], rows[value])
    shares = {value: share for value, share in shares.items() if share}
    ways = with_few_bits(model, asked.runtimes, {group.name for readers in found.values() for group in readers})
    return best_of(asked, low_rank_apart, [shares] if shares else [], ways)


LOW_RANK = Rewrite("low rank apart", "rank", (0, 1), version=1, places=_places, choose=_choose, apply=low_rank_apart)
