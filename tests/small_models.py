"""Tiny networks, one for each thing that graphs do, with data for them."""

from __future__ import annotations

import atexit
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from edgeq.calibration.calibrate import calibrate
from edgeq.calibration.calibration import Calibration
from edgeq.export.artifact import Exporter
from edgeq.export.stored import Stored
from edgeq.frontends.load import load
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.on_device import worker
from edgeq.quantization.quantized import Quantized
from edgeq.registry.load import load_target
from edgeq.registry.schema import Runtime

Arrays = dict[str, np.ndarray]
IMAGE = (3, 8, 8)


class ConvNormRelu6(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU6(inplace=True)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.norm(self.conv(image))))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand, self.expand_norm = nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.depthwise_norm = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.project = nn.Conv2d(8, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.expand_norm(self.expand(image)))
        return self.project(F.relu6(self.depthwise_norm(self.depthwise(x))))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 6)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(image))
        x = torch.relu(self.norm(self.inner(x)) + x)
        return self.head(x.mean((2, 3)))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([F.relu(self.left(image)), F.relu(self.right(image))], 1))


class SplitShuffle(nn.Module):
    """A ShuffleNet unit: split, work on one half, put together, interleave the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        a, b = F.relu(self.stem(image)).chunk(2, 1)
        x = torch.cat([a, F.relu(self.branch(b))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return self.head(x)


class PadStride(nn.Module):
    """TensorFlow's asymmetric padding in front of a strided convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(6, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.conv(F.pad(image, (0, 1, 0, 1)))))


class Pools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1), nn.Linear(6, 4)
        self.gather = nn.AdaptiveAvgPool2d(1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.stem(image)), 2)
        x = F.avg_pool2d(F.relu(self.mid(x)), 2)
        return self.head(torch.flatten(self.gather(x), 1))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.second = nn.Linear(12, 16), nn.Dropout(0.5), nn.Linear(16, 5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.second(self.drop(F.relu(self.first(features), inplace=True)))


class TokenMlp(nn.Module):
    """Linear layers on three dimensions, one of them without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 5, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.second(F.relu(self.first(tokens)))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.grouped(F.relu(self.stem(image)))))


class Upconv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm_down = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.up, self.norm = nn.ConvTranspose2d(8, 6, 2, stride=2, bias=False), nn.BatchNorm2d(6)
        self.grouped, self.grouped_norm = nn.ConvTranspose2d(6, 6, 3, padding=1, groups=3), nn.BatchNorm2d(6)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.up(F.relu(self.norm_down(self.down(image))))))
        return self.head(F.relu(self.grouped_norm(self.grouped(x))))


class Conv1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv1d(4, 8, 3, padding=1), nn.BatchNorm1d(8), nn.Conv1d(8, 3, 1)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.norm(self.conv(signal))))


class Activations(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.leaky = nn.LeakyReLU(0.1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.b(F.hardswish(self.a(image), inplace=True)))
        return torch.sigmoid(self.c(self.leaky(x)))


class Gate(nn.Module):
    """Squeeze and excitation, and a softmax at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze, self.excite = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(image))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return torch.softmax(self.head((x * gate).mean((2, 3))), 1)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_side, self.feature_side, self.head = nn.Conv2d(3, 8, 3), nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, image: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        seen = F.relu(self.image_side(image)).mean((2, 3))
        return self.head(F.relu(seen + self.feature_side(features)))


class TwoOutputs(nn.Module):
    """One of the outputs is also read inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.boxes, self.scores = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        boxes = self.boxes(F.relu(self.stem(image)))
        return {"boxes": boxes, "scores": self.scores(F.relu(boxes))}


class LayerTwice(nn.Module):
    """One layer at two places, whose inputs differ in range."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.layer(F.relu(self.stem(image))))
        return self.head(F.relu(self.layer(x * 3.0)))


class SharedWeight(nn.Module):
    """Two layers that own one weight, each with its own batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.second.weight = self.first.weight
        self.first_norm, self.second_norm, self.head = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first_norm(self.first(image)))
        return self.head(F.relu(self.second_norm(self.second(x))))


class SharedWithoutNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.second.weight = self.first.weight

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.second(F.relu(self.first(features)))


class NormFirst(nn.Module):
    """Batch norms without a convolution in front of them, and one whose convolution has a second reader."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv, self.inner = nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.norm(image))
        return self.head(F.relu(self.inner(x) + x))


class NormOverTokens(nn.Module):
    """A batch norm whose channels are not the features of the linear layer in front of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(12, 7), nn.BatchNorm1d(7), nn.Linear(7, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.second(F.relu(self.norm(self.first(tokens))))


class InputToEnd(nn.Module):
    """The input is read by the operator that makes the output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.conv(image) + image


class Upsample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.skip, self.head = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(12, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        small = F.relu(self.stem(image))
        x = torch.cat([F.interpolate(small, scale_factor=2.0, mode="nearest"), F.relu(self.skip(image))], 1)
        return self.head(x)


class Attention(nn.Module):
    """One head of self-attention with layer norm and a learned position."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.query, self.key = nn.LayerNorm(12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.value, self.out = nn.Linear(12, 12), nn.Linear(12, 12)
        self.position = nn.Parameter(torch.randn(1, 7, 12) * 0.1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.norm(tokens + self.position)
        scores = torch.softmax(self.query(x) @ self.key(x).transpose(1, 2) / 12**0.5, -1)
        return tokens + self.out(scores @ self.value(x))


class NormAfter(nn.Module):
    """Sums in float behind normalisations, whose values layers on integers read as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.LayerNorm(12), nn.LayerNorm(12), nn.Linear(12, 5)
        self.wide, self.narrow = nn.Linear(12, 16), nn.Linear(16, 12)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.first(tokens)
        x = self.second(x + self.narrow(F.relu(self.wide(x))))
        return self.head(x) + x.mean(-1, keepdim=True)


class Denoiser(nn.Module):
    """The input less what a padded convolution finds in it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.sin(image) - self.second(F.relu(self.first(F.pad(image, (1, 1, 1, 1)))))


class MovedAlike(nn.Module):
    """Operators in float and layers on integers read a normalised value through two movements that are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv, self.head = nn.LayerNorm(12), nn.Conv1d(12, 8, 3, padding=1), nn.Linear(12, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.norm(tokens)
        along = x.transpose(1, 2).cumsum(1).mean(1, keepdim=True)
        return self.conv(x.transpose(1, 2)).mean(1, keepdim=True) + along + self.head(x).mean((1, 2), keepdim=True)


class Embedded(nn.Module):
    """Integer inputs: no gradient reaches them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.head = nn.Embedding(20, 12), nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.first(self.embed(tokens))).mean(1))


class ConstantBranch(nn.Module):
    """A layer that works on a learned constant."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(1, 12))
        self.on_prompt, self.on_input, self.head = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.on_input(features) + self.on_prompt(self.prompt)))


@dataclass(frozen=True)
class Small:
    """A tiny network with the shapes of its inputs, one sample each."""

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    vocabulary: int = 0
    static: bool = False

    def example(self, batch: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        if self.vocabulary:
            return tuple(torch.randint(0, self.vocabulary, (batch, *s), generator=generator) for s in self.shapes)
        return tuple(torch.randn((batch, *s), generator=generator) for s in self.shapes)


SMALL: dict[str, Small] = {
    "conv-norm-relu6": Small(ConvNormRelu6, (IMAGE,)),
    "depthwise": Small(Depthwise, (IMAGE,)),
    "residual": Small(Residual, (IMAGE,)),
    "concat": Small(Concat, (IMAGE,)),
    "split-shuffle": Small(SplitShuffle, (IMAGE,)),
    "pad-stride": Small(PadStride, (IMAGE,)),
    "pools": Small(Pools, (IMAGE,)),
    "mlp": Small(Mlp, ((12,),)),
    "token-mlp": Small(TokenMlp, ((7, 12),)),
    "grouped": Small(Grouped, (IMAGE,)),
    "upconv": Small(Upconv, (IMAGE,)),
    "conv1d": Small(Conv1d, ((4, 10),)),
    "activations": Small(Activations, (IMAGE,)),
    "gate": Small(Gate, (IMAGE,)),
    "two-inputs": Small(TwoInputs, (IMAGE, (12,))),
    "two-outputs": Small(TwoOutputs, (IMAGE,)),
    "layer-twice": Small(LayerTwice, (IMAGE,)),
    "shared-weight": Small(SharedWeight, (IMAGE,)),
    "shared-without-norm": Small(SharedWithoutNorm, ((12,),)),
    "norm-first": Small(NormFirst, (IMAGE,)),
    "norm-over-tokens": Small(NormOverTokens, ((7, 12),)),
    "input-to-end": Small(InputToEnd, (IMAGE,)),
    "upsample": Small(Upsample, (IMAGE,)),
    "attention": Small(Attention, ((7, 12),)),
    "norm-after": Small(NormAfter, ((7, 12),)),
    "denoiser": Small(Denoiser, (IMAGE,)),
    "moved-alike": Small(MovedAlike, ((7, 12),)),
    "embedded": Small(Embedded, ((7,),), vocabulary=20),
    "constant-branch": Small(ConstantBranch, ((12,),)),
    "residual-batch-1": Small(Residual, (IMAGE,), static=True),
    "split-shuffle-batch-1": Small(SplitShuffle, (IMAGE,), static=True),
    "token-mlp-batch-1": Small(TokenMlp, ((7, 12),), static=True),
}


@cache
def module(name: str) -> nn.Module:
    """The network with seeded weights and batch norms that have seen data."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        net = SMALL[name].make()
        for layer in net.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                assert layer.running_mean is not None and layer.running_var is not None
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.5, 2.0)
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, 0, 0.3)
    return net.eval()


@cache
def model(name: str) -> Model:
    """The network, loaded."""
    return load_anew(name)


def load_anew(name: str) -> Model:
    """The network, loaded once more."""
    torch.set_num_threads(1)
    small = SMALL[name]
    if small.static:
        return load(torch.export.export(module(name), small.example(1)))
    return load(module(name), example=small.example(2))


def arrays(name: str, count: int, seed: int = 1) -> Arrays:
    """Stacked inputs by name."""
    columns = SMALL[name].example(count, seed)
    return {spec.name: column.numpy() for spec, column in zip(model(name).inputs, columns, strict=True)}


@cache
def calibration(name: str) -> Calibration:
    return calibrate(model(name), arrays(name, 32))


SATURATES = platform.machine() in ("x86_64", "AMD64") and "vnni" not in worker.describe_cpu()["cpu_isa"]
"""Whether this machine's CPU adds pairs of u8 x s8 products in 16 bits (see `targets/x86-avx2.toml`)."""

HERE = "x86-avx2" if SATURATES else "x86-avx512"
"""The target that describes this machine."""


def needs_vnni(runtime: str) -> None:
    """Skips a test of kernels that this machine's CPU does not have."""
    if SATURATES and runtime != "litert":
        pytest.skip(f"without VNNI, {runtime} has other kernels, which no target of edgeq lists")


def runtime(name: str, target: str = "x86-avx512", **changes: object) -> Runtime:
    """A runtime of a target, with some of its fields changed."""
    found = next(r for r in load_target(target).runtimes if r.name == name)
    return found.model_copy(update=changes)


def away(target: str, folder: Path) -> str:
    """The file of a target that is the same, and that nothing is run for."""
    path = folder / f"{target}-away.toml"
    path.write_text(f'extends = "{target}"\nname = "{target}-away"\nexecution = "none"\n')
    return str(path)


def exact_here(by: Runtime) -> Runtime:
    """The runtime with tables whose files compute on this machine what was simulated: where the CPU saturates with
    weights of 8 bits they get 7, as in the target that describes it."""
    if not SATURATES or by.format in ("tflite", "executorch"):
        return by
    narrow = {"weight_bits": 7}
    kernels = [k.model_copy(update=narrow) if k.name == "w8a8" else k for k in by.kernels]
    return by.model_copy(update={"kernels": kernels})


def quantized(name: str, by: Runtime) -> Quantized:
    """The network with ranges and integer weights for a runtime."""
    return quantize_model(model(name), by, calibration(name))


@dataclass(frozen=True)
class Written:
    """An artefact on disk, with what it was made from."""

    model: Model
    quantized: Quantized
    exporter: Exporter
    path: Path

    def stored(self, path: Path | None = None) -> Stored:
        return self.exporter.read_back(self.quantized, path or self.path)


@cache
def exporter(name: str) -> Exporter:
    """One exporter for each network, so that its float model is converted once."""
    _parse_operators_once()
    folder = _scratch() / name
    folder.mkdir()
    return Exporter(model(name), folder)


@cache
def written(name: str, runtime_name: str, io: str = "float") -> Written:
    """The network quantized for a runtime of x86-avx512 and written."""
    found = quantized(name, exact_here(runtime(runtime_name, io=io)))
    folder = exporter(name).scratch / f"{runtime_name}-{io}"
    folder.mkdir(parents=True)
    return Written(model(name), found, exporter(name), exporter(name).write(found, folder)[0])


@cache
def _scratch() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="edgeq-tests-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


@cache
def _parse_operators_once() -> None:
    """PyTorch's exporter parses its whole library of operators for every model: half of the time that it takes."""
    ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]
