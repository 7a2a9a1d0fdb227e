"""ONNX files with QuantizeLinear and DequantizeLinear come in with their integers, and go out with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

import edgeq
from edgeq.errors import UnsupportedError
from edgeq.frontends.load import load

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(0, 1, (96, 3, 8, 8)).astype(np.float32)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.depth = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point, self.last = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(image))
        x = torch.relu(x + self.point(torch.relu(self.depth(x))))
        return self.last(nn.functional.avg_pool2d(x, 8).flatten(1))


class Images(CalibrationDataReader):
    def __init__(self) -> None:
        self.left = iter(IMAGES[:32])

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.left, None)
        return None if image is None else {"image": image[None]}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ONNX Runtime's quantizer makes of a network."""
    folder = tmp_path_factory.mktemp("qdq")
    torch.manual_seed(0)
    torch.onnx.export(
        Net().eval(), (torch.from_numpy(IMAGES[:1]),), str(folder / "float.onnx"), dynamo=False, opset_version=17,
        input_names=["image"], output_names=["scores"], dynamic_axes={"image": {0: "n"}},
    )  # fmt: skip
    quantize_static(
        str(folder / "float.onnx"), str(folder / "quantized.onnx"), Images(), quant_format=QuantFormat.QDQ,
        per_channel=True, activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return folder / "quantized.onnx"


def stored(file: Path) -> list[list[int]]:
    """The integers of weights in a file, each weight sorted: layouts differ."""
    found = [numpy_helper.to_array(one) for one in onnx.load(file).graph.initializer]
    return sorted(sorted(a.astype(int).ravel().tolist()) for a in found if a.dtype == np.int8 and a.ndim > 1)


def test_the_graph_has_the_grids_and_rounds_no_more(quantized: Path) -> None:
    model = load(quantized)
    assert model.grids is not None and not any("quantize" in node.target for node in model.program.nodes)
    found = sorted(sorted(one.integers.astype(int).ravel().tolist()) for one in model.grids.weights.values())
    assert found == stored(quantized)
    assert [group.op for group in model.groups if group.weight] == ["conv2d", "depthwise_conv2d", "conv2d", "linear"]
    image = model.grids.of(model.input_nodes[0])
    scale = next(one for one in onnx.load(quantized).graph.initializer if one.name == "image_scale")
    assert len(image) == 1 and np.float32(image[0].scale) == numpy_helper.to_array(scale)


def test_artefacts_hold_the_same_integers(quantized: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "calib.npz", image=IMAGES[:32])
    np.savez(tmp_path / "eval.npz", image=IMAGES[32:])
    for form in ("onnx", "openvino", "tflite"):
        edgeq.deploy(
            str(quantized), target="x86-avx512", format=form, device="local", calibration=str(tmp_path / "calib.npz"),
            evaluation=str(tmp_path / "eval.npz"), limits=edgeq.Limits(allow_slower=True), out=tmp_path / form,
        )  # fmt: skip
    wanted = stored(quantized)
    assert stored(tmp_path / "onnx" / "model.onnx") == wanted
    assert of_openvino(tmp_path / "openvino" / "model.xml", [len(one) for one in wanted]) == wanted
    assert of_litert(tmp_path / "tflite" / "model.tflite") == wanted


def of_openvino(file: Path, sizes: list[int]) -> list[list[int]]:
    openvino = pytest.importorskip("openvino")
    constants = [op for op in openvino.Core().read_model(file).get_ops() if op.get_type_name() == "Constant"]
    arrays = [one.get_data() for one in constants if one.get_element_type().get_type_name() == "i8"]
    return sorted(sorted(a.astype(int).ravel().tolist()) for a in arrays if a.size in sizes)


def of_litert(file: Path) -> list[list[int]]:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(file))
    found = []
    for tensor in interpreter.get_tensor_details():
        if tensor["dtype"] == np.int8 and len(tensor["quantization_parameters"]["scales"]) and len(tensor["shape"]) > 1:
            try:
                value = interpreter.get_tensor(tensor["index"])
            except ValueError:  # it has a value only while it runs
                continue
            found.append(sorted(value.astype(int).ravel().tolist()))
    return sorted(found)


def saved(
    path: Path, nodes: list[Any], held: dict[str, Any], shape: list[int], types: dict[str, int] | None = None
) -> Path:
    """A file of such nodes, from `x` to `y`; constants of `types` are of that type of the standard's."""
    constants = [
        helper.make_tensor(name, types[name], np.shape(value), np.asarray(value).ravel().tolist())
        if types and name in types
        else numpy_helper.from_array(np.asarray(value), name)
        for name, value in held.items()
    ]
    graph = helper.make_graph(
        nodes, "graph", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def test_a_clip_between_the_two_narrows_the_grid(tmp_path: Path) -> None:
    """As Brevitas writes 4 bits and narrow ranges, with weights that are stored as floats."""
    w = RANDOM.normal(0, 1, (4, 3, 1, 1)).astype(np.float32)
    scale = np.abs(w).reshape(4, -1).max(1).astype(np.float32) / 7
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("Clip", ["xq", "xl", "xh"], ["xc"]),
        helper.make_node("DequantizeLinear", ["xc", "xs", "xz"], ["xd"]),
        helper.make_node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], axis=0),
        helper.make_node("Clip", ["wq", "wl", "wh"], ["wc"]),
        helper.make_node("DequantizeLinear", ["wc", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["y"]),
    ]
    held = {
        "xs": np.float32(0.1), "xz": np.uint8(0), "xl": np.uint8(0), "xh": np.uint8(15), "w": w, "ws": scale,
        "wz": np.zeros(4, np.int8), "wl": np.int8(-7), "wh": np.int8(7),
    }  # fmt: skip
    model = load(saved(tmp_path / "m.onnx", nodes, held, [1, 3, 4, 4]))
    assert model.grids is not None
    ((weight, rounded),) = model.grids.weights.items()
    assert (rounded.grid.low, rounded.grid.high) == (-7, 7) and weight in model.state
    assert np.array_equal(rounded.integers, np.rint(w / scale.reshape(4, 1, 1, 1)).astype(np.int8))
    (read,) = model.grids.of(model.input_nodes[0])
    assert (read.low, read.high) == (0, 15)


@pytest.mark.parametrize("turned", [False, True])
def test_weights_in_groups_of_four_bits(turned: bool, tmp_path: Path) -> None:
    integers = RANDOM.integers(-8, 8, (3, 16)).astype(np.int8)
    scale = RANDOM.uniform(0.1, 0.2, (3, 2)).astype(np.float32)
    real = integers * np.repeat(scale, 8, 1)
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["wd"], axis=0 if turned else 1, block_size=8)]
    if turned:
        nodes.append(helper.make_node("MatMul", ["x", "wd"], ["y"]))
    else:
        nodes.append(helper.make_node("Gemm", ["x", "wd"], ["y"], transB=1))
    held = {"w": integers.T if turned else integers, "s": scale.T if turned else scale}
    model = load(saved(tmp_path / "m.onnx", nodes, held, [2, 16], {"w": TensorProto.INT4}))
    assert model.grids is not None
    ((name, rounded),) = model.grids.weights.items()
    assert np.array_equal(rounded.integers.reshape(3, 16), integers) and rounded.grid.group == 8
    assert (rounded.grid.low, rounded.grid.high) == (-8, 7)
    np.testing.assert_allclose(model.state[name], real, rtol=1e-6)


def test_a_transposed_weight_keeps_its_integers(tmp_path: Path) -> None:
    integers = RANDOM.integers(-127, 128, (5, 3)).astype(np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], axis=0),
        helper.make_node("Transpose", ["wd"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "wt"], ["y"]),
    ]
    held = {"w": integers, "s": RANDOM.uniform(0.01, 0.02, 5).astype(np.float32), "z": np.zeros(5, np.int8)}
    model = load(saved(tmp_path / "m.onnx", nodes, held, [2, 3]))
    assert model.grids is not None
    assert [one.integers.tolist() for one in model.grids.weights.values()] == [integers.tolist()]


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
          helper.make_node("DequantizeLinear", ["q", "qs", "qz"], ["y"])], "DynamicQuantizeLinear"),
        ([helper.make_node("DequantizeLinear", ["w", "s"], ["wd"]), helper.make_node("Neg", ["wd"], ["wn"]),
          helper.make_node("MatMul", ["x", "wn"], ["y"])], "changed before it is used"),
        ([helper.make_node("QuantizeLinear", ["x", "each", "zero"], ["q"], axis=1),
          helper.make_node("DequantizeLinear", ["q", "each", "zero"], ["y"], axis=1)], "a scale for each channel"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused(nodes: list[Any], said: str, tmp_path: Path) -> None:
    held = {
        "w": np.ones((3, 2), np.int8), "s": np.float32(0.1), "each": np.ones(3, np.float32),
        "zero": np.zeros(3, np.int8),
    }  # fmt: skip
    with pytest.raises(UnsupportedError, match=said):
        load(saved(tmp_path / "m.onnx", nodes, held, [2, 3]))
