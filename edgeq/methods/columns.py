"""A layer as products of matrices: its weights, and what they meet.

The outputs of a linear layer are [outputs, inputs] times the inputs at each position. Those of a convolution are too,
where the inputs of a position are all that the kernel covers there (im2col), for each of its groups: a depthwise one is
a product of [1, kernel] for each channel. A transposed convolution is a convolution over its input with zeros put
between, its kernel turned round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from edgeq.model.graph import Node
from edgeq.model.ops import by_axis, conv_groups, op_class, shape_of


def columns(node: Node, widest: int) -> NDArray[np.intp]:
    """Where in its flat weight a layer's matrices are: [blocks, outputs, inputs].

    Args:
        node: the convolution or linear in the graph.
        widest: most inputs of a block. More are cut into equal blocks, whose outputs are parts of a sum.
    """
    shape, groups = shape_of(node.args[1]), conv_groups(node)
    at: NDArray[np.intp] = np.arange(math.prod(shape)).reshape(groups, -1, *shape[1:])
    if op_class(node) == "conv_transpose2d":
        at = at.swapaxes(1, 2)
    at = at.reshape(*at.shape[:2], -1)
    inputs = at.shape[2]
    pieces = next(n for n in range(1, inputs + 1) if inputs % n == 0 and inputs // n <= widest)
    cut: NDArray[np.intp] = at.reshape(*at.shape[:2], pieces, -1).swapaxes(1, 2)
    return cut.reshape(groups * pieces, at.shape[1], -1)


def met(node: Node, x: torch.Tensor, most: int, seed: int) -> torch.Tensor:
    """What a layer's weights meet: [positions, groups, inputs], the inputs in the order of `columns`.

    Args:
        node: the convolution or linear in the graph.
        x: what it reads.
        most: positions to take; where there are more, they are drawn at random.
        seed: of the draw.
    """
    kernel = shape_of(node.args[1])[2:]
    if op_class(node) == "linear":
        read = x
    else:
        x = x.reshape(-1, *x.shape[x.dim() - 1 - len(kernel) :])
        transposed = op_class(node) == "conv_transpose2d"
        windows = _spread(node, x, kernel) if transposed else _gathered(node, x, kernel)
        read = windows.movedim(1, 1 + len(kernel))
    places = read.shape[: read.dim() - 1 - len(kernel)]
    drawn = torch.randperm(math.prod(places), generator=torch.Generator().manual_seed(seed))[:most]
    found = read[torch.unravel_index(drawn, places)]
    if op_class(node) == "conv_transpose2d":
        found = found.flip(tuple(range(2, found.dim())))
    return found.reshape(len(found), conv_groups(node), -1)


def _gathered(node: Node, x: torch.Tensor, kernel: Sequence[int]) -> torch.Tensor:
    """What a convolution reads at each place: a view, [samples, channels, *places, *kernel]."""
    strides, paddings, steps = (by_axis(node, *at, len(kernel)) for at in ((3, 1), (4, 0), (5, 1)))
    return _windows(x, kernel, strides, steps, [(p, p) for p in paddings])


def _spread(node: Node, x: torch.Tensor, kernel: Sequence[int]) -> torch.Tensor:
    """Likewise what adds to each place of a transposed convolution's output, the kernel back to front."""
    given = ((3, 1), (4, 0), (5, 0), (7, 1))
    strides, paddings, more, steps = (by_axis(node, *at, len(kernel)) for at in given)
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], strides, strict=True)]
    apart = x.new_zeros((*x.shape[:2], *sizes))
    places = tuple(slice(None, None, s) for s in (1, 1, *strides))
    apart[places] = x
    reach = [d * (k - 1) - p for k, d, p in zip(kernel, steps, paddings, strict=True)]
    ends = [(r, r + m) for r, m in zip(reach, more, strict=True)]
    return _windows(apart, kernel, [1] * len(kernel), steps, ends)


def _windows(
    x: torch.Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    steps: Sequence[int],
    ends: Sequence[tuple[int, int]],
) -> torch.Tensor:
    x = torch.nn.functional.pad(x, [count for both in reversed(ends) for count in both])
    for axis, (size, stride, step) in enumerate(zip(kernel, strides, steps, strict=True), start=2):
        x = x.unfold(axis, step * (size - 1) + 1, stride)[..., ::step]
    return x
