"""A trained network, a target with kernels of few bits, and plans that choose them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import small_models as small
import torch
import trained_model

from edgeq.calibration.calibrate import calibrate
from edgeq.frontends.load import load
from edgeq.lowering.choices import ladder
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.plans.describe import describe
from edgeq.plans.plan import Plan
from edgeq.quantization.quantized import Quantized
from edgeq.registry.load import load_target
from edgeq.registry.schema import Runtime

_KERNEL = """
[[runtimes.kernels]]
ops = ["conv1d", "conv2d", "depthwise_conv2d", "linear"]
activations = "{activations}"
weights = "{weights}"
{more}
bias = "float32"
accumulator = "float32"
source = "for tests: computed in float on rounded values"
"""

_GROUPS = """
weight_granularity = "group"
weight_group = 4
"""

_TARGET = f"""
extends = "x86-avx2"
schema = 1
name = "few-bits"
summary = "ONNX with few bits: for accuracy, not for speed"
execution = "local"

[[runtimes]]
name = "onnxruntime"
{_KERNEL.format(activations="uint8", weights="int8", more="weight_bits = 7")}
{_KERNEL.format(activations="uint8", weights="int4", more="")}
{_KERNEL.format(activations="uint4", weights="int4", more="")}
{_KERNEL.format(activations="uint4", weights="int2", more="")}
{_KERNEL.format(activations="float32", weights="int4", more=_GROUPS)}

[[runtimes.kernels]]
ops = ["add", "relu", "relu6", "mean", "reshape"]
activations = "uint8"
accumulator = "float32"
source = "for tests: as x86-avx2"
"""


@cache
def folder() -> Path:
    """With `model.pt2`, `calib.npz`, `eval.npz`, `train.npz` and `few-bits.toml`."""
    made = trained_model.make(small._scratch(), width=8)
    (made / "few-bits.toml").write_text(_TARGET)
    data = np.load(made / "eval.npz")
    rng = np.random.default_rng(1)
    images = np.concatenate([data["image"] + rng.normal(0, 0.1, data["image"].shape) for _ in range(4)])
    np.savez(made / "train.npz", image=images.astype(np.float32), labels=np.tile(data["labels"], 4))
    return made


def noisy(inputs: tuple[torch.Tensor, ...], generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """An augmentation."""
    return tuple(x + 0.1 * torch.randn(x.shape, generator=generator) for x in inputs)


def runtime() -> Runtime:
    target = load_target(str(folder() / "few-bits.toml"))
    return next(one for one in target.runtimes if one.name == "onnxruntime")


@cache
def model() -> Model:
    return load(folder() / "model.pt2")


@cache
def quantized(inner: str, method: str = "nearest") -> Quantized:
    """All layers but the first and the last with this choice, rounded by this method."""
    net, by = model(), runtime()
    calibration = calibrate(net, dict(np.load(folder() / "calib.npz")))
    offered = ladder(net, by, calibration.histograms, named={inner})
    layers = [group.name for group in net.groups if group.weight][1:-1]
    choices = {n: inner if n in layers and inner in every else every[0] for n, every in offered.items()}
    methods = {name: method for name, choice in choices.items() if choice == inner}
    return quantize_model(net, by, calibration, choices=choices, methods=methods)


def plan(inner: str, method: str = "nearest") -> Plan:
    start = quantized(inner, method)
    return describe(model(), start, target="few-bits", data_hash="", precision="float32", effort="fast")
