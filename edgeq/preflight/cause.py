"""What in the arithmetic of a layer makes two CPUs differ."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.preflight.watch import Layer

MOST = 32767
"""Of a sum in 16 bits."""

ROWS = 4096
"""Patches that are looked at together."""


def saturates(layer: Layer, read: NDArray[Any]) -> int:
    """How many sums of two products, which `vpmaddubsw` makes in 16 bits, do not fit there.

    Products are paired as the kernels pack them: the channels of one place of the kernel, two by two. Layers with one
    channel a group have kernels that widen each product.

    Args:
        read: [N, C, ...] or [N, ..., C] for a matrix product, the integers that the layer reads.
    """
    if layer.weight is None or read.dtype != np.uint8 or layer.weight.dtype != np.int8:
        return 0
    if layer.groups > 1 and layer.weight.shape[1] == 1:
        return 0
    weight = layer.weight
    if layer.apart and weight.shape[1] % 2:
        weight, read = (np.pad(some, [(0, 0), (0, 1)] + [(0, 0)] * (some.ndim - 2)) for some in (weight, read))
        layer = layer._replace(weight=weight)
    outputs = len(weight) // layer.groups
    found = 0
    for group in range(layer.groups):
        own = weight[group * outputs : (group + 1) * outputs]
        packed = np.moveaxis(own, 1, -1).reshape(outputs, -1).astype(np.int32)
        inputs = _patches(layer, read, group)
        if packed.shape[1] % 2:
            packed = np.pad(packed, ((0, 0), (0, 1)))
            inputs = np.pad(inputs, ((0, 0), (0, 1)))
        first, second = packed[:, ::2], packed[:, 1::2]
        # what cannot overflow with any input need not be looked at
        worst = np.maximum(first.clip(min=0) + second.clip(min=0), -(first.clip(max=0) + second.clip(max=0)))
        for row, pair in zip(*np.nonzero(worst * 255 > MOST), strict=True):
            sums = inputs[:, 2 * pair].astype(np.int32) * first[row, pair]
            sums += inputs[:, 2 * pair + 1].astype(np.int32) * second[row, pair]
            found += int((np.abs(sums) > MOST).sum())
    return found


def _patches(layer: Layer, read: NDArray[Any], group: int) -> NDArray[np.uint8]:
    """[patches, kernel places x channels of the group], as the integers that the kernels multiply."""
    assert layer.weight is not None
    if not layer.stride:
        return read.reshape(-1, read.shape[-1])
    channels = layer.weight.shape[1]
    some = read[:, group * channels : (group + 1) * channels]
    kernel = layer.weight.shape[2:]
    spans = tuple((size - 1) * step + 1 for size, step in zip(kernel, layer.dilation, strict=True))
    padding = _padding(layer, some.shape[2:], spans)
    padded = np.pad(some, ((0, 0), (0, 0), *padding), constant_values=layer.input_zero)
    axes = tuple(range(2, padded.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axes)
    steps = (slice(None), slice(None), *(slice(None, None, s) for s in layer.stride))
    holes = tuple(slice(None, None, d) for d in layer.dilation)
    windows = windows[steps + holes]
    count = len(axes)
    order = (0, *range(2, 2 + count), *range(2 + count, 2 + 2 * count), 1)
    return np.ascontiguousarray(windows.transpose(order)).reshape(-1, int(np.prod(kernel)) * channels)


def _padding(layer: Layer, sizes: tuple[int, ...], spans: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Of axes of these sizes, for a kernel that spans so many places of each."""
    if not isinstance(layer.padding, str):
        return layer.padding
    lacking = [
        max((math.ceil(size / step) - 1) * step + span - size, 0)
        for size, step, span in zip(sizes, layer.stride, spans, strict=True)
    ]
    upper = tuple((total // 2, total - total // 2) for total in lacking)
    return upper if layer.padding == "same_upper" else tuple((last, first) for first, last in upper)


def cause_of(layer: Layer, read: NDArray[Any] | None, steps: int) -> str:
    """Why what a layer writes differs, as far as its integers tell.

    Args:
        read: what it reads.
        steps: how far two CPUs are apart at most in what it writes.
    """
    counted = read is not None and layer.weight is not None
    overflows = saturates(layer, read) if read is not None else 0
    if overflows:
        return f"16-bit saturation: {overflows} sums of two products do not fit into 16 bits"
    if steps <= 1:
        return "rounding: values between two integers go to the one or the other"
    return "another kernel: it is off by more than rounding" + (", and nothing saturates" if counted else "")
