"""Weights stored as integers and computed with in float: what each file holds, what each runtime makes of it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models as small
import torch
from torch import nn
from torch.nn import functional as F

from edgeq.calibration.calibrate import calibrate
from edgeq.calibration.calibration import Calibration
from edgeq.devices import Candidate, open_device
from edgeq.export.artifact import Exporter
from edgeq.export.audit import AuditError, audit, confirm
from edgeq.frontends.load import load
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.quantization.quantized import Quantized
from edgeq.quantization.simulate import simulate
from edgeq.registry.schema import Runtime

EXTRAS = {"onnxruntime": "onnxruntime", "openvino": "openvino", "litert": "litert_torch"}
RUNTIMES = list(EXTRAS)
SHAPE = (3, 9, 9)

KERNELS = {
    "onnxruntime": ("w8", "w4", "w4g32", "w4asym", "w4g32asym", "w2", "w2g32"),
    "openvino": ("w8", "w4", "w4g32", "w4asym", "w4g32asym", "w2", "w2g32"),
    "litert": ("w8", "w4", "w2"),
}
CASES = [(name, kernel) for name, kernels in KERNELS.items() for kernel in kernels]


class Chain(nn.Module):
    """Layers of every kind, some with odd numbers of weights, some with a multiple of 32 for each output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.depth = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.point = nn.Conv2d(32, 33, 1)
        self.expand = nn.Conv2d(33, 64, 1)
        self.up = nn.ConvTranspose2d(64, 7, 2, stride=2)
        self.wave = nn.Conv1d(7, 64, 5)
        self.tokens = nn.Linear(320, 32)
        self.head = nn.Linear(64, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.depth(F.relu(self.stem(x))))
        x = F.relu(self.expand(F.relu(self.point(x))))
        x = F.relu(self.wave(F.relu(self.up(x)).flatten(2)))
        return self.head(F.relu(self.tokens(x)).mean(2))


GROUPED = ("point", "tokens", "head")
"""Layers that have a multiple of 32 weights for each output."""

MIXED = {
    "between integers": {
        "stem": "w8a8", "depth": "w8a8", "point": "w8", "expand": "w8a8", "up": "w4", "wave": "w4a8", "tokens": "w8",
        "head": "w8a8",
    },
    "with zero points between integers": {
        "stem": "w8a8", "depth": "w8a8", "point": "w4asym", "expand": "w8a8", "up": "w4asym", "wave": "w4a8",
        "tokens": "w4g32asym", "head": "w8a8",
    },
    "between floats": {
        "stem": "w8a8", "depth": "w4", "point": "w8", "expand": "w4a8", "up": "w8", "wave": "float32", "tokens": "w4",
        "head": "w8",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    net: nn.Module
    model: Model
    calibration: Calibration
    exporter: Exporter

    @property
    def input(self) -> str:
        return self.model.inputs[0].name


@cache
def subject() -> Subject:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = Chain().eval()
    model = load(torch.export.export(net, (samples(1, 0),)))
    calibration = calibrate(model, {model.inputs[0].name: samples(16, 1).numpy()})
    scratch = small._scratch() / "weight-only"
    scratch.mkdir(parents=True)
    return Subject(net, model, calibration, Exporter(model, scratch))


def samples(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def runtime(name: str) -> Runtime:
    pytest.importorskip(EXTRAS[name])
    importlib.import_module(EXTRAS[name])
    return small.runtime(name, "arm-neon" if name == "litert" else "x86-avx512")


def quantized(name: str, choices: dict[str, str], *, correct_bias: bool = True) -> Quantized:
    made = subject()
    everything = dict.fromkeys((group.name for group in made.model.groups), "float32") | choices
    return quantize_model(
        made.model, runtime(name), made.calibration, choices=everything, correct_bias=correct_bias, estimator="min-max"
    )


def written(planned: Quantized, folder: Path) -> Path:
    return subject().exporter.write(planned, folder)[0]


def outputs(name: str, path: Path) -> np.ndarray:
    (found,) = open_device("local").outputs(Candidate(path, name), {subject().input: samples(4, 5).numpy()})
    return found


def rounded_by_hand(weight: torch.Tensor, kernel: str, axis: int, *, narrow: bool) -> torch.Tensor:
    """Round to nearest by numpy, one scale a channel or for each 32 weights in a row of it; with a zero point, the span
    from the smallest weight to the largest is cut into equal steps."""
    largest, part = 2 ** (int(kernel[1]) - 1) - 1, np.ones(1)
    rows = np.moveaxis(weight.detach().numpy().astype(np.float64), axis, 0)
    shape = rows.shape
    rows = rows.reshape(-1, 32) if "g32" in kernel else rows.reshape(shape[0], -1)
    if kernel.endswith("asym"):
        low, high = (
            end(np.zeros(len(rows)), edge) for end, edge in ((np.minimum, rows.min(1)), (np.maximum, rows.max(1)))
        )
        step = ((high - low) / 15).astype(np.float32)[:, None]
        zero = np.round(-low[:, None] / step)
        integers = np.clip(np.round(rows.astype(np.float32) / step) + zero, 0, 15)
        real = (integers - zero) * step
        return torch.from_numpy(np.moveaxis(real.reshape(shape), 0, axis).astype(np.float32))
    lowest = largest if narrow else largest + 1
    whole = np.maximum(rows.max(1) / largest, -rows.min(1) / lowest)
    if kernel.startswith(
        "w2"
    ):  # four levels: of some parts of the largest weight, the one with the least squared error
        parts = [
            sum((r - part * w * np.clip(np.round(r / (part * w)), -lowest, largest)) ** 2 for r in rows.T)
            for part, w in ((0.95**step, whole) for step in range(40))
        ]
        part = 0.95 ** np.argmin(parts, axis=0)
    scale = (part * whole).astype(np.float32)[:, None]
    integers = np.clip(np.round(rows.astype(np.float32) / scale), -lowest, largest)
    return torch.from_numpy(np.moveaxis((integers * scale).reshape(shape), 0, axis).astype(np.float32))


@pytest.mark.parametrize(("name", "kernel"), CASES)
def test_the_runtime_computes_in_float_with_rounded_weights(name: str, kernel: str, tmp_path: Path) -> None:
    """Beside PyTorch with weights that were rounded here: an activation rounded to 8 bits would show at once."""
    made, by = subject(), runtime(name)
    layers = GROUPED if "g32" in kernel else [layer for layer, _ in made.net.named_children()]
    planned = quantized(name, dict.fromkeys(layers, kernel), correct_bias=False)
    assert set(planned.assignment.weight_only) == set(layers) and not planned.assignment.kernels
    path = written(planned, tmp_path)
    bits = int(kernel[1])
    net = Chain()
    net.load_state_dict(made.net.state_dict())
    with torch.no_grad():
        for layer, module in net.named_children():
            found = by.kernel("conv2d", kernel)
            assert found is not None
            if layer in layers:
                axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0
                module.weight.copy_(rounded_by_hand(module.weight, kernel, axis, narrow=found.weight_narrow))
        expected = net(samples(4, 5)).numpy()
        original = made.net(samples(4, 5)).numpy()
    span = np.abs(expected).max()
    assert np.abs(outputs(name, path) - expected).max() < 2e-6 * span
    assert np.abs(original - expected).max() > 1e-3 * span  # the test sees what the weights were rounded by
    stored = made.exporter.read_back(planned, path)
    assert not stored.integer_groups
    dtype = f"uint{bits}" if kernel.endswith("asym") else f"int{bits}"
    assert {layer: one.dtype for layer, one in stored.weights.items()} == dict.fromkeys(layers, dtype)
    report = audit(made.model, planned, stored)
    assert report.integer_mac_percent == 0 and report.tensors_checked == 2 * len(layers)
    reasons = {f.layer: f.reason for f in report.float_operators}
    assert all(f"{dtype} weights, computed in float" in reasons[layer] for layer in layers)


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_file_holds_a_quarter_or_an_eighth(name: str, tmp_path: Path) -> None:
    made = subject()
    layers = [layer for layer, _ in made.net.named_children()]
    numbers = sum(made.model.state[g.weight].size for g in made.model.groups if g.weight)

    def content(files: list[Path]) -> int:
        """Bytes of numbers, without the names and operators around them."""
        path = files[0]
        if path.suffix == ".onnx":
            return sum(len(i.raw_data) for i in onnx.load(path).graph.initializer)
        if path.suffix == ".xml":
            return path.with_suffix(".bin").stat().st_size
        return path.stat().st_size

    whole = content(made.exporter.float_model(runtime(name).format))
    for kernel, share in (("w8", 3 / 4), ("w4", 7 / 8)):
        folder = tmp_path / kernel
        folder.mkdir()
        found = content(made.exporter.write(quantized(name, dict.fromkeys(layers, kernel)), folder))
        assert whole - found == pytest.approx(share * 4 * numbers, rel=0.1)


@pytest.mark.parametrize("plan", MIXED)
@pytest.mark.parametrize("name", RUNTIMES)
def test_integers_beside_weights_alone_and_floats(name: str, plan: str, tmp_path: Path) -> None:
    made, choices = subject(), MIXED[plan]
    if not {c for c in choices.values() if not c.endswith("a8")} <= {*KERNELS[name], "float32"}:
        pytest.skip("its files hold no zero points of weights")
    planned = quantized(name, choices)
    path = written(planned, tmp_path)
    by_kind = {kind: {g for g, c in choices.items() if c in names} for kind, names in
               (("integer", ("w8a8", "w4a8")), ("alone", ("w8", "w4", "w4asym", "w4g32asym")))}  # fmt: skip
    stored = made.exporter.read_back(planned, path)
    assert stored.integer_groups & set(choices) == by_kind["integer"]
    assert set(stored.weights) == by_kind["integer"] | by_kind["alone"]
    report = audit(made.model, planned, stored)
    macs = {g.name: g.macs for g in made.model.groups}
    assert report.integer_mac_percent == pytest.approx(
        100 * sum(macs[g] for g in by_kind["integer"]) / sum(macs.values()), abs=0.01
    )
    # simulated on the same integers and ranges; where activations are rounded, now and then to the other side
    expected = torch.cat([simulate(made.model, planned, [x[None]])[0] for x in samples(4, 5)]).numpy()
    assert np.abs(outputs(name, path) - expected).max() < 5e-3 * np.abs(expected).max()
    # what is stored as integers is float to the runtime, also between layers that are not
    candidate = Candidate(path, name)
    placements = open_device("local").placement(candidate, {made.input: samples(1, 5).numpy()})
    assert confirm(made.model, planned, report, placements) == report
    computing = {"Conv", "FusedConv", "ConvTranspose", "Gemm", "MatMul", "QLinearConv", "QGemm"}
    computing |= {"Convolution", "Deconvolution", "FullyConnected"}
    computing |= {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED"}
    ran = [p.integer for p in placements if p.op in computing]
    assert ran.count(True) == len(by_kind["integer"]) and ran.count(False) == len(choices) - len(by_kind["integer"])


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_audit_sees_one_integer_and_one_scale(name: str, tmp_path: Path) -> None:
    made = subject()
    few = "w4" if name == "litert" else "w4asym"
    planned = quantized(name, {"tokens": few, "up": "w8", "depth": "w8"})
    stored = made.exporter.read_back(planned, written(planned, tmp_path))
    audit(made.model, planned, stored)
    weight = planned.weights["tokens"]
    points = weight.q.zero_point.copy()
    points[-1] += 1
    shifted = replace(weight, q=replace(weight.q, zero_point=points))
    with pytest.raises(AuditError, match=r"tokens: .*zero points"):
        audit(made.model, replace(planned, weights=planned.weights | {"tokens": shifted}), stored)
    for layer in ("tokens", "up", "depth"):
        weight = planned.weights[layer]
        integers = weight.integers.copy()
        last = int(integers.flat[-1])
        integers.flat[-1] = last + 1 if last < 1 else last - 1
        scale = weight.q.scale.copy()
        scale[-1] = np.nextafter(scale[-1], np.float32(1))
        for other in (replace(weight, integers=integers), replace(weight, q=replace(weight.q, scale=scale))):
            with pytest.raises(AuditError, match=layer):
                audit(made.model, replace(planned, weights=planned.weights | {layer: other}), stored)


def test_litert_reads_no_integer_weight_beside_a_float_input(tmp_path: Path) -> None:
    """It would round the input to 8 bits in every call."""
    planned = quantized("litert", dict.fromkeys(("stem", "up", "tokens", "head"), "w8"))
    from edgeq.export.tflite_graph import Graph

    graph = Graph(written(planned, tmp_path).read_bytes())
    read = [(graph.dtype(int(op.inputs[0])), graph.dtype(int(op.inputs[1]))) for op in graph.operators
            if graph.kind(op) in ("CONV_2D", "FULLY_CONNECTED", "DEPTHWISE_CONV_2D")]  # fmt: skip
    assert len(read) == 7 and set(read) == {("float32", "float32")}


def test_groups_and_zero_points_have_no_place_in_a_tflite_file(tmp_path: Path) -> None:
    from edgeq.errors import UnsupportedError

    for kernel, what in (("w4g32", "groups of 32"), ("w4asym", "no asymmetric uint4 weights")):
        planned = quantized("onnxruntime", {"head": kernel})
        with pytest.raises(UnsupportedError, match=what):
            written(replace(planned, runtime=runtime("litert")), tmp_path)
