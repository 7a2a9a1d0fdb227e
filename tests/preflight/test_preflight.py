"""Answers on the CPUs of a family: sums that saturate are found, in the right layer, and 7-bit weights mend them."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import small_models as small
import trained_model
from onnx import TensorProto, helper, numpy_helper

from edgeq.api.deploy import deploy
from edgeq.api.preflight import preflight, remedied
from edgeq.cli.app import run
from edgeq.devices import add_device, qemu
from edgeq.errors import DeviceError, UnsupportedError, UsageError
from edgeq.plans.plan import read_plan
from edgeq.preflight.cause import cause_of, saturates
from edgeq.preflight.members import FAMILIES, Member
from edgeq.preflight.watch import Layer
from edgeq.preflight.watch_onnx import watch_onnx


def counted(layer: Layer, read: Any) -> int:
    """The same, one product after the other."""
    weight, found = layer.weight, 0
    assert weight is not None
    padded = np.pad(read, ((0, 0), (0, 0), *layer.padding), constant_values=layer.input_zero).astype(int)
    outputs, channels, height, width = weight.shape
    per = outputs // layer.groups
    (down, right), (dy, dx) = layer.stride, layer.dilation
    rows = (padded.shape[2] - dy * (height - 1) - 1) // down + 1
    columns = (padded.shape[3] - dx * (width - 1) - 1) // right + 1
    for sample, out, y, x in itertools.product(range(len(read)), range(outputs), range(rows), range(columns)):
        start = out // per * channels
        products = [
            int(padded[sample, start + c, y * down + i * dy, x * right + j * dx]) * int(weight[out, c, i, j])
            for i, j, c in itertools.product(range(height), range(width), range(channels))
        ]
        pairs = itertools.zip_longest(products[::2], products[1::2], fillvalue=0)
        found += sum(abs(one + other) > 32767 for one, other in pairs)
    return found


@pytest.mark.parametrize(
    ("shape", "groups", "stride", "padding", "dilation"),
    [
        ((3, 2, 1, 1), 1, (1, 1), ((0, 0), (0, 0)), (1, 1)),
        ((4, 3, 3, 3), 1, (2, 1), ((1, 1), (0, 2)), (1, 1)),
        ((4, 3, 2, 3), 2, (1, 2), ((0, 1), (2, 0)), (2, 1)),
    ],
)
def test_sums_of_two_products_are_counted_as_they_are_packed(
    shape: tuple[int, ...], groups: int, stride: Any, padding: Any, dilation: Any
) -> None:
    draw = np.random.default_rng(0)
    weight = draw.choice(np.array([-128, -127, 90, 127], np.int8), shape)
    read = draw.integers(100, 256, (2, shape[1] * groups, 6, 7), np.uint8)
    layer = Layer("conv", "out", "in", weight, 7, groups, stride, padding, dilation)
    wanted = counted(layer, read)
    assert wanted > 0 and saturates(layer, read) == wanted
    assert cause_of(layer, read, 50).startswith("16-bit saturation")
    narrow = layer._replace(weight=(weight // 2).astype(np.int8))
    assert saturates(narrow, read) == 0
    assert cause_of(narrow, read, 1).startswith("rounding") and cause_of(narrow, read, 2).startswith("another kernel")


def test_depthwise_layers_and_signed_inputs_do_not_saturate() -> None:
    weight, read = np.full((4, 1, 3, 3), 127, np.int8), np.full((1, 4, 5, 5), 255, np.uint8)
    layer = Layer("conv", "out", "in", weight, 0, 4, (1, 1), ((0, 0), (0, 0)), (1, 1))
    assert saturates(layer, read) == 0
    whole = layer._replace(weight=np.full((4, 4, 3, 3), 127, np.int8), groups=1)
    assert saturates(whole, read) > 0 and saturates(whole, read.astype(np.int8)) == 0


def plain(folder: Path) -> Path:
    """A 1x1 convolution of full weights as other tools write it, and one that is narrow enough."""
    draw = np.random.default_rng(0)
    nodes, constants = [], []

    def constant(name: str, value: Any) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def pair(name: str, scale: float, kind: Any) -> list[str]:
        return [constant(f"{name}_scale", np.float32(scale)), constant(f"{name}_zero", kind(0))]

    value = "x"
    for index, most in enumerate((60, 127)):
        ends = pair(f"in{index}", 1 / 255 if not index else 0.008, np.uint8)
        nodes += [helper.make_node("QuantizeLinear", [value, *ends], [f"q{index}"])]
        nodes += [helper.make_node("DequantizeLinear", [f"q{index}", *ends], [f"d{index}"])]
        weight = constant(f"w{index}", draw.choice(np.array([-most, most], np.int8), (6, 6, 1, 1), p=[0.3, 0.7]))
        nodes += [helper.make_node("DequantizeLinear", [weight, *pair(f"w{index}", 1 / 127, np.int8)], [f"r{index}"])]
        nodes += [helper.make_node("Conv", [f"d{index}", f"r{index}"], [f"c{index}"], name=f"layer{index}")]
        value = f"c{index}"
    ends = pair("out", 0.05, np.uint8)
    nodes += [helper.make_node("QuantizeLinear", [value, *ends], ["q"])]
    nodes += [helper.make_node("DequantizeLinear", ["q", *ends], ["y"])]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 6, 4, 4]) for n in ("x", "y"))
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], constants), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, str(folder / "plain.onnx"))
    np.savez(folder / "eval.npz", x=draw.uniform(0.5, 1, (20, 6, 4, 4)).astype(np.float32))
    return folder / "plain.onnx"


def test_layers_are_watched_with_what_they_read(tmp_path: Path) -> None:
    first, second = (one for one in watch_onnx(plain(tmp_path), tmp_path / "copy.onnx") if one.reads)
    assert (first.name, first.reads, first.writes) == ("layer0", "q0", "q1")
    assert (second.name, second.reads, second.writes) == ("layer1", "q1", "q")
    session = onnxruntime.InferenceSession(str(tmp_path / "copy.onnx"))
    assert {one.name: one.type for one in session.get_outputs()} == {
        "y": "tensor(float)",
        **dict.fromkeys(("q0", "q1", "q"), "tensor(uint8)"),
    }


@pytest.mark.parametrize("other", ["local", "haswell"])
def test_a_plain_file_saturates_from_the_right_layer_on(other: str, tmp_path: Path) -> None:
    if other == "local" and not small.SATURATES:
        pytest.skip("this CPU adds products of 8 bits exactly")
    if other != "local" and qemu.read_machine(qemu.devices_folder() / "x86_64") is None:
        pytest.skip("the emulated machine is not set up: edgeq device setup x86_64")
    found = preflight(plain(tmp_path), samples=tmp_path / "eval.npz", target="x86-avx512")
    assert found.reference == "exact" and found.samples == 20
    own = found.members[other]
    assert own.differing and own.difference is not None
    assert own.difference.layer == "layer1" and own.difference.steps > 1
    assert own.difference.cause.startswith("16-bit saturation") and found.layers == ["layer1"]


@pytest.mark.skipif(not small.SATURATES, reason="this CPU adds products of 8 bits exactly")
def test_the_remedy_is_planned_and_makes_the_answers_the_same(tmp_path: Path) -> None:
    files = trained_model.make(tmp_path, 32)
    given = {"target": "x86-avx512", "format": "onnx", "device": "local", "effort": "fast"}
    data = {"calibration": files / "calib.npz", "evaluation": files / "eval.npz"}
    deploy(files / "model.pt2", **given, **data, out=tmp_path / "build")
    before = preflight(tmp_path / "build", samples=files / "eval.npz")
    assert before.members["local"].moved > 0 and before.layers
    plan = remedied(read_plan(tmp_path / "build/plan.json"), before.layers)
    assert {layer.name for layer in plan.layers if layer.choice == "w7a8"} == set(before.layers)
    deploy(files / "model.pt2", **{**given, "format": "auto"}, **data, plan=plan, out=tmp_path / "mended")
    after = preflight(tmp_path / "mended", samples=files / "eval.npz")
    assert not after.layers and after.members["local"].moved < before.members["local"].moved


def test_golden_inputs_do_where_no_others_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = trained_model.make(tmp_path)
    monkeypatch.setenv("EDGEQ_HOME", str(tmp_path))
    add_device("again", "local")
    words = ["--target", "arm-neon", "--format", "onnx", "--device", "local", "--allow-slower", "--quiet"]
    data = ["--calib", str(files / "calib.npz"), "--eval", str(files / "eval.npz")]
    assert run(["deploy", str(files / "model.pt2"), *words, *data, "--out", str(tmp_path / "build")]) == 0
    capsys.readouterr()
    assert run(["preflight", str(tmp_path / "build"), "--device", "local", "--device", "again", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reference"] == "local" and found["samples"] > 0
    assert found["members"]["again"]["differing"] == [] and found["members"]["again"]["moved"] == 0
    remedy = ["--device", "local", "--device", "again", "--remedy", str(tmp_path / "plan.json")]
    capsys.readouterr()
    assert run(["preflight", str(tmp_path / "build"), *remedy, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == [] and not (tmp_path / "plan.json").exists()
    os.mkfifo(tmp_path / "pipe")
    for wrong in (tmp_path / "pipe", tmp_path, Path("."), tmp_path / "no/plan.json"):
        assert run(["preflight", str(tmp_path / "build"), *remedy[:-1], str(wrong)]) == 2
    assert (tmp_path / "pipe").is_fifo()


def test_without_its_reference_a_family_is_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two CPUs that saturate alike would look right."""
    broken = Member("exact", "local", "a test", {"sums": "none of these"}, "onnxruntime")
    others = (Member("local", "local", "a test"), Member("again", "local", "a test"))
    monkeypatch.setitem(FAMILIES, "local", (broken, *others))
    with pytest.raises(DeviceError, match="exact, which the others are compared with"):
        preflight(plain(tmp_path), samples=tmp_path / "eval.npz", target="x86-avx512")


def test_a_reference_of_another_class_is_doubted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_HOME", str(tmp_path))
    add_device("again", "local")
    given = {"samples": tmp_path / "eval.npz", "devices": ["local", "again"]}
    found = preflight(plain(tmp_path), target="x86-avx512", **given)  # type: ignore[arg-type]
    assert bool(found.warnings) is small.SATURATES
    assert all("is not seen" in warning for warning in found.warnings)


def test_what_cannot_be_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = plain(tmp_path)
    with pytest.raises(UsageError, match="no samples of its own"):
        preflight(file, target="x86-avx512")
    with pytest.raises(UsageError, match="what it is for"):
        preflight(file, samples=tmp_path / "eval.npz")
    with pytest.raises(UsageError, match="compared with nothing"):
        preflight(file, samples=tmp_path / "eval.npz", target="x86-avx512", devices=["local"])
    with pytest.raises(UnsupportedError, match="no family"):
        preflight(file, samples=tmp_path / "eval.npz", target="npu-intel")
    monkeypatch.setenv("EDGEQ_HOME", str(tmp_path / "nothing"))
    with pytest.raises(DeviceError, match="not set up"):
        preflight(file, samples=tmp_path / "eval.npz", target="arm-neon")
    add_device("gone", "qemu://arm64?cpu=cortex-a53")
    with pytest.raises(DeviceError, match="nothing to compare local with"):
        preflight(file, samples=tmp_path / "eval.npz", target="arm-neon", devices=["local", "gone"])
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DeviceError, match=r"plain\.onnx"):
        preflight(file, samples=tmp_path / "eval.npz", target="x86-avx512")
