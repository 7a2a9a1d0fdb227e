"""One small network for each operator class that a target's table may name: what a probe builds, runs and compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from edgeq.registry.schema import OpClass

Tensor = torch.Tensor
Shape = tuple[int, ...]

_IMAGE: Shape = (32, 28, 28)
_TOKENS: Shape = (64, 64)


@dataclass(frozen=True)
class OneOperator:
    """A network that is one operator, from its inputs to its output.

    Attributes:
        make: the network, with fresh weights where it has any.
        shapes: of each input, for one sample: without the leading axis.
    """

    make: Callable[[], nn.Module]
    shapes: tuple[Shape, ...]


class _Unary(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class _Binary(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.function(a, b)


class _Layer(nn.Module):
    """A layer with a name of its own, as in any network: exporters and runtimes find it by that."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result


class _PaddedConv(nn.Module):
    """Runtimes and file formats take a pad into the convolution behind it: by itself it would be another thing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(32, 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(F.pad(x, (1, 1, 1, 1)))
        return result


def _layer(make: Callable[[], nn.Module], shape: Shape = _IMAGE) -> OneOperator:
    return OneOperator(lambda: _Layer(make()), (shape,))


def _unary(function: Callable[[Tensor], Tensor], shape: Shape = _IMAGE) -> OneOperator:
    return OneOperator(lambda: _Unary(function), (shape,))


def _binary(function: Callable[[Tensor, Tensor], Tensor], first: Shape = _IMAGE, second: Shape = _IMAGE) -> OneOperator:
    return OneOperator(lambda: _Binary(function), (first, second))


OPERATORS: dict[OpClass, OneOperator] = {
    "conv1d": _layer(lambda: nn.Conv1d(32, 32, 3, padding=1), (32, 64)),
    "conv2d": _layer(lambda: nn.Conv2d(32, 32, 3, padding=1)),
    "conv3d": _layer(lambda: nn.Conv3d(32, 16, 3, padding=1), (32, 4, 14, 14)),
    "depthwise_conv2d": _layer(lambda: nn.Conv2d(32, 32, 3, padding=1, groups=32)),
    "conv_transpose2d": _layer(lambda: nn.ConvTranspose2d(32, 16, 2, stride=2), (32, 14, 14)),
    "linear": _layer(lambda: nn.Linear(1024, 512), (1024,)),
    "matmul": _binary(torch.matmul, (4, 32, 64), (4, 64, 32)),
    "add": _binary(torch.add),
    "sub": _binary(torch.sub),
    "mul": _binary(torch.mul),
    "relu": _unary(F.relu),
    "relu6": _unary(F.relu6),
    "hardswish": _unary(F.hardswish),
    "hardsigmoid": _unary(F.hardsigmoid),
    "hardtanh": _unary(F.hardtanh),
    "sigmoid": _unary(torch.sigmoid),
    "tanh": _unary(torch.tanh),
    "silu": _unary(F.silu),
    "gelu": _unary(F.gelu),
    "leaky_relu": _unary(lambda x: F.leaky_relu(x, 0.1)),
    "prelu": _layer(lambda: nn.PReLU(32)),
    "softmax": _unary(lambda x: F.softmax(x, -1), _TOKENS),
    "layer_norm": _layer(lambda: nn.LayerNorm(64), _TOKENS),
    "max_pool2d": _unary(lambda x: F.max_pool2d(x, 2)),
    "avg_pool2d": _unary(lambda x: F.avg_pool2d(x, 2)),
    "mean": _unary(lambda x: x.mean((2, 3))),
    "concat": _binary(lambda a, b: torch.cat([a, b], 1)),
    "pad": OneOperator(_PaddedConv, (_IMAGE,)),
    "reshape": _unary(lambda x: torch.flatten(x, 1)),
    "transpose": _unary(lambda x: x.permute(0, 2, 3, 1)),
    "slice": _unary(lambda x: x[:, :16]),
    "resize_nearest": _unary(lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest")),
    "resize_bilinear": _unary(lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear")),
}
"""By operator class. `embedding` is missing: it reads integers, so that no kernel for activations has a say in it."""


def samples(
    operator: OneOperator, count: int, seed: int, width: float = 1.0, *, positive: bool = False
) -> list[Tensor]:
    """Normally distributed inputs, [count, ...] each.

    Args:
        width: their standard deviation.
        positive: without their signs.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = [width * torch.randn((count, *shape), generator=generator) for shape in operator.shapes]
    return [x.abs() for x in drawn] if positive else drawn


def seeded(operator: OneOperator) -> nn.Module:
    """The network in evaluation mode, with the same weights in every run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return operator.make().eval()
