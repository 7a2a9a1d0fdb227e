"""Layers of 8 and of 16 bits side by side: a tensor is rounded anew for those that read it in another type."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models as small
import torch
from torch import nn

from edgeq.calibration.calibrate import calibrate
from edgeq.devices import Candidate, open_device
from edgeq.evaluation.measure import ends_of, fed, real_outputs
from edgeq.export.artifact import Exporter, read_artifact, write_artifact
from edgeq.export.audit import AuditError, audit
from edgeq.frontends.load import load
from edgeq.lowering.assign import assign
from edgeq.lowering.choices import Ladder, ladder, uniform
from edgeq.lowering.form import form, on_integers
from edgeq.methods.quantize import quantize_model
from edgeq.model.groups import only_moves
from edgeq.model.model import Model
from edgeq.numerics import dequantize, quantize
from edgeq.numerics.quantize import QParams
from edgeq.planning.explain.counterfactual import difference, run_edits
from edgeq.planning.sensitivity.damages import damage
from edgeq.plans.memory import peak_memory
from edgeq.quantization.quantized import Quantized
from edgeq.quantization.simulate import simulate
from edgeq.registry.schema import Runtime

pytest.importorskip("litert_torch", reason="the tflite extra (litert-torch) is not installed")

from edgeq.export.tflite_graph import Graph

NETS = ["residual", "split-shuffle", "pools", "gate", "two-inputs", "two-outputs"]
RUNTIMES = [("x86-avx512", "litert"), ("npu-hexagon", "onnxruntime-qnn"), ("npu-ethos-u", "vela")]
RUNS_IN = {"onnx": "onnxruntime", "tflite": "litert"}


@cache
def offered(name: str, by: str, target: str) -> Ladder:
    return ladder(small.model(name), small.runtime(by, target), small.calibration(name).histograms)


def mixes(name: str, by: Runtime, target: str, count: int) -> Iterator[Quantized]:
    """Plans at random in which at least one tensor is read in two types."""
    model, calibration, rng = small.model(name), small.calibration(name), random.Random(name)
    found = 0
    for _ in range(20 * count):
        choices = {g: rng.choice([*filter(on_integers, o)] or [*o]) for g, o in offered(name, by.name, target).items()}
        quantized = quantize_model(model, by, calibration, choices=choices)
        if quantized.again:
            yield quantized
            found += 1
        if found == count:
            return


@pytest.mark.parametrize(("target", "runtime"), RUNTIMES)
@pytest.mark.parametrize("name", NETS)
def test_a_file_holds_and_computes_what_the_plan_says(name: str, target: str, runtime: str, tmp_path: Path) -> None:
    """In the real runtime; for NPUs in that of the CPU, which reads the same file."""
    model, data = small.model(name), small.arrays(name, 8, seed=3)
    by = small.exact_here(small.runtime(runtime, target))
    batch = [torch.from_numpy(data[spec.name]) for spec in model.inputs]
    exact = [o.numpy() for o in model.run([batch])[0]]
    small.exporter(name).scratch.mkdir(parents=True, exist_ok=True)
    conversion = small.exporter(name).conversion(by.format)
    seen = 0
    for number, quantized in enumerate(mixes(name, by, target, 3)):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = write_artifact(model, quantized, conversion, folder)[0]
        stored = read_artifact(model, quantized, conversion, path)
        audit(model, quantized, stored)
        for (node, _), tensor in quantized.again.items():
            assert node not in stored.held or any(form.holds(tensor.q) for form in stored.tensors[node])
        ends = ends_of(model, quantized)
        outputs = open_device("local").outputs(Candidate(path, RUNS_IN[by.format]), fed(data, ends))  # type: ignore[arg-type]
        for got, near, real in zip(
            real_outputs(outputs, exact, ends), simulate(model, quantized, batch), exact, strict=True
        ):
            assert np.abs(got - near.numpy()).max() <= 0.02 * np.abs(real).max()
            assert np.abs(got - near.numpy()).mean() <= 0.006 * np.abs(real).max()
        seen += 1
    assert seen or (name, target) == ("split-shuffle", "npu-hexagon")


def test_a_file_that_lacks_a_rounding_for_one_reader_is_found_out(tmp_path: Path) -> None:
    name, target = "residual", "x86-avx512"
    model, by = small.model(name), small.runtime("litert", target)
    small.exporter(name).scratch.mkdir(parents=True, exist_ok=True)
    conversion = small.exporter(name).conversion("tflite")
    quantized = next(mixes(name, by, target, 1))
    stored = read_artifact(model, quantized, conversion, write_artifact(model, quantized, conversion, tmp_path)[0])
    version, tensor = next(iter(quantized.again.items()))
    other = replace(tensor, q=QParams(tensor.q.scheme, tensor.q.scale * 2, tensor.q.zero_point))
    with pytest.raises(AuditError) as caught:
        audit(model, replace(quantized, again={**quantized.again, version: other}), stored)
    assert caught.value.where == f"tensor {version[0]}"


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.beside = nn.Linear(6, 64), nn.Linear(64, 5), nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        inside = torch.relu(self.first(x))
        return {"second": self.second(inside), "beside": self.beside(inside)}


@cache
def chain() -> tuple[Model, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net, x = Chain().eval(), torch.randn(64, 6)
    return load(net, example=(x[:2],)), x


def chosen(**choices: str) -> Quantized:
    model, x = chain()
    return quantize_model(model, small.runtime("litert"), calibrate(model, {"x": x.numpy()}), choices=choices)


@pytest.mark.parametrize(
    ("first", "second", "beside"), [("w8a8", "w8a16", "w8a8"), ("w8a16", "w8a8", "w8a16"), ("w8a16", "w8a8", "w8a8")]
)
def test_one_reader_sees_other_integers_than_the_next(first: str, second: str, beside: str) -> None:
    """Worked out layer by layer, in integers."""
    model, x = chain()
    quantized = chosen(first=first, second=second, beside=beside)
    inside = {g.name: g for g in model.groups}["first"].output
    own = "int16" if first == "w8a16" else "int8"
    assert quantized.activations[inside].q.scheme.dtype == own
    assert set(quantized.again) == {(inside, "int8" if own == "int16" else "int16")}

    def through(values: np.ndarray, q: QParams) -> np.ndarray:
        return dequantize(quantize(values, q), q)

    def layer(name: str, values: np.ndarray) -> np.ndarray:
        return np.asarray(values @ quantized.weights[name].real.T + quantized.biases[name])

    node = model.input_nodes[0]
    given = through(x.numpy(), quantized.activations[node].q)
    if ("x", "int8") in quantized.again:
        given = through(given, quantized.again["x", "int8"].q)
    left = through(np.maximum(layer("first", given), 0), quantized.activations[inside].q)
    anew = through(left, next(iter(quantized.again.values())).q)
    for (name, choice), found in zip(
        (("second", second), ("beside", beside)), simulate(model, quantized, [x]), strict=True
    ):
        read = left if form(choice) == form(first) else anew
        wanted = layer(name, read)
        last = quantized.activations.get({g.name: g for g in model.groups}[name].output)
        wanted = through(wanted, last.q) if last is not None else wanted
        step = float(last.q.scale) if last is not None else 1e-5
        off = np.abs(found.numpy() - wanted)
        assert off.max() <= 1.01 * step
        assert off.mean() <= 0.02 * step + 1e-6


def test_an_input_that_two_types_read_has_the_wider_one_first() -> None:
    name, by = "residual", small.runtime("vela", "npu-ethos-u")
    wide = uniform(offered(name, "vela", "npu-ethos-u"), "w8a16")
    quantized = quantize_model(small.model(name), by, small.calibration(name), choices=wide)
    (image,) = small.model(name).input_nodes
    assert quantized.activations[image].q.scheme.dtype == "int16"


def test_what_only_moves_integers_keeps_their_type() -> None:
    name, by = "split-shuffle", small.runtime("litert")
    model, histograms = small.model(name), small.calibration(name).histograms
    every = ladder(model, by, histograms)
    moving = [
        g.name for g in model.groups if only_moves(g, model.nodes[g.root]) and set(g.inputs) - set(model.input_nodes)
    ]
    wrong = {**uniform(every, "w8a16"), **dict.fromkeys(moving, "a8")}
    given = assign(model, by, histograms, wrong)
    assert moving and all(given.choice(layer) == "a16" for layer in moving)
    assert {given.reasons[layer] for layer in moving} == {"it moves int16 values"}
    lacking = by.model_copy(
        update={"kernels": [k for k in by.kernels if k.activations != "int16" or k.weights is not None]}
    )
    given = assign(model, lacking, histograms, wrong)
    assert all(given.choice(layer) == "float32" for layer in moving)


@pytest.mark.parametrize("name", ["residual", "gate", "two-outputs"])
def test_what_turns_a_mixed_plan_into_another(name: str) -> None:
    """As the simulation has it, to and fro."""
    model, by, data = small.model(name), small.runtime("litert"), small.arrays(name, 4)
    calibration, target = small.calibration(name), "x86-avx512"
    plain = quantize_model(model, by, calibration, choices=uniform(offered(name, "litert", target)))

    def loss(of: Quantized) -> float:
        found = []
        for i in range(4):
            batch = [torch.from_numpy(data[spec.name][i : i + 1]) for spec in model.inputs]
            found.append(damage(simulate(model, of, batch), model.run([batch])[0]))
        return float(np.mean(found))

    for mixed in mixes(name, by, target, 3):
        for one, other in ((plain, mixed), (mixed, plain)):
            before, after = run_edits(model, one, data, [difference(model, one, other)])
            assert before.losses.mean() == pytest.approx(loss(one), rel=1e-3)
            assert after.losses.mean() == pytest.approx(loss(other), rel=1e-3)


def test_both_versions_of_a_tensor_take_memory_while_the_second_is_made() -> None:
    """64 numbers of 16 bits, of which the second of two readers wants 8, when the first one has written its 5."""
    model, _ = chain()
    alone = peak_memory(model, chosen(first="w8a16", second="w8a16", beside="w8a16"))
    both = peak_memory(model, chosen(first="w8a16", second="w8a16", beside="w8a8"))
    assert (alone, both) == (146, 202)


def test_a_padding_that_the_converter_puts_in_front_of_a_layer_is_rounded_anew(tmp_path: Path) -> None:
    """TFLite pads a strided convolution with an operator of its own, behind which its 16 bits begin."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2, padding=1)).eval()
        x = torch.randn(16, 3, 8, 8)
    model, by = load(net, example=(x[:2],)), small.runtime("litert")
    calibration = calibrate(model, {model.inputs[0].name: x.numpy()})
    quantized = quantize_model(model, by, calibration, choices={"0": "w8a8", "2": "w8a16"})
    conversion = Exporter(model, tmp_path).conversion("tflite")
    path = write_artifact(model, quantized, conversion, tmp_path)[0]
    graph = Graph(path.read_bytes())
    padded = [graph.dtype(int(op.outputs[0])) for op in graph.operators if graph.kind(op) in ("PAD", "PADV2")]
    assert padded == ["int8"] and len(quantized.again) == 1
    audit(model, quantized, read_artifact(model, quantized, conversion, path))
    (got,) = open_device("local").outputs(Candidate(path, "litert"), {model.inputs[0].name: x.numpy()})
    (near,) = simulate(model, quantized, [x])
    assert np.abs(got - near.numpy()).max() <= 0.02 * np.abs(near.numpy()).max()


@pytest.mark.parametrize(
    ("target", "runtime", "choices"),
    [
        ("npu-hexagon", "onnxruntime-qnn", {"0": "w8a8", "2": "a8", "3": "w8a16"}),
        ("npu-hexagon", "onnxruntime-qnn", {"0": "w8a16", "2": "float32", "3": "w8a8"}),
        ("x86-avx512", "onnxruntime", {"0": "float32", "2": "float32", "3": "w8a8"}),
    ],
)
def test_what_the_exporter_made_a_part_of_a_layer_is_rounded_in_front_of_it(
    target: str, runtime: str, choices: dict[str, str], tmp_path: Path
) -> None:
    """A padding by itself becomes one of the convolution behind it: there is no value between them in the file."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 4, 3, stride=2)
        ).eval()
        x = torch.randn(16, 3, 9, 9)
    model, by = load(net, example=(x[:2],)), small.exact_here(small.runtime(runtime, target))
    calibration = calibrate(model, {model.inputs[0].name: x.numpy()})
    names = {g.name.split(".")[0]: g.name for g in model.groups}
    quantized = quantize_model(model, by, calibration, choices={names[n]: c for n, c in choices.items()})
    conversion = Exporter(model, tmp_path).conversion("onnx")
    path = write_artifact(model, quantized, conversion, tmp_path)[0]
    assert not any(node.op_type == "Pad" for node in onnx.load(path).graph.node)
    found = audit(model, quantized, read_artifact(model, quantized, conversion, path))
    assert "3" not in {one.layer for one in found.float_operators}
    (got,) = open_device("local").outputs(Candidate(path, "onnxruntime"), {model.inputs[0].name: x.numpy()})
    (near,) = simulate(model, quantized, [x])
    assert np.abs(got - near.numpy()).max() <= 0.02 * np.abs(near.numpy()).max()
