"""Files for TensorRT, which nothing here runs: that they hold its documented rules, and what they compute by the
definitions of their operators, as ONNX Runtime has them without any of its optimizations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import small_models as small
import torch
from onnx import TensorProto
from torch import nn
from torch.nn import functional as F

from edgeq.calibration.calibrate import calibrate
from edgeq.calibration.calibration import Calibration
from edgeq.export.artifact import Exporter
from edgeq.export.audit import AuditError, audit
from edgeq.export.conformance import ConformanceError
from edgeq.frontends.load import load
from edgeq.lowering.choices import ladder
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.quantization.quantized import Quantized
from edgeq.quantization.simulate import simulate
from edgeq.registry.load import load_target
from edgeq.runtimes import NOT_RUN

SHAPE = (3, 8, 8)
(RUNTIME,) = load_target("nvidia-gpu").runtimes


class Tokens(nn.Module):
    """A residual block on integers; linear layers on three dimensions and on two, with even and odd outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.mix, self.few = nn.Linear(256, 128), nn.Linear(128, 8)
        self.wide, self.head = nn.Linear(64, 64), nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.up(F.relu(self.inner(x) + x)))
        x = F.relu(self.few(F.relu(self.mix(x.flatten(2)))))
        return self.head(F.relu(self.wide(x.flatten(1))))


PLANS = {
    "8 bits": {},
    "4 and 8 bits": {"wide": "w4g64", "head": "w4g64"},
    "4 bits behind float": {"head": "w4g64", "inner": "float32", "wide": "float32"},
    "float between": {"inner": "float32", "head": "w4g64"},
}


@dataclass(frozen=True)
class Subject:
    net: nn.Module
    model: Model
    calibration: Calibration
    exporter: Exporter


@cache
def subject() -> Subject:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = Tokens().eval()
    model = load(torch.export.export(net, (samples(1, 0),)))
    calibration = calibrate(model, {model.inputs[0].name: samples(16, 1).numpy()})
    scratch = small._scratch() / "tensorrt"
    scratch.mkdir(parents=True)
    return Subject(net, model, calibration, Exporter(model, scratch))


def samples(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def planned(choices: dict[str, str]) -> Quantized:
    made = subject()
    return quantize_model(made.model, RUNTIME, made.calibration, choices=choices)


def by_definition(path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What a file computes, operator by operator: with optimizations ONNX Runtime rounds inputs of int4 products."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [np.asarray(answer) for answer in session.run(None, inputs)]


@pytest.mark.parametrize("name", small.SMALL)
def test_what_is_written_holds_the_rules_and_computes_what_was_simulated(name: str, tmp_path: Path) -> None:
    model, quantized = small.model(name), small.quantized(name, RUNTIME)
    exporter = small.exporter(name)
    (path,) = exporter.write(quantized, tmp_path)
    found = exporter.audit(quantized, path).conformance
    assert found is not None and found.breaches == [] and found.rules == len(NOT_RUN["tensorrt"].rules)
    inputs = small.arrays(name, 1, seed=9)
    expected = simulate(model, quantized, [torch.from_numpy(inputs[s.name]) for s in model.inputs])
    for ours, theirs in zip(expected, by_definition(path, inputs), strict=True):
        assert np.abs(ours.numpy() - theirs).max() <= 5e-3 * np.abs(ours.numpy()).max()


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_of_four_and_eight_bits(plan: str, tmp_path: Path) -> None:
    made, choices = subject(), PLANS[plan]
    quantized = planned(choices)
    (path,) = made.exporter.write(quantized, tmp_path)
    report = made.exporter.audit(quantized, path)
    assert report.conformance is not None and report.conformance.refusals == []
    four = {layer for layer, choice in choices.items() if choice.startswith("w4")}
    assert set(quantized.assignment.weight_only) == four
    model = onnx.load(path)
    kinds = {held.name: held.data_type for held in model.graph.initializer}
    assert {name.split(".")[0] for name, kind in kinds.items() if kind == TensorProto.INT4} == four
    answers = [by_definition(path, {made.model.inputs[0].name: x[None].numpy()})[0] for x in samples(8, 2)]
    expected = torch.cat([simulate(made.model, quantized, [x[None]])[0] for x in samples(8, 2)]).numpy()
    exact = made.net(samples(8, 2)).detach().numpy()
    span = np.abs(expected).max()
    assert np.abs(np.concatenate(answers) - expected).max() < 1e-3 * span
    assert np.abs(exact - expected).max() > 2e-3 * span  # the test sees what was rounded


def test_products_of_more_dimensions_have_no_blocks() -> None:
    assignment = planned({"mix": "w4g64"}).assignment
    assert "two dimensions" in assignment.reasons["mix"] and "mix" not in assignment.weight_only


@pytest.mark.parametrize(("layer", "kernel"), [("wide", "w4g64"), ("head", "w4g64")])
def test_blocks_are_those_of_a_hand(layer: str, kernel: str, tmp_path: Path) -> None:
    """[outputs, inputs] or turned, packed two to a byte: each block has the scale of its largest weight."""
    made = subject()
    quantized = quantize_model(
        made.model, RUNTIME, made.calibration, choices={layer: kernel}, correct_bias=False, estimator="min-max"
    )
    (path,) = made.exporter.write(quantized, tmp_path)
    held = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}
    integers, scale = (held[f"{layer}.weight_quantized{end}"].astype(np.float32) for end in ("", "_scale"))
    weight = made.net.get_parameter(f"{layer}.weight").detach().numpy()
    if integers.shape != weight.shape or scale.shape[0] != weight.shape[0]:
        integers, scale = integers.T, scale.T
    blocks = weight.reshape(len(weight), -1, int(kernel[3:]))
    assert scale.shape == blocks.shape[:2] and len(np.unique(scale)) > len(scale) / 2
    by_hand = np.round(blocks / scale[..., None]).clip(-8, 7).reshape(weight.shape)
    assert np.array_equal(integers, by_hand)
    assert (np.abs(blocks).max(2) <= 8 * scale * (1 + 1e-6)).all() and (np.abs(blocks).max(2) >= 6.9 * scale).all()


def test_blocks_that_do_not_divide_a_layer_are_not_offered() -> None:
    made = subject()
    offered = ladder(made.model, RUNTIME, made.calibration.histograms)
    for layer in ("wide", "head"):
        assert "w4g64" in offered[layer] and "w4g128" not in offered[layer]
    assert not {"w4g64", "w4g128"} & {*offered["mix"], *offered["stem"]}


def test_the_audit_sees_one_integer_and_one_scale_of_a_block(tmp_path: Path) -> None:
    made, quantized = subject(), planned(PLANS["4 and 8 bits"])
    (path,) = made.exporter.write(quantized, tmp_path)
    stored = made.exporter.read_back(quantized, path)
    audit(made.model, quantized, stored)
    for layer in ("wide", "head"):
        weight = quantized.weights[layer]
        integers, scale = weight.integers.copy(), weight.q.scale.copy()
        integers.flat[-1] = -integers.flat[-1] or 1
        scale[-1] = np.nextafter(scale[-1], np.float32(1))
        for other in (replace(weight, integers=integers), replace(weight, q=replace(weight.q, scale=scale))):
            with pytest.raises(AuditError, match=layer):
                audit(made.model, replace(quantized, weights=quantized.weights | {layer: other}), stored)


def test_a_table_that_breaks_a_rule_builds_nothing(tmp_path: Path) -> None:
    """A target of one's own for TensorRT, with kernels that it does not have."""
    made = subject()
    kernels = [k.model_copy(update={"activation_symmetry": "asymmetric"}) for k in RUNTIME.kernels]
    quantized = quantize_model(made.model, RUNTIME.model_copy(update={"kernels": kernels}), made.calibration)
    (path,) = made.exporter.write(quantized, tmp_path)
    with pytest.raises(ConformanceError, match="zero point") as caught:
        made.exporter.audit(quantized, path)
    assert caught.value.exit_code == 4 and caught.value.where and "NvInfer.h" in caught.value.remedy
