"""Plans with 16-bit activations: where 8 bits do not do, or where a rule wants them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_models as small
import torch
import trained_model
from torch import nn

from edgeq.api.deploy import deploy
from edgeq.limits import Limits
from edgeq.lowering.choices import by_activations, of_choices
from edgeq.planning.fleet.fleet import fleet
from edgeq.planning.front import front
from edgeq.planning.planner import plan
from edgeq.planning.proof import best
from edgeq.plans.plan import Plan
from edgeq.plans.rules import Rule
from edgeq.registry.load import load_target


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_model.make(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(autouse=True)
def _cache(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(kept))


def data(files: Path) -> dict[str, Path]:
    return {"calibration": files / "calib.npz", "evaluation": files / "eval.npz"}


def uneven(folder: Path) -> nn.Module:
    """A network whose samples differ a hundredfold in size, so that 8 bits are too coarse for most of them; its data is
    written to the folder."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3),
        nn.Flatten(),
        nn.Linear(1024, 10),
    )
    rng = np.random.default_rng(0)
    x = rng.standard_normal((160, 3, 10, 10), np.float32) * np.exp(
        1.5 * rng.standard_normal((160, 1, 1, 1), np.float32)
    )
    for name, part in (("calib", x[:32]), ("eval", x[32:])):
        np.savez(folder / f"{name}.npz", input=part)
    return net


def wide(found: Plan) -> set[str]:
    return {layer.name for layer in found.layers if layer.choice.endswith("a16")}


def test_a_runtime_is_parted_by_the_type_of_its_activations() -> None:
    litert = small.runtime("litert")
    eight, both = by_activations(litert).values()
    alone = [k.name for k in litert.kernels if k.weight_only]
    assert {k.activations for k in eight.kernels if not k.weight_only} == {"int8"}
    assert [k.name for k in eight.kernels if k.weight_only] == alone
    assert both == litert and {k.activations for k in both.kernels if not k.weight_only} == {"int8", "int16"}
    assert of_choices(litert, ["w8a16", "float32", "w4"]) == of_choices(litert, ["w8a16", "w8a8"]) == both
    assert of_choices(litert, ["float32", "w4"]) == of_choices(litert, ["w4a8", "a8"]) == eight
    one = small.runtime("onnxruntime")
    assert by_activations(one) == {"uint8": one}
    weights = one.model_copy(update={"kernels": [k for k in one.kernels if k.weight_only]})
    assert by_activations(weights) == {"float32": weights}
    assert of_choices(weights, ["w8"]) == weights


def test_a_rule_may_ask_for_16_bits_and_the_file_has_them(files: Path, tmp_path: Path) -> None:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter

    def types(path: Path) -> set[str]:
        details = interpreter(str(path)).get_tensor_details()
        return {t["dtype"].__name__ for t in details if t["quantization_parameters"]["scales"].size}

    rule = Rule(match="stem.*", choice="w8a16")
    model = files / "model.pt2"
    found = plan(model, target="x86-avx512", format="tflite", rules=[rule], **data(files))  # type: ignore[arg-type]
    choices = {layer.name: layer.choice for layer in found.layers}
    assert any(c == "w8a16" for n, c in choices.items() if n.startswith("stem"))
    assert found.planned is not None and found.planned.proof is not None
    where = {"target": "x86-avx512", "limits": Limits(allow_slower=True), **data(files)}
    deploy(model, out=tmp_path / "out", plan=found, **where)  # type: ignore[arg-type]
    assert "int16" in types(tmp_path / "out" / "model.tflite")
    eight = {layer.name for layer in found.layers if "w8a8" in layer.alternatives} - {
        n for n, c in choices.items() if c == "w8a8"
    }
    one = sorted(eight)[0]
    mixed = [n.model_copy(update={"choice": "w8a8"}) if n.name == one else n for n in found.layers]
    edited = found.model_copy(update={"layers": mixed, "rules": []})
    deploy(model, out=tmp_path / "mixed", plan=edited, **where)  # type: ignore[arg-type]
    assert types(tmp_path / "mixed" / "model.tflite") >= {"int8", "int16"}


@pytest.mark.parametrize(
    ("target", "why"), [("npu-hexagon", "lose little enough"), ("npu-ethos-u", "lose little enough")]
)
def test_16_bits_take_the_place_of_float_where_8_lose_too_much(target: str, why: str, tmp_path: Path) -> None:
    """Float is no way out on an Ethos-U, whose time Vela does not know."""
    kernels = load_target(target).runtimes[0].kernels
    assert {k.activations.removeprefix("u") for k in kernels if not k.weight_only} == {"int8", "int16"}
    net = uneven(tmp_path)
    for drop, wider in (("40%", False), ("2%", True)):
        limits = Limits.parse(max_drop=drop)
        away, given = small.away(target, tmp_path), data(tmp_path)
        found = plan(net, target=away, inputs=["1x3x10x10"], limits=limits, **given)  # type: ignore[arg-type]
        assert found.planned is not None
        told = [note for note in found.planned.notes if "int16 activations were tried as well" in note]
        assert len(told) == wider and all(why in note for note in told)
        assert bool(wide(found)) is wider


NO_WEIGHTS_ALONE = """
extends = "x86-avx512"
schema = 1
name = "no-weights-alone"
[[runtimes]]
name = "litert"
"""
KERNEL = """
[[runtimes.kernels]]
ops = ["conv2d", "linear"]
activations = "{}"
activation_symmetry = "{}"
weights = "int8"
weight_narrow = true
bias = "{}"
source = "a test"
"""


def test_16_bits_are_not_tried_where_every_layer_has_the_same_weights_in_float(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ai_edge_litert")
    monkeypatch.setattr(best, "why_wider", lambda _: "a test wants it")
    where = {"target": "x86-avx512", "format": "tflite", "limits": Limits.parse(max_drop="5%"), **data(files)}
    found = plan(files / "model.pt2", **where)  # type: ignore[arg-type]
    assert found.planned is not None
    told = [note for note in found.planned.notes if note.startswith("int16 activations were")]
    assert len(told) == 1 and "not tried: every layer has the same weights in float" in told[0]


def test_a_front_has_16_bits_where_they_are_smaller_than_float(tmp_path: Path) -> None:
    target = tmp_path / "target.toml"
    kernels = KERNEL.format("int8", "asymmetric", "int32"), KERNEL.format("int16", "symmetric", "int64")
    target.write_text("".join([NO_WEIGHTS_ALONE, *kernels]))
    where = {"target": str(target), "format": "tflite", "inputs": ["1x3x10x10"], **data(tmp_path)}
    found = front(uneven(tmp_path), minimize="size", points=4, **where)  # type: ignore[arg-type]
    by_name = {point.name: point for point in found.points}
    assert any(point.on_front and wide(point.plan) for point in found.points)
    assert {"preferred", "float32"} <= by_name.keys(), "once, whatever else is tried"


def test_a_fleet_has_16_bits_for_a_target_that_needs_them(tmp_path: Path) -> None:
    """And what is predicted to lose too much where there is nothing else."""
    net = uneven(tmp_path)
    for drop, wider in (("40%", False), ("4%", True), ("0.001%", True)):
        found, plans = fleet(
            net,
            targets=["x86-avx512", small.away("npu-hexagon", tmp_path)],
            format="onnx",
            minimize="size",
            limits={"npu-hexagon-away": Limits.parse(max_drop=drop, max_size="100kB")},
            inputs=["1x3x10x10"],
            **data(tmp_path),
        )
        member = next(one for one in found.targets if one.target == "npu-hexagon-away")
        assert bool(wide(plans[member.artefact])) is wider and member.verdict.status == "not validated"
        assert member.verdict.doubtful is (drop == "0.001%")
        assert ("predicted to be too large" in member.verdict.because) is member.verdict.doubtful
