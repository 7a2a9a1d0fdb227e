"""Convolutions, products of matrices, pools and norms."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from edgeq.frontends.onnx.operators.node import Node, Operator, Table, axis, refused

Tensor = torch.Tensor

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_LARGEST = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGES = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _convolution(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = _rank(x)
    stride, dilation = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    kernel = list(weight.shape[2:])
    before, after = _padding(node, x, kernel, stride, dilation)
    if before != after:
        x, before = _padded(x, before, after, 0.0), [0] * rank
    return _CONVOLUTIONS[rank](x, weight, bias, stride, before, dilation, node.get("group", 1))


def _transposed(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank, kernel = _rank(x), list(weight.shape[2:])
    stride, dilation = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    more = node.get("output_padding", [0] * rank)
    pads = node.get("pads", [0] * 2 * rank)
    before, after = pads[:rank], pads[rank:]
    auto, shape = node.get("auto_pad", "NOTSET"), node.get("output_shape")
    if shape is not None or auto in ("SAME_UPPER", "SAME_LOWER"):
        full = [s * (n - 1) + o + (k - 1) * d + 1
                for s, n, o, k, d in zip(stride, x.shape[2:], more, kernel, dilation, strict=True)]  # fmt: skip
        wanted = shape[-rank:] if shape is not None else [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
        total = [max(f - w, 0) for f, w in zip(full, wanted, strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        before, after = (small, large) if auto != "SAME_LOWER" else (large, small)
        if shape is not None and auto != "SAME_UPPER":
            before, after = large, small
    trimmed = [min(b, a) for b, a in zip(before, after, strict=True)]
    # PyTorch takes the same from both ends; the rest is cut off behind it
    y = _TRANSPOSED[rank](x, weight, bias, stride, trimmed, more, node.get("group", 1), dilation)
    for number, (b, a, t) in enumerate(zip(before, after, trimmed, strict=True)):
        if b - t or a - t:
            y = y.narrow(2 + number, b - t, y.shape[2 + number] - (b - t) - (a - t))
    return y


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    a = a.t() if node.get("transA", 0) else a
    weight = b if node.get("transB", 0) else b.t()
    weight = weight if alpha == 1 else weight * alpha
    if c is None:
        return F.linear(a, weight)
    c = c if beta == 1 else c * beta
    if c.dim() == 1 and c.shape[0] == weight.shape[0]:
        return F.linear(a, weight, c)
    if c.dim() == 2 and c.shape[0] == 1 and c.shape[1] == weight.shape[0]:
        return F.linear(a, weight, c.reshape(-1))
    return F.linear(a, weight) + c


def _max_pool(node: Node, x: Tensor) -> Any:
    rank, kernel = _rank(x), node.get("kernel_shape")
    stride, dilation = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    if node.outputs > 1:
        raise refused("it gives the places of its largest values")
    before, after = _padding(node, x, kernel, stride, dilation)
    lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    if before != after or any(2 * b > k for b, k in zip(before, kernel, strict=True)):
        x, before = _padded(x, before, after, lowest), [0] * rank
    return _LARGEST[rank](x, kernel, stride, before, dilation, bool(node.get("ceil_mode", 0)))


def _average_pool(node: Node, x: Tensor) -> Tensor:
    rank, kernel = _rank(x), node.get("kernel_shape")
    stride, dilation = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    counts = bool(node.get("count_include_pad", 0))
    if any(one != 1 for one in dilation):
        raise refused("it is an average over values that lie apart")
    before, after = _padding(node, x, kernel, stride, dilation)
    ceil = bool(node.get("ceil_mode", 0))
    pool = _AVERAGES[rank]
    if before == after and all(2 * b <= k for b, k in zip(before, kernel, strict=True)):
        return pool(x, kernel, stride, before, ceil, counts)
    if ceil and counts:
        raise refused("it counts padding that is not the same at both ends, and rounds sizes up")
    y = pool(_padded(x, before, after, 0.0), kernel, stride, 0, ceil)
    if counts:
        return y
    ones = _padded(torch.ones([1, 1, *x.shape[2:]], dtype=x.dtype), before, after, 0.0)
    return y / pool(ones, kernel, stride, 0, ceil)


def _lp_pool(node: Node, x: Tensor) -> Tensor:
    rank, kernel, p = _rank(x), node.get("kernel_shape"), node.get("p", 2)
    stride = node.get("strides", [1] * rank)
    before, after = _padding(node, x, kernel, stride, node.get("dilations", [1] * rank))
    powers = _padded(x.abs() ** p, before, after, 0.0)
    means: Tensor = _AVERAGES[rank](powers, kernel, stride)
    return torch.pow(means * math.prod(kernel), 1 / p)


def _over_all(node: Node, x: Tensor) -> Tensor:
    axes = list(range(2, x.dim()))
    if node.op == "GlobalAveragePool":
        return F.adaptive_avg_pool2d(x, 1) if x.dim() == 4 else x.mean(axes, keepdim=True)
    return x.amax(axes, keepdim=True)


def _batch_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if node.get("training_mode", 0) or node.outputs > 1:
        raise refused("it is in training: it norms by the batch's own statistics")
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, node.get("epsilon", 1e-5))


def _instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, None, None, scale, bias, True, 0.0, node.get("epsilon", 1e-5))


def _group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = node.get("num_groups")
    if node.opset < 21:  # one number for each group, not for each channel
        scale, bias = (one.repeat_interleave(x.shape[1] // groups) for one in (scale, bias))
    return F.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


def _layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    if node.outputs > 1:
        raise refused("it gives the mean and the deviation as well")
    first = axis(node.get("axis", -1), x.dim())
    shape, epsilon = list(x.shape[first:]), node.get("epsilon", 1e-5)
    if node.op == "RMSNormalization":
        mean = (x * x).mean(list(range(first, x.dim())), keepdim=True)
        return x * torch.rsqrt(mean + epsilon) * scale
    if list(scale.shape) == shape and (bias is None or list(bias.shape) == shape):
        return F.layer_norm(x, shape, scale, bias, epsilon)
    y = F.layer_norm(x, shape, None, None, epsilon) * scale
    return y if bias is None else y + bias


def _response_norm(node: Node, x: Tensor) -> Tensor:
    return F.local_response_norm(x, node.get("size"), node.get("alpha", 1e-4), node.get("beta", 0.75),
                                 node.get("bias", 1.0))  # fmt: skip


def _lp_norm(node: Node, x: Tensor) -> Tensor:
    along, p = node.get("axis", -1), node.get("p", 2)
    norm = x.abs().sum(along, keepdim=True) if p == 1 else (x * x).sum(along, keepdim=True).sqrt()
    return x / norm


def _mean_variance(node: Node, x: Tensor) -> Tensor:
    axes = node.get("axes", [0, 2, 3])
    mean = x.mean(axes, keepdim=True)
    return (x - mean) / (((x * x).mean(axes, keepdim=True) - mean * mean).sqrt() + 1e-9)


def _dropout(node: Node, x: Tensor, *rest: Any) -> Any:
    if node.outputs > 1:
        raise refused("it gives the mask of what is dropped")
    if len(rest) > 1 and rest[1] is not None and bool(rest[1]):
        raise refused("it is in training: it drops values")
    return x


def _rank(x: Tensor) -> int:
    if not 3 <= x.dim() <= 5:
        raise refused(f"it works on a value of {x.dim()} axes")
    return x.dim() - 2


def _padding(node: Node, x: Tensor, kernel: list[int], stride: list[int], dilation: list[int]) -> tuple[Any, Any]:
    """Zeros in front of each axis and behind it."""
    rank, auto = len(kernel), node.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        sizes = zip(x.shape[2:], kernel, stride, dilation, strict=True)
        total = [max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0) for n, k, s, d in sizes]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        return (small, large) if auto == "SAME_UPPER" else (large, small)
    pads = node.get("pads", [0] * 2 * rank) if auto == "NOTSET" else [0] * 2 * rank
    return pads[:rank], pads[rank:]


def _padded(x: Tensor, before: list[int], after: list[int], value: float) -> Tensor:
    ends = [end for b, a in zip(reversed(before), reversed(after), strict=True) for end in (b, a)]
    return F.pad(x, ends, value=value)


LAYERS: Table = {
    "Conv": Operator(_convolution), "ConvTranspose": Operator(_transposed), "Gemm": Operator(_gemm),
    "MatMul": Operator(lambda node, a, b: torch.matmul(a, b)), "MaxPool": Operator(_max_pool),
    "AveragePool": Operator(_average_pool), "LpPool": Operator(_lp_pool), "GlobalAveragePool": Operator(_over_all),
    "GlobalMaxPool": Operator(_over_all), "BatchNormalization": Operator(_batch_norm),
    "InstanceNormalization": Operator(_instance_norm), "GroupNormalization": Operator(_group_norm),
    "LayerNormalization": Operator(_layer_norm), "RMSNormalization": Operator(_layer_norm),
    "LRN": Operator(_response_norm), "LpNormalization": Operator(_lp_norm),
    "MeanVarianceNormalization": Operator(_mean_variance), "Dropout": Operator(_dropout, frozenset({1, 2})),
    "Einsum": Operator(lambda node, *given: torch.einsum(node.get("equation"), *given)),
}  # fmt: skip
