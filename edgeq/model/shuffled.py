"""A transposed convolution as a convolution to s x s times as many channels, whose values are shuffled into place.

Every s-th place of the output meets the same weights: each of the s x s phases is a convolution of its own, with zeros
where the kernel ends. The numbers are the same; there are up to (1 + s / k)^2 times as many products.

Source: Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?", figure 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeq.model.graph import Node
from edgeq.model.ops import by_axis, conv_groups, shape_of


@dataclass(frozen=True)
class Shuffle:
    """How the one becomes the other; by axis in space where it is a pair.

    Attributes:
        stride: of the transposed convolution, the same on both axes.
        places: [stride, taps]: for each phase and tap of the convolution the index into the transposed kernel, which is
            the kernel's size where the phase has no weight there.
        pads: zeros around the input of the convolution: before on both axes, then after.
        cut: what is cut off the end of what was shuffled.
    """

    stride: int
    places: tuple[NDArray[np.int64], NDArray[np.int64]]
    pads: tuple[int, int, int, int]
    cut: tuple[int, int]


def shuffle_of(node: Node) -> Shuffle | None:
    """For a 2-D transposed convolution; None where it has groups, a dilation, or strides that differ."""
    strides, paddings, behind, dilation = (by_axis(node, *at, 2) for at in ((3, 1), (4, 0), (5, 0), (7, 1)))
    if conv_groups(node) != 1 or dilation != (1, 1) or strides[0] != strides[1]:
        return None
    stride = strides[0]
    places, before, after, cut = [], [], [], []
    for kernel, padding, more in zip(shape_of_weight(node)[2:], paddings, behind, strict=True):
        last, first = (kernel - 1 - padding) // stride, -((padding + stride - 1) // stride)
        taps = np.arange(last, first - 1, -1)
        index = stride * taps + np.arange(stride)[:, None] + padding
        places.append(np.where((index >= 0) & (index < kernel), index, kernel))
        grown = kernel + more - 2 * padding  # what the output is larger than the strides between its inputs
        steps = -(-grown // stride)
        before.append(last)
        after.append(steps - 1 - first)
        cut.append(stride * steps - grown)
    if min(*before, *after) < 0:
        return None
    return Shuffle(stride, (places[0], places[1]), (before[0], before[1], after[0], after[1]), (cut[0], cut[1]))


def shape_of_weight(node: Node) -> tuple[int, ...]:
    """[inputs, outputs, height, width]."""
    weight = node.args[1]
    assert isinstance(weight, Node)
    return shape_of(weight)


def scattered(weight: NDArray[np.generic], shuffle: Shuffle) -> NDArray[np.generic]:
    """The weight of the convolution, [s * s * outputs, inputs, taps, taps], the phases outermost.

    Args:
        weight: of the transposed convolution, [inputs, outputs, height, width].
    """
    inputs, outputs, height, width = weight.shape
    framed = np.zeros((inputs, outputs, height + 1, width + 1), weight.dtype)
    framed[:, :, :height, :width] = weight
    rows, columns = shuffle.places
    phases = framed[:, :, rows[:, :, None, None], columns].transpose(2, 4, 1, 0, 3, 5)
    return np.ascontiguousarray(phases).reshape(-1, inputs, rows.shape[1], columns.shape[1])


def gathered(weight: NDArray[np.generic], shape: tuple[int, ...], shuffle: Shuffle) -> NDArray[np.generic]:
    """The weight of the transposed convolution again; the whole of what it is given where that is no scattered one.

    Args:
        shape: of the result.
    """
    inputs, outputs, height, width = shape
    (rows, columns), s = shuffle.places, shuffle.stride
    if weight.shape != (s * s * outputs, inputs, rows.shape[1], columns.shape[1]):
        return weight
    phases = weight.reshape(s, s, outputs, inputs, *weight.shape[2:])
    framed = np.zeros((inputs, outputs, height + 1, width + 1), weight.dtype)
    framed[:, :, rows[:, :, None, None], columns] = phases.transpose(3, 2, 0, 4, 1, 5)
    found = framed[:, :, :height, :width]
    return found if np.array_equal(scattered(found, shuffle), weight) else weight
