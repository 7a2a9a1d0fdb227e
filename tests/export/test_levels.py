"""Weights whose levels are not evenly spaced: what each file holds, and that each runtime computes with them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import small_models as small
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F

from edgeq.calibration.calibrate import calibrate
from edgeq.calibration.calibration import Calibration
from edgeq.devices import Candidate, open_device
from edgeq.errors import UnsupportedError
from edgeq.export.artifact import Exporter
from edgeq.export.audit import AuditError, audit, confirm
from edgeq.frontends.load import load
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.numerics.levels import count_of
from edgeq.quantization.quantized import Quantized
from edgeq.registry.schema import Kernel, Runtime

KERNELS = ("w4codebook", "w2codebook", "w4pow2")
RUNTIMES = ("onnxruntime", "openvino")


class Chain(nn.Module):
    """Layers of every kind, some with odd numbers of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.depth = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.parts = nn.Conv2d(12, 20, 1, groups=2)
        self.up = nn.ConvTranspose2d(20, 7, 2, stride=2)
        self.wave = nn.Conv1d(7, 16, 5)
        self.tokens = nn.Linear(320, 32)
        self.head = nn.Linear(16, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.parts(F.relu(self.depth(F.relu(self.stem(x))))))
        x = F.relu(self.wave(F.relu(self.up(x)).flatten(2)))
        return self.head(F.relu(self.tokens(x)).mean(2))


@dataclass(frozen=True)
class Subject:
    net: nn.Module
    model: Model
    calibration: Calibration
    exporter: Exporter

    @property
    def layers(self) -> list[str]:
        return [layer for layer, _ in self.net.named_children()]


@cache
def subject() -> Subject:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = Chain().eval()
    model = load(torch.export.export(net, (samples(1, 0),)))
    scratch = small._scratch() / "levels"
    scratch.mkdir(parents=True)
    calibration = calibrate(model, {model.inputs[0].name: samples(16, 1).numpy()})
    return Subject(net, model, calibration, Exporter(model, scratch))


def samples(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 3, 9, 9, generator=torch.Generator().manual_seed(seed))


def runtime(name: str) -> Runtime:
    """With a kernel for powers of two, which no shipped target has: they take the bytes of a codebook and lose more."""
    if name == "openvino":
        pytest.importorskip("openvino")
        importlib.import_module("openvino")
    found = small.runtime(name)
    like = found.kernel("conv2d", "w4codebook")
    assert like is not None
    powers = Kernel.model_validate(like.model_dump() | {"weight_levels": "pow2"})
    return found.model_copy(update={"kernels": [*found.kernels, powers]})


def quantized(name: str, choices: dict[str, str]) -> Quantized:
    made = subject()
    everything = dict.fromkeys((group.name for group in made.model.groups), "float32") | choices
    return quantize_model(made.model, runtime(name), made.calibration, choices=everything, correct_bias=False)


def outputs(name: str, path: Path) -> np.ndarray:
    (given,) = subject().model.inputs
    (found,) = open_device("local").outputs(Candidate(path, name), {given.name: samples(4, 5).numpy()})
    return found


def expanded(planned: Quantized) -> np.ndarray:
    """What PyTorch gives with the weights that levels, places and scales stand for, multiplied out here."""
    net = Chain()
    net.load_state_dict(subject().net.state_dict())
    with torch.no_grad():
        for layer, module in net.named_children():
            weight = planned.weights[layer]
            assert weight.levels is not None
            axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0
            scale = weight.q.scale.reshape([-1 if d == axis else 1 for d in range(weight.integers.ndim)])
            module.weight.copy_(torch.from_numpy(weight.levels[weight.integers] * scale))
        answer: np.ndarray = net(samples(4, 5)).numpy()
    return answer


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", RUNTIMES)
def test_the_runtime_computes_in_float_with_the_expanded_weights(name: str, kernel: str, tmp_path: Path) -> None:
    made = subject()
    planned = quantized(name, dict.fromkeys(made.layers, kernel))
    assert set(planned.assignment.weight_only) == set(made.layers) and not planned.assignment.kernels
    path = made.exporter.write(planned, tmp_path)[0]
    expected = expanded(planned)
    assert np.abs(outputs(name, path) - expected).max() < 2e-6 * np.abs(expected).max()
    original = made.net(samples(4, 5)).detach().numpy()
    assert np.abs(original - expected).max() > 1e-3 * np.abs(expected).max()
    stored = made.exporter.read_back(planned, path)
    report = audit(made.model, planned, stored)
    assert {one.dtype for one in stored.weights.values()} == {f"uint{kernel[1]}"} and not stored.integer_groups
    assert report.tensors_checked == 2 * len(made.layers) and report.integer_mac_percent == 0
    counted = [
        -(-w.integers.size * int(kernel[1]) // 8) + 4 * (count_of(w.q.scheme) + 2 * w.q.scale.size)
        for w in planned.weights.values()
    ]
    assert report.bytes_checked == sum(counted)
    placements = open_device("local").placement(
        Candidate(path, name), {made.model.inputs[0].name: samples(1, 5).numpy()}
    )
    assert confirm(made.model, planned, report, placements) == report
    reasons = {f.layer: f.reason for f in report.float_operators}
    assert all(f"{name} expands them when it loads the file" in reasons[layer] for layer in made.layers)


def content(path: Path) -> int:
    """Bytes of numbers, without the names and operators around them."""
    if path.suffix == ".onnx":
        return sum(len(i.raw_data) for i in onnx.load(path).graph.initializer)
    return path.with_suffix(".bin").stat().st_size


@pytest.mark.parametrize(("kernel", "bits"), [("w4codebook", 4), ("w2codebook", 2)])
@pytest.mark.parametrize("name", RUNTIMES)
def test_the_file_holds_places_levels_and_scales(name: str, kernel: str, bits: int, tmp_path: Path) -> None:
    made = subject()
    whole = content(made.exporter.float_model(runtime(name).format)[0])
    planned = quantized(name, dict.fromkeys(made.layers, kernel))
    found = content(made.exporter.write(planned, tmp_path)[0])
    numbers, channels = (
        sum(sizes) for sizes in zip(*((w.integers.size, w.q.scale.size) for w in planned.weights.values()), strict=True)
    )
    saved = 4 * numbers - numbers * bits / 8 - 4 * channels - 4 * 2**bits * len(made.layers)
    assert whole - found == pytest.approx(saved, abs=400)  # shapes, axes and what is left over of a byte


@pytest.mark.parametrize("name", RUNTIMES)
def test_beside_layers_on_integers(name: str, tmp_path: Path) -> None:
    small.needs_vnni(name)
    made = subject()
    choices = {
        "stem": "w8a8",
        "depth": "w8a8",
        "parts": "w4codebook",
        "up": "w2codebook",
        "tokens": "w4codebook",
        "head": "w8a8",
    }
    planned = quantized(name, choices)
    path = made.exporter.write(planned, tmp_path)[0]
    stored = made.exporter.read_back(planned, path)
    assert {layer for layer, one in stored.weights.items() if one.levels is not None} == {"parts", "up", "tokens"}
    report = audit(made.model, planned, stored)
    placements = open_device("local").placement(
        Candidate(path, name), {made.model.inputs[0].name: samples(1, 5).numpy()}
    )
    assert confirm(made.model, planned, report, placements) == report
    from edgeq.quantization.simulate import simulate

    expected = torch.cat([simulate(made.model, planned, [x[None]])[0] for x in samples(4, 5)]).numpy()
    assert np.abs(outputs(name, path) - expected).max() < 5e-3 * np.abs(expected).max()


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_audit_sees_one_level_one_place_and_one_scale(name: str, tmp_path: Path) -> None:
    made = subject()
    planned = quantized(name, {"tokens": "w4codebook", "depth": "w2codebook"})
    stored = made.exporter.read_back(planned, made.exporter.write(planned, tmp_path)[0])
    audit(made.model, planned, stored)
    for layer, weight in planned.weights.items():
        assert weight.levels is not None
        integers, scale, levels = weight.integers.copy(), weight.q.scale.copy(), weight.levels.copy()
        integers.flat[-1] ^= 1
        scale[-1] = np.nextafter(scale[-1], np.float32(1))
        levels[-1] = np.nextafter(levels[-1], np.float32(9))
        others = (
            (replace(weight, integers=integers), "weights"),
            (replace(weight, levels=levels), "levels"),
            (replace(weight, levels=None), "levels"),
            (replace(weight, q=replace(weight.q, scale=scale)), "scales"),
        )
        for other, what in others:
            with pytest.raises(AuditError, match=f"{layer}: .*{what}"):
                audit(made.model, replace(planned, weights=planned.weights | {layer: other}), stored)


def damaged(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    model = onnx.load(path)
    (tensor,) = (i for i in model.graph.initializer if i.name == name)
    changed = change(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(onnx.helper.make_tensor(name, tensor.data_type, changed.shape, changed.reshape(-1)))
    onnx.save(model, path)


def _last(values: np.ndarray, value: float) -> np.ndarray:
    values.reshape(-1)[-1] = value
    return values


def test_a_broken_codebook_in_the_file_is_found(tmp_path: Path) -> None:
    """Also where a place is beyond the last level, of which powers of two have one fewer than there are places."""
    made = subject()
    planned = quantized("onnxruntime", dict.fromkeys(made.layers, "w4pow2"))
    for name, change, what in (
        ("tokens.weight_quantized_levels", lambda v: _last(v, 1.25), "levels"),
        ("tokens.weight_quantized_levels", lambda v: v[::-1], "levels"),
        ("tokens.weight_quantized", lambda v: _last(v, 15), "weights"),
    ):
        path = made.exporter.write(planned, tmp_path)[0]
        damaged(path, name, change)
        with pytest.raises(AuditError, match=f"tokens: .*{what}"):
            audit(made.model, planned, made.exporter.read_back(planned, path))


def test_onnx_runtime_expands_all_of_it_at_load(tmp_path: Path) -> None:
    """Its optimized graph has neither places nor codebooks: nothing is gathered in a call."""
    made = subject()
    path = made.exporter.write(quantized("onnxruntime", dict.fromkeys(made.layers, "w2codebook")), tmp_path)[0]
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(path, options)
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    assert not {"Gather", "Cast"} & {node.op_type for node in graph.node}
    held = sum(np.prod(i.dims) for i in graph.initializer if i.data_type == onnx.TensorProto.FLOAT)
    assert held >= sum(made.model.state[g.weight].size for g in made.model.groups if g.weight)


def test_openvino_expands_all_of_it_when_it_compiles(tmp_path: Path) -> None:
    """Products too, of which it keeps evenly spaced weights as integers."""
    made = subject()
    path = made.exporter.write(quantized("openvino", dict.fromkeys(made.layers, "w4codebook")), tmp_path)[0]
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ops = compiled.get_runtime_model().get_ordered_ops()
    assert "Gather" not in {op.get_rt_info()["layerType"].astype(str) for op in ops}
    kept = [op for op in ops if op.get_rt_info()["layerType"].astype(str) == "Const"]
    assert {op.get_output_element_type(0).get_type_name() for op in kept if len(op.get_output_shape(0)) > 1} <= {
        "f32",
        "dynamic",
    }


def test_levels_have_no_place_in_a_tflite_file(tmp_path: Path) -> None:
    pytest.importorskip("litert_torch")
    made, planned = subject(), quantized("onnxruntime", {"head": "w4codebook"})
    with pytest.raises(UnsupportedError, match="no symmetric uint4 weights"):
        made.exporter.write(replace(planned, runtime=small.runtime("litert", "arm-neon")), tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"weights": "int4"}, {"activations": "uint8"}, {"weight_symmetry": "asymmetric"}, {"weights": "uint8"}]
)
def test_a_table_cannot_claim_levels_that_nothing_stores(wrong: dict[str, str]) -> None:
    like = small.runtime("onnxruntime").kernel("conv2d", "w4codebook")
    assert like is not None
    with pytest.raises(ValueError, match="weight_levels goes with"):
        Kernel.model_validate(like.model_dump() | wrong)
