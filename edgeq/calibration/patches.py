"""What a layer's weights meet on average: the mean output, per unit of each weight."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from edgeq.model.graph import Node
from edgeq.model.ops import by_axis, conv_groups, op_class, shape_of

Array = NDArray[np.float64]


def mean_patch(node: Node, mean_input: torch.Tensor) -> NDArray[np.float32]:
    """By how much the mean of an output channel grows with each weight, padding included.

    A convolution or linear is linear in its input and in its weights, so that the mean input tells it exactly: what
    each weight is multiplied by, averaged over the places of the output. Channels of one group see the same inputs; it
    is kept once for all of them.

    Not as the gradient by the weights: oneDNN's for a strided 1x1 convolution of few channels writes beyond its memory
    (torch 2.13), and without oneDNN a depthwise one takes seconds.

    Args:
        node: the convolution or linear in the graph.
        mean_input: float32, shape of one sample's input with a leading 1.

    Returns:
        float32 [groups, ...]: behind the groups of the convolution the axes of its weight, with 1 output channel.
    """
    op, kernel = op_class(node) or "", shape_of(node.args[1])[2:]
    whole: Array = mean_input.double().numpy()
    rows = whole.reshape(-1, *whole.shape[whole.ndim - 1 - len(kernel) :])
    x = np.moveaxis(rows.sum(axis=0) / max(len(rows), 1), 0, -1)  # a layer may read nothing at all
    if op == "linear":
        met = x.reshape(1, 1, -1)
    elif op == "conv_transpose2d":
        met = _spread(node, x, kernel).reshape(conv_groups(node), -1, 1, *kernel)
    else:
        met = _gathered(node, x, kernel).reshape(conv_groups(node), 1, -1, *kernel)
    patch: NDArray[np.float32] = met.astype(np.float32)
    return patch


def _gathered(node: Node, x: Array, kernel: Sequence[int]) -> Array:
    """Of a convolution: [input channels, *kernel], the mean of what each weight reads of x, [*places, channels]."""
    strides, paddings, steps = (by_axis(node, *at, len(kernel)) for at in ((3, 1), (4, 0), (5, 1)))
    x = np.pad(x, [*((p, p) for p in paddings), (0, 0)])
    places = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[:-1], kernel, strides, steps, strict=True)]
    found, channels = np.empty((*kernel, x.shape[-1])), x.shape[-1]
    for at in np.ndindex(*kernel):
        read = tuple(slice(a * d, a * d + s * n, s) for a, d, s, n in zip(at, steps, strides, places, strict=True))
        found[at] = x[read].reshape(-1, channels).mean(axis=0)
    return np.moveaxis(found, -1, 0)


def _spread(node: Node, x: Array, kernel: Sequence[int]) -> Array:
    """Of a transposed convolution: [input channels, *kernel], the sum of what each weight adds to the output, for each
    place of that."""
    given = (by_axis(node, *at, len(kernel)) for at in ((3, 1), (4, 0), (5, 0), (7, 1)))
    axes = [
        (n, s, p, d, (n - 1) * s - 2 * p + d * (k - 1) + more + 1)
        for n, k, s, p, more, d in zip(x.shape[:-1], kernel, *given, strict=True)
    ]
    found, channels = np.empty((*kernel, x.shape[-1])), x.shape[-1]
    for at in np.ndindex(*kernel):
        # the inputs whose product with this weight lies within the output
        first = (max(0, -(-(p - a * d) // s)) for a, (_, s, p, d, _) in zip(at, axes, strict=True))
        end = (max(0, min(n, (size - 1 + p - a * d) // s + 1)) for a, (n, s, p, d, size) in zip(at, axes, strict=True))
        read = tuple(slice(*ends) for ends in zip(first, end, strict=True))
        found[at] = x[read].reshape(-1, channels).sum(axis=0)
    each: Array = np.moveaxis(found, -1, 0) / math.prod(size for *_, size in axes)
    return each
