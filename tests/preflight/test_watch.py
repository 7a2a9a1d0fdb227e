"""Copies that show their layers: they answer as the file does, and a layer that differs is found in every format."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import device_models
import numpy as np
import onnx
import onnxruntime
import pytest
import small_models as small
import trained_model
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from onnx import TensorProto, helper, numpy_helper

from edgeq.api.deploy import deploy
from edgeq.api.preflight import _difference, _written
from edgeq.devices import Candidate, open_device, qemu
from edgeq.export.tflite_graph import Graph
from edgeq.preflight.cause import cause_of, saturates
from edgeq.preflight.watch import WATCH, Layer
from edgeq.runtimes.openvino import import_openvino

FORMATS = {"onnxruntime": "onnx", "openvino": "openvino", "litert": "tflite"}

Answers = dict[str, np.ndarray]


def watched(path: Path, runtime: str, folder: Path) -> tuple[list[Layer], Path]:
    copy = folder / f"copy{path.suffix}"
    return WATCH[FORMATS[runtime]](path, copy), copy


def answers(path: Path, runtime: str, inputs: Answers, device: str = "local", **options: str) -> Answers:
    return _written(open_device(device), Candidate(path, runtime, options), inputs)


def built(target: str, kind: str, folder: Path) -> Path:
    """The trained model for a target, with a sum of two branches."""
    files = trained_model.make(folder, 32)
    data = {"calibration": files / "calib.npz", "evaluation": files / "eval.npz"}
    words = {"target": target, "format": kind, "device": "local", "effort": "fast"}
    deploy(files / "model.pt2", **words, **data, out=folder / "build")
    return folder / "build"


def images(folder: Path) -> Answers:
    return {"image": np.load(folder / "eval.npz")["image"]}


def alone(path: Path, layer: Layer, inputs: Answers) -> tuple[np.ndarray, np.ndarray, float]:
    """What OpenVINO answers, what it computes for one layer above its lowest value, and the step between two values."""
    core = import_openvino().Core()
    model = core.read_model(path)
    (op,) = [one for one in model.get_ops() if layer.writes.startswith(f"{one.get_friendly_name()}_0")]
    low, high = (np.asarray(op.input(i).get_source_output().get_node().data).item() for i in (3, 4))
    model.add_outputs([op.output(0)])
    found = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(inputs)
    return found[0], found[1] - low, (high - low) / 255


@pytest.mark.parametrize("runtime", FORMATS)
@pytest.mark.parametrize("name", ["depthwise", "grouped", "two-outputs", "two-inputs"])
def test_a_copy_answers_as_the_file_does_and_gives_integers(name: str, runtime: str, tmp_path: Path) -> None:
    path, inputs = small.written(name, runtime).path, small.arrays(name, 8)
    layers, copy = watched(path, runtime, tmp_path)
    wanted, found = answers(path, runtime, inputs), answers(copy, runtime, inputs)
    assert set(wanted) < set(found) and len({layer.writes for layer in layers}) == len(layers) > 1
    for output, values in wanted.items():
        np.testing.assert_array_equal(found[output], values)
    for layer in layers:
        assert found[layer.writes].dtype == (np.int8 if runtime == "litert" else np.uint8)
        assert len(np.unique(found[layer.writes])) > 8
        assert layer.reads is None or found[layer.reads].dtype == np.uint8


def altered(path: Path, runtime: str, name: str, folder: Path) -> Path:
    """The file with the bits of a layer's weight turned."""
    shutil.copytree(path.parent, folder / "altered")
    if runtime == "litert":
        graph = Graph(path.read_bytes())
        (operator,) = [one for one in graph.operators if graph.name(int(one.outputs[0])) == name]
        weight = graph.constant(int(operator.inputs[1]))
    else:
        (weight,) = [one.weight for one in watched(path, runtime, folder)[0] if one.name == name]
    assert weight is not None
    other = folder / "altered" / path.name
    file = other.with_suffix(".bin") if runtime == "openvino" else other
    data = file.read_bytes()
    assert data.count(weight.tobytes()) == 1
    file.write_bytes(data.replace(weight.tobytes(), (~weight).tobytes()))
    return other


@pytest.mark.parametrize("layer", ["expand", "depthwise"])
@pytest.mark.parametrize(
    ("runtime", "device"), [*((runtime, "local") for runtime in FORMATS), ("litert", "qemu://arm64?cpu=cortex-a53")]
)
def test_the_first_layer_that_differs_is_found(runtime: str, device: str, layer: str, tmp_path: Path) -> None:
    if device != "local" and qemu.read_machine(qemu.devices_folder() / "arm64") is None:
        pytest.skip("the emulated machine is not set up: edgeq device setup arm64")
    path, inputs = small.written("depthwise", runtime).path, small.arrays("depthwise", 4)
    layers, copy = watched(path, runtime, tmp_path)
    reference = answers(copy, runtime, inputs)

    def differing(there: Path) -> list[str]:
        found = answers(there, runtime, inputs, device)
        return [one.name for one in layers if (found[one.writes] != reference[one.writes]).any()]

    assert differing(copy) == []
    other = altered(path, runtime, layer, tmp_path)
    assert differing(watched(other, runtime, other.parent)[1])[0] == layer


def test_kernels_that_round_otherwise_are_told_apart(tmp_path: Path) -> None:
    """LiteRT's own kernels and XNNPACK, in a file whose answers depend on it."""
    path, inputs = built("arm-neon", "tflite", tmp_path) / "model.tflite", images(tmp_path)
    device = open_device("local")
    one, other = (Candidate(path, "litert", {"kernels": kernels}) for kernels in ("xnnpack", "builtin"))
    found = _difference(WATCH["tflite"], path, inputs, ((device, one), (device, other)), tmp_path)
    assert found is not None and found.steps == 1 and found.cause.startswith("rounding")
    assert _difference(WATCH["tflite"], path, inputs, ((device, one), (device, one)), tmp_path) is None


def test_integers_of_a_tflite_file_are_those_of_its_tensors(tmp_path: Path) -> None:
    path, inputs = small.written("depthwise", "litert").path, small.arrays("depthwise", 1)
    layers, copy = watched(path, "litert", tmp_path)
    found = answers(copy, "litert", inputs, kernels="builtin")
    interpreter = Interpreter(
        str(path),
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    interpreter.set_tensor(given["index"], inputs["image"])
    interpreter.invoke()
    held = {one["name"]: one["index"] for one in interpreter.get_tensor_details() if one["dtype"] == np.int8}
    for layer in layers:
        np.testing.assert_array_equal(found[layer.writes], interpreter.get_tensor(held[layer.name]))


@pytest.mark.parametrize("signature", [True, False])
def test_outputs_of_a_tflite_file_keep_their_names(signature: bool, tmp_path: Path) -> None:
    path = device_models.write_tflite(tmp_path / "model.tflite", signature=signature)
    names = [f"args_{i}" for i in range(2)] if signature else ["in_a", "in_b"]
    inputs = {name: device_models.integers(5, seed) for seed, name in enumerate(names)}
    layers, copy = watched(path, "litert", tmp_path)
    found = answers(copy, "litert", inputs)
    assert [one.name for one in layers] == ["out_a", "out_b"] and set(found) == {one.writes for one in layers}
    for layer, x in zip(layers, inputs.values(), strict=True):
        np.testing.assert_array_equal(found[layer.writes], device_models.tflite_answer(x))


def test_integers_of_an_openvino_file_are_the_steps_of_what_it_computes(tmp_path: Path) -> None:
    path, inputs = small.written("depthwise", "openvino").path, small.arrays("depthwise", 8)
    layers, copy = watched(path, "openvino", tmp_path)
    found = answers(copy, "openvino", inputs)
    for layer in layers:
        _, values, step = alone(path, layer, inputs)
        np.testing.assert_allclose(step * found[layer.writes], values, atol=step / 100)


def test_sums_that_openvino_fuses_are_a_step_off_at_most(tmp_path: Path) -> None:
    path, inputs = built("x86-avx512", "openvino", tmp_path) / "model.xml", images(tmp_path)
    (wanted,) = answers(path, "openvino", inputs).values()
    layers, copy = watched(path, "openvino", tmp_path)
    found = answers(copy, "openvino", inputs)
    assert [one.name for one in layers] == ["stem.0", "depthwise.0", "point", "add", "mean"]
    assert (found["linear"].argmax(1) == wanted.argmax(1)).all()
    # nothing else is shown, so that it stays fused
    end, values, step = alone(path, layers[3], inputs)
    np.testing.assert_array_equal(end, wanted)
    assert np.abs(values - step * found[layers[3].writes]).max() < 1.01 * step


@pytest.mark.skipif(not small.SATURATES, reason="this CPU adds products of 8 bits exactly")
@pytest.mark.parametrize(
    ("shape", "groups"), [((1, 3, 3, 3), 1), ((1, 4, 1, 1), 1), ((1, 1, 3, 3), 1), ((2, 3, 3, 3), 2), ((1, 5), 1)]
)
def test_openvino_is_off_exactly_where_sums_are_counted(shape: Any, groups: int, tmp_path: Path) -> None:
    """One output for each sample, in steps of 1."""
    draw = np.random.default_rng(0)
    openvino = import_openvino()
    ops = openvino.opset15
    weight = draw.integers(40, 128, shape, np.int8)
    read = draw.integers(0, 256, (300, groups * shape[1], *shape[2:]))
    read = (read // np.linspace(1, 2.2, 300).reshape(-1, *[1] * (read.ndim - 1))).astype(
        int
    )  # the last do not saturate
    zero, kernel = 7, shape[2:]
    ends = [ops.constant(np.array(end, np.float32)) for end in (-zero, 255 - zero)]
    wide = [ops.constant(np.array(end, np.float32)) for end in (0, 2**20)]
    x = ops.parameter([-1, *read.shape[1:]], openvino.Type.f32)
    stored = weight.reshape(groups, -1, *shape[1:]) if groups > 1 else weight
    scale = ops.constant(np.ones([1] * stored.ndim, np.float32))
    real = ops.multiply(ops.convert(ops.constant(stored), "f32"), scale)
    rounded = ops.fake_quantize(x, *ends, *ends, 256)
    zeros = [0] * len(kernel)
    if not kernel:
        made = ops.matmul(rounded, real, False, True)
    elif groups > 1:
        made = ops.group_convolution(rounded, real, [1, 1], zeros, zeros, [1, 1])
    else:
        made = ops.convolution(rounded, real, [1, 1], zeros, zeros, [1, 1])
    end = ops.fake_quantize(made, *wide, *wide, 256)
    model = openvino.Model([ops.result(made), ops.result(end)], [x])
    model.inputs[0].set_names({"x"})
    model.outputs[0].set_names({"sums"})
    openvino.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    (layer,), copy = watched(tmp_path / "model.xml", "openvino", tmp_path)
    found = answers(copy, "openvino", {"x": (read - zero).astype(np.float32)})
    assert layer.reads is not None and layer.input_zero == zero and layer.groups == groups
    np.testing.assert_array_equal(found[layer.reads], read)
    parts = np.split(read - zero, groups, axis=1)
    exact = np.stack([(part * own).reshape(300, -1).sum(1) for part, own in zip(parts, weight, strict=True)], 1)
    off = (found["sums"].reshape(300, -1) != exact).any(1)
    counted = [saturates(layer, found[layer.reads][i : i + 1]) > 0 for i in range(300)]
    assert off.tolist() == counted
    assert 0 < off.sum() < 300 or weight.size == 9  # one channel makes no sums of two
    assert cause_of(layer, found[layer.reads], 50).startswith("16-bit") == (weight.size != 9)


@pytest.mark.parametrize("word", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(("stride", "sizes"), [([2, 2], (7, 8)), ([1, 3], (6, 8))])
def test_padding_that_is_worked_out_counts(
    word: str, stride: list[int], sizes: tuple[int, int], tmp_path: Path
) -> None:
    """The patches are those that ONNX Runtime's own convolution sees."""
    draw = np.random.default_rng(0)
    weight = draw.choice(np.array([-128, 90, 127], np.int8), (3, 2, 3, 2))
    told = {"auto_pad": word, "strides": stride}
    constants = {
        "one": np.float32(1), "zero": np.uint8(255), "u": np.uint8(0), "i": np.int8(0),
        "w": weight, "s": np.float32(0.001),
        "patches": np.eye(12, dtype=np.float32).reshape(3, 2, 2, 12).transpose(3, 2, 0, 1),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "i"], ["r"]),
        helper.make_node("Conv", ["d", "r"], ["c"], name="conv", **told),
        helper.make_node("QuantizeLinear", ["c", "one", "u"], ["y"]),
        helper.make_node("Conv", ["x", "patches"], ["p"], **told),
    ]
    kinds = {"x": TensorProto.FLOAT, "y": TensorProto.UINT8, "p": TensorProto.FLOAT}
    x, y, p = (helper.make_tensor_value_info(name, kind, ["n", "c", "h", "w"]) for name, kind in kinds.items())
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y, p], initializers)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "model.onnx"
    )
    (layer,), copy = watched(tmp_path / "model.onnx", "onnxruntime", tmp_path)
    session = onnxruntime.InferenceSession(str(copy))
    images = draw.integers(-255, 1, (4, 2, *sizes)).astype(np.float32)
    found = dict(zip([one.name for one in session.get_outputs()], session.run(None, {"x": images}), strict=True))
    assert layer.reads == "q" and (layer.padding == word.lower()) == (word != "VALID")
    patches = np.moveaxis(found["p"], 1, -1).astype(int)[..., None, :] + 255
    products = patches * weight.transpose(0, 2, 3, 1).reshape(3, 12).astype(int)
    sums = products[..., ::2] + products[..., 1::2]
    wanted = int((np.abs(sums) > 32767).sum())
    assert saturates(layer, found["q"]) == wanted > 0
    assert word == "VALID" or saturates(layer._replace(padding=((0, 0), (0, 0))), found["q"]) != wanted


@pytest.mark.parametrize("word", ["same_upper", "same_lower"])
def test_padding_is_the_one_that_openvino_works_out(word: str) -> None:
    """With holes in the kernel, which ONNX Runtime refuses."""
    openvino = import_openvino()
    ops = openvino.opset15
    draw = np.random.default_rng(0)
    weight, read = draw.integers(90, 128, (3, 2, 2, 3), np.int8), draw.integers(0, 256, (2, 2, 7, 9), np.uint8)
    x = ops.parameter(read.shape, openvino.Type.f32)
    made = ops.convolution(x, ops.constant(weight.astype(np.float32)), [2, 1], [0, 0], [0, 0], [3, 2], word)
    told = made.get_attributes()
    pads = tuple(zip(told["pads_begin"], told["pads_end"], strict=True))
    assert any(first != last for first, last in pads)
    layer = Layer("conv", "out", "in", weight, 200, 1, (2, 1), word, (3, 2))
    wanted = saturates(layer._replace(padding=pads), read)
    assert saturates(layer, read) == wanted > 0
    assert saturates(layer._replace(padding=tuple(pad[::-1] for pad in pads)), read) != wanted
