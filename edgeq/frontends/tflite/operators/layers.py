"""Convolutions, products of matrices and pools. Images come with their channels first, and so do weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from edgeq.frontends.tflite.operators.node import Known, Node, Operator, Table, whole

Tensor = torch.Tensor

SAME = 0
"""The schema's number for padding that keeps the size."""

_ACTIVATIONS: dict[int, Any] = {
    0: lambda x: x, 1: torch.relu, 2: lambda x: torch.clamp(x, -1, 1), 3: F.relu6, 4: torch.tanh, 5: torch.sign,
}  # fmt: skip
"""By the schema's numbers."""


def activated(node: Node, x: Tensor) -> Tensor:
    """With the activation that the operator has fused."""
    found: Tensor = _ACTIVATIONS[getattr(node.options, "fusedActivationFunction", 0)](x)
    return found


def _convolution(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    o = node.options
    stride, dilation = (o.strideH, o.strideW), (o.dilationHFactor, o.dilationWFactor)
    x, padding = _padded(x, o.padding, weight.shape[2:], stride, dilation)
    return activated(node, F.conv2d(x, weight, bias, stride, padding, dilation, x.shape[1] // weight.shape[1]))


def _transposed(node: Node, size: Known, weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Any:
    o, (height, width) = node.options, weight.shape[2:]
    x = x.permute(0, 3, 1, 2)
    wanted = whole(size)[1:3]
    y = F.conv_transpose2d(x, weight, bias, (o.strideH, o.strideW))
    for number, (n, k, s) in enumerate(zip(wanted, (height, width), (o.strideH, o.strideW), strict=True)):
        before = 0
        if o.padding == SAME:
            before = max((x.shape[2 + number] - 1) * s + k - n, 0) // 2
        have = y.shape[2 + number]
        if before + n > have:
            y = F.pad(y, (0, 0, 0, before + n - have) if number == 0 else (0, before + n - have))
        y = y.narrow(2 + number, before, n)
    return activated(node, y).permute(0, 2, 3, 1)


def _fully_connected(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if (x.dim() != 2 and not node.options.keepNumDims) or x.shape[-1] != weight.shape[1]:
        x = x.reshape(-1, weight.shape[1])
    return activated(node, F.linear(x, weight, bias))


def _product(node: Node, a: Tensor, b: Tensor) -> Tensor:
    a = a.transpose(-1, -2) if node.options.adjX else a
    return torch.matmul(a, b.transpose(-1, -2) if node.options.adjY else b)


def _average(node: Node, x: Tensor) -> Tensor:
    o = node.options
    size, stride = (o.filterHeight, o.filterWidth), (o.strideH, o.strideW)
    own, padding = _padded(x, o.padding, size, stride, (1, 1))
    if own is x and all(2 * p <= k for p, k in zip(padding, size, strict=True)):
        return activated(node, F.avg_pool2d(x, size, stride, padding, count_include_pad=False))
    ones, more = _padded(torch.ones([1, 1, *x.shape[2:]], dtype=x.dtype), o.padding, size, stride, (1, 1))
    sums = F.avg_pool2d(own, size, stride, padding) / F.avg_pool2d(ones, size, stride, more)
    return activated(node, sums)


def _largest(node: Node, x: Tensor) -> Tensor:
    o = node.options
    size, stride = (o.filterHeight, o.filterWidth), (o.strideH, o.strideW)
    x, padding = _padded(x, o.padding, size, stride, (1, 1), -torch.inf)
    return activated(node, F.max_pool2d(x, size, stride, padding))


def _padded(
    x: Tensor, how: int, kernel: Any, stride: tuple[int, int], dilation: tuple[int, int], value: float = 0.0
) -> tuple[Tensor, list[int]]:
    """With what a layer cannot pad by itself, since it differs at both ends; and what the layer pads."""
    if how != SAME:
        return x, [0, 0]
    sizes = zip(x.shape[2:], kernel, stride, dilation, strict=True)
    total = [max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0) for n, k, s, d in sizes]
    if all(t % 2 == 0 for t in total):
        return x, [t // 2 for t in total]
    ends = [end for t in reversed(total) for end in (t // 2, t - t // 2)]
    return F.pad(x, ends, value=value), [0, 0]


def _resize(node: Node, x: Tensor, size: Known) -> Tensor:
    wanted, o = whole(size), node.options
    align, half = bool(o.alignCorners), bool(o.halfPixelCenters)
    if node.op == "RESIZE_BILINEAR":
        if align or half:
            return F.interpolate(x, wanted, mode="bilinear", align_corners=align)
        for number, n in enumerate(wanted):
            x = _between(x, 2 + number, n)
        return x
    for number, n in enumerate(wanted):
        have = x.shape[2 + number]
        places = [_nearest(i, have, n, align, half) for i in range(n)]
        if places != list(range(have)):
            x = x.index_select(2 + number, torch.tensor(places))
    return x


def _nearest(i: int, have: int, wanted: int, align: bool, half: bool) -> int:
    scale = (have - 1) / (wanted - 1) if align and wanted > 1 else have / wanted
    place = (i + (0.5 if half else 0.0)) * scale
    return min(int(place + 0.5) if align else int(place), have - 1)


def _between(x: Tensor, along: int, wanted: int) -> Tensor:
    """Values between neighbours along one axis, with the first of old and new at one place."""
    have = x.shape[along]
    if have == wanted:
        return x
    places = [i * have / wanted for i in range(wanted)]
    low = [min(int(place), have - 1) for place in places]
    share = torch.tensor([place - below for place, below in zip(places, low, strict=True)])
    share = share.reshape([-1 if number == along else 1 for number in range(x.dim())])
    above = [min(below + 1, have - 1) for below in low]
    a, b = (x.index_select(along, torch.tensor(one)) for one in (low, above))
    return a + (b - a) * share


def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    size = node.options.blockSize
    parts = x.reshape(n, size, size, c // (size * size), h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // (size * size), h * size, w * size)


def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    size = node.options.blockSize
    parts = x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * size * size, h // size, w // size)


def _l2_norm(node: Node, x: Tensor) -> Tensor:
    return activated(node, x / torch.clamp((x * x).sum(-1, keepdim=True), min=1e-6).sqrt())


LAYERS: Table = {
    "CONV_2D": Operator(_convolution, turned="layer"), "DEPTHWISE_CONV_2D": Operator(_convolution, turned="layer"),
    "AVERAGE_POOL_2D": Operator(_average, turned="layer"), "MAX_POOL_2D": Operator(_largest, turned="layer"),
    "RESIZE_BILINEAR": Operator(_resize, frozenset({1}), "layer"),
    "RESIZE_NEAREST_NEIGHBOR": Operator(_resize, frozenset({1}), "layer"),
    "DEPTH_TO_SPACE": Operator(_depth_to_space, turned="layer"),
    "SPACE_TO_DEPTH": Operator(_space_to_depth, turned="layer"),
    "TRANSPOSE_CONV": Operator(_transposed, frozenset({0})), "FULLY_CONNECTED": Operator(_fully_connected),
    "BATCH_MATMUL": Operator(_product), "L2_NORMALIZATION": Operator(_l2_norm),
}  # fmt: skip
