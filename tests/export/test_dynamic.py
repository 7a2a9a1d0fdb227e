"""Layers that round their input in every call: what each file holds, and what each runtime computes."""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import small_models as small
import torch
from torch import nn

from edgeq.calibration.calibrate import calibrate
from edgeq.calibration.calibration import Calibration
from edgeq.devices import Candidate, open_device
from edgeq.errors import UnsupportedError
from edgeq.export.artifact import Exporter
from edgeq.export.audit import AuditError, audit, confirm
from edgeq.frontends.load import load
from edgeq.lowering.choices import ladder
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.quantization.quantized import Quantized
from edgeq.quantization.simulate import simulate
from edgeq.registry.schema import Runtime

EXTRAS = {"onnxruntime": "onnxruntime", "openvino": "openvino", "litert": "litert_torch"}
RUNTIMES = list(EXTRAS)
KERNELS = {
    "onnxruntime": ("w8a8dyn", "w4a8dyn"),
    "openvino": ("w8a8dyn", "w4a8dyn", "w4g64a8dyn"),
    "litert": ("w8a8dyn", "w4a8dyn"),
}
CASES = [(name, kernel) for name, kernels in KERNELS.items() for kernel in kernels]
ROWS, INPUTS, OUTPUTS = 5, 192, 70


class One(nn.Module):
    def __init__(self, inputs: int = INPUTS, outputs: int = OUTPUTS) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Block(nn.Module):
    """Two layers that read one value, a layer behind a ReLU, one on rows of samples, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value = nn.Linear(128, 128), nn.Linear(128, 128)
        self.up, self.down = nn.Linear(128, 256), nn.Linear(256, 128)
        self.wave = nn.Conv1d(128, 64, 1)
        self.head = nn.Linear(64, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + torch.tanh(self.gate(x)) * self.value(x)
        x = x + self.down(torch.relu(self.up(x)))
        return self.head(torch.relu(self.wave(x.transpose(1, 2))).mean(2))


LAYERS = ("gate", "value", "up", "down", "head")


class Subject:
    def __init__(self, net: nn.Module, shape: tuple[int, ...], name: str) -> None:
        self.model: Model = load(torch.export.export(net.eval(), (samples(1, shape),)))
        self.input, self.shape = self.model.inputs[0].name, shape
        self.calibration: Calibration = calibrate(self.model, {self.input: samples(16, shape).numpy()})
        scratch = small._scratch() / f"dynamic-{name}"
        scratch.mkdir(parents=True)
        self.exporter = Exporter(self.model, scratch)

    def quantized(self, by: Runtime, **choices: str) -> Quantized:
        every = dict.fromkeys((group.name for group in self.model.groups), "float32") | choices
        return quantize_model(self.model, by, self.calibration, choices=every, estimator="min-max", correct_bias=False)

    def ran(self, by: Runtime, path: Path, x: torch.Tensor) -> np.ndarray:
        (found,) = open_device("local").outputs(Candidate(path, by.name), {self.input: x.numpy()})
        return found


def samples(count: int, shape: tuple[int, ...], seed: int = 1) -> torch.Tensor:
    """Of very different sizes, and rows of very different sizes in each: a scale for all of them would show."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *shape, generator=generator) + 0.3
    return x * 10 ** (2 * torch.rand(count, *shape[:-1], 1, generator=generator) - 1)


@cache
def subject(name: str) -> Subject:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Subject(One(), (ROWS, INPUTS), name) if name == "one" else Subject(Block(), (ROWS, 128), name)


def runtime(name: str) -> Runtime:
    pytest.importorskip(EXTRAS[name])
    importlib.import_module(EXTRAS[name])
    return small.runtime(name)


def by_hand(x: np.ndarray, name: str) -> np.ndarray:
    """One sample, [rows, inputs], rounded by numpy as the runtime is known to round."""
    if name == "openvino":  # 64 numbers at a time, around zero
        parts = x.reshape(-1, 64)
        step = np.abs(parts).max(1, keepdims=True) / np.float32(127)
        return (np.round(parts / step) * step).reshape(x.shape)
    parts = x.reshape(1, -1) if name == "onnxruntime" else x
    low, high = np.minimum(parts.min(1, keepdims=True), 0), np.maximum(parts.max(1, keepdims=True), 0)
    step = (high - low) / np.float32(255)
    zero = np.round(-low / step)
    return ((np.clip(np.round(parts / step) + zero, 0, 255) - zero) * step).reshape(x.shape)


@pytest.mark.parametrize(("name", "kernel"), CASES)
def test_the_runtime_rounds_as_numpy_does(name: str, kernel: str, tmp_path: Path) -> None:
    small.needs_vnni(name)
    """To a millionth of the largest output: float32 sums of products that are exact. A value half-way between two
    integers would be off by a thousandth, and none lies there."""
    made, by = subject("one"), runtime(name)
    planned = made.quantized(by, layer=kernel)
    assert not planned.assignment.weight_only and not planned.activations
    path = made.exporter.write(planned, tmp_path)[0]
    x = samples(6, made.shape, seed=5)
    real = planned.weights["layer"].real.astype(np.float64)
    bias = made.model.state["layer.bias"]
    expected = np.stack([by_hand(sample, name).astype(np.float64) @ real.T + bias for sample in x.numpy()])
    in_float = x.numpy().astype(np.float64) @ real.T + bias
    found, span = made.ran(by, path, x), np.abs(expected).max()
    assert np.abs(found - expected).max() < 1e-6 * span
    assert np.abs(in_float - expected).max() > 1e-3 * span  # the test sees what the input was rounded by
    alone = np.concatenate([simulate(made.model, planned, [sample[None]])[0].numpy() for sample in x])
    assert np.abs(found - alone).max() < 1e-6 * span
    if made.model.batchable:  # what is beside a sample has no part in its scale
        assert np.abs(simulate(made.model, planned, [x])[0].numpy() - alone).max() < 1e-6 * span


@pytest.mark.parametrize(("name", "kernel"), CASES)
def test_a_network_is_audited_and_runs_on_integers(name: str, kernel: str, tmp_path: Path) -> None:
    small.needs_vnni(name)
    made, by = subject("block"), runtime(name)
    chosen = dict.fromkeys(LAYERS, "w8a8dyn" if kernel == "w4g64a8dyn" else kernel) | {"down": kernel}
    planned = made.quantized(by, **chosen)
    assert set(planned.assignment.dynamic) == set(LAYERS)
    path = made.exporter.write(planned, tmp_path)[0]
    stored = made.exporter.read_back(planned, path)
    report = audit(made.model, planned, stored)
    assert stored.integer_groups == set(LAYERS)
    macs = {g.name: g.macs for g in made.model.groups}
    share = 100 * sum(macs[layer] for layer in LAYERS) / made.model.macs
    assert report.integer_mac_percent == pytest.approx(share) and share < 100
    assert set(LAYERS).isdisjoint(f.layer for f in report.float_operators)
    x = samples(4, made.shape, seed=5)
    rows = open_device("local").placement(Candidate(path, name), {made.input: x[:1].numpy()})
    assert confirm(made.model, planned, report, rows) == report
    if name == "onnxruntime":  # it says so, and makes one rounding for the two layers that read one value
        fused = [row.op for row in rows if row.integer]
        assert sorted(fused) == sorted(["MatMulIntegerToFloat"] * 2 + ["DynamicQuantizeMatMul"] * 3)
    expected = torch.cat([simulate(made.model, planned, [sample[None]])[0] for sample in x]).numpy()
    assert np.abs(made.ran(by, path, x) - expected).max() < 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize("kernel", ["w8a8dyn", "w4a8dyn"])
@pytest.mark.parametrize("name", RUNTIMES)
def test_beside_integers_and_weights_alone(name: str, kernel: str, tmp_path: Path) -> None:
    small.needs_vnni(name)
    made, by = subject("block"), runtime(name)
    planned = made.quantized(by, gate="w8", value=kernel, up="w8a8", down=kernel, wave="w8a8", head="w4")
    path = made.exporter.write(planned, tmp_path)[0]
    stored = made.exporter.read_back(planned, path)
    report = audit(made.model, planned, stored)
    assert stored.integer_groups & {*LAYERS, "wave"} == {"value", "up", "down", "wave"}
    x = samples(4, made.shape, seed=5)
    rows = open_device("local").placement(Candidate(path, name), {made.input: x[:1].numpy()})
    assert confirm(made.model, planned, report, rows) == report
    expected = torch.cat([simulate(made.model, planned, [sample[None]])[0] for sample in x]).numpy()
    assert np.abs(made.ran(by, path, x) - expected).max() < 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_audit_sees_one_integer_one_scale_and_one_bias(name: str, tmp_path: Path) -> None:
    made, by = subject("one"), runtime(name)
    planned = made.quantized(by, layer="w8a8dyn")
    stored = made.exporter.read_back(planned, made.exporter.write(planned, tmp_path)[0])
    audit(made.model, planned, stored)
    weight, bias = planned.weights["layer"], planned.biases["layer"].copy()
    integers, scale = weight.integers.copy(), weight.q.scale.copy()
    integers.flat[-1] += -1 if integers.flat[-1] > 0 else 1
    scale[-1] = np.nextafter(scale[-1], np.float32(1))
    bias[0] = np.nextafter(bias[0], np.float32(1))
    for other in (replace(weight, integers=integers), replace(weight, q=replace(weight.q, scale=scale))):
        with pytest.raises(AuditError, match="layer"):
            audit(made.model, replace(planned, weights={"layer": other}), stored)
    with pytest.raises(AuditError, match="bias"):
        audit(made.model, replace(planned, biases={"layer": bias}), stored)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_file_with_weights_alone_is_not_taken_for_one_that_rounds(name: str, tmp_path: Path) -> None:
    """As if a writer had forgotten what makes the runtime round."""
    made, by = subject("one"), runtime(name)
    forgotten = made.exporter.write(made.quantized(by, layer="w8"), tmp_path)[0]
    planned = made.quantized(by, layer="w8a8dyn")
    stored = made.exporter.read_back(planned, forgotten)
    assert not stored.integer_groups
    if np.array_equal(stored.weights["layer"].integers, planned.weights["layer"].integers):
        (told,) = audit(made.model, planned, stored).float_operators
        assert told.reason == "the exported file computes it in float"


@pytest.mark.parametrize(
    ("name", "kernel", "inputs", "outputs", "why"),
    [
        ("openvino", "w8a8dyn", 63, 8, "reads 63 numbers in a row, fewer than the 64 that would share a scale"),
        ("openvino", "w8a8dyn", 64, 1, "keeps a product with one output in float"),
        ("openvino", "w4g64a8dyn", 96, 8, "no multiple of 64"),
        ("litert", "w4a8dyn", 65, 8, "rows of 65 int4 weights end within a byte"),
    ],
)
def test_what_a_runtime_would_compute_otherwise_is_refused(
    name: str, kernel: str, inputs: int, outputs: int, why: str
) -> None:
    made, by = Subject(One(inputs, outputs), (2, inputs), f"{name}-{kernel}-{inputs}-{outputs}"), small.runtime(name)
    planned = made.quantized(by, layer=kernel)
    assert not planned.weights and why in planned.assignment.reasons["layer"]
    assert kernel not in ladder(made.model, by, made.calibration.histograms)["layer"]


@pytest.mark.parametrize("name", RUNTIMES)
def test_linear_layers_are_offered_it_and_convolutions_are_not(name: str) -> None:
    made = subject("block")
    offered = ladder(made.model, small.runtime(name), made.calibration.histograms)
    assert all(set(KERNELS[name]) - {"w4g64a8dyn"} <= set(offered[layer]) for layer in LAYERS)
    assert not any(choice.endswith("dyn") for choice in offered["wave"])
    assert all(choices[0] in ("w8a8", "a8", "float32") for choices in offered.values())  # it has to be asked for


def test_a_format_that_cannot_round_so_says_it(tmp_path: Path) -> None:
    made = subject("one")
    pytest.importorskip("openvino")
    for_openvino, for_onnx = (made.quantized(runtime(n), layer="w8a8dyn") for n in ("openvino", "onnxruntime"))
    with pytest.raises(UnsupportedError, match="no operator that rounds parts of a tensor"):
        made.exporter.write(replace(for_openvino, runtime=runtime("onnxruntime")), tmp_path)
    with pytest.raises(UnsupportedError, match="one number of values that share a scale"):
        made.exporter.write(replace(for_onnx, runtime=runtime("openvino")), tmp_path)
