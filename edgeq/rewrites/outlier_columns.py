"""Outlier columns apart: the few channels that are much larger than all others, or whose weights are, are taken from a
linear layer by a small one beside it that stays in float.

    W x = W' (m x) + W[:, columns] x[columns]

with W' the weight without these columns and m a mask of zeros and ones. One channel of many that reaches tens of times
farther leaves all others a few steps, in the value and in the weights. The mask is left out where no channel of the
value is an outlier itself.

A parameter is how many times the median of all channels counts as an outlier, by the largest number of a channel or by
its largest weight. LLM.int8() takes values of 6 and more, behind normalisations that make most of them near 1.

Whole columns are taken, and not single weights, as in the dense-and-sparse decomposition of SqueezeLLM (Kim et al.
2023, arXiv 2306.07629, section 4.2): that takes fewer numbers for outliers that are scattered, but it needs a product
with a sparse matrix in float, which no more than one runtime here has. ONNX Runtime expands sparse constants when it
loads a file, OpenVINO keeps packed only those of 8 bits, for CPUs with AMX, and TFLite has float kernels for sparse
weights in FULLY_CONNECTED.

Source: Dettmers et al. 2022, "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", arXiv 2208.07339,
section 3.2, equation 8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeq.model.branches import Branch, rest_of, with_branches
from edgeq.model.graph import Array
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.model.scaled import Scaled, with_products
from edgeq.registry.schema import Runtime
from edgeq.rewrites.few_bits import with_few_bits
from edgeq.rewrites.readers import linear_readers
from edgeq.rewrites.rewrite import Asked, Channels, Chosen, Observed, Parameters, Rewrite

TIMES = (16.0, 8.0, 4.0)

MOST = 1 / 8
"""Of a value's channels; where more reach so far, they are no outliers."""


def outliers(
    model: Model, readers: Sequence[Group], channels: Channels, times: float
) -> tuple[NDArray[np.int64], bool]:
    """The columns to take, and whether some of them are outliers of the value, and not only of the weights.

    Args:
        readers: the linear layers that read the value.
        channels: of the value.
    """
    weights = np.abs(np.concatenate([model.state[group.weight or ""] for group in readers])).max(axis=0)
    far, heavy = (of > times * max(float(np.median(of)), 1e-30) for of in (channels.largest, weights))
    return np.flatnonzero(far | heavy), bool(far.any())


def columns_apart(model: Model, observed: Observed, times: Parameters) -> Model:
    """The model with outlier columns in branches of their own. It computes what it did, to rounding.

    Args:
        times: by graph node of a value that linear layers read.
    """
    state: dict[str, Array] = {}
    branches: dict[str, Branch] = {}
    masks: dict[str, Scaled] = {}
    for value, readers in linear_readers(model).items():
        if value not in times:
            continue
        columns, far = outliers(model, readers, observed[value], times[value])
        if not len(columns):
            continue
        mask = np.ones(len(observed[value].low), np.float32)
        mask[columns] = 0
        for group in readers:
            name = group.weight or ""
            weight = model.state[name]
            state[name] = weight * mask
            branches[group.root] = Branch({f"{name.removesuffix('.weight')}.outliers": weight[:, columns]}, columns)
        if far:
            masks[value] = Scaled([rest_of(group.root) for group in readers], mask)
    return model.with_program(with_products(with_branches(model.program, state, branches), {}, masks))


def _places(model: Model, runtimes: Sequence[Runtime]) -> dict[str, int]:
    able = any("linear" in kernel.ops for runtime in runtimes for kernel in runtime.kernels)
    return dict.fromkeys(linear_readers(model), -1) if able else {}


def _choose(asked: Asked) -> Chosen:
    from edgeq.rewrites.judged import best_of  # PyTorch takes seconds to import

    model, found = asked.model, linear_readers(asked.model)
    taken: dict[float, dict[str, int]] = {}
    for times in TIMES:
        counts = {v: len(outliers(model, readers, asked.observed[v], times)[0]) for v, readers in found.items()}
        taken[times] = {v: n for v, n in counts.items() if 0 < n <= MOST * len(asked.observed[v].low)}
    # a threshold that takes what one before it takes is none of its own
    alike = {tuple(counts.items()): times for times, counts in reversed(taken.items()) if counts}
    options = [dict.fromkeys(taken[times], times) for times in alike.values()]
    layers = {group.name for readers in found.values() for group in readers}
    return best_of(asked, columns_apart, options, with_few_bits(model, asked.runtimes, layers))


OUTLIER_COLUMNS = Rewrite(
    "outlier columns apart", "times", (1, math.inf), version=1, places=_places, choose=_choose, apply=columns_apart
)
