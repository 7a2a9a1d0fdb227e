"""The audit passes what was planned and refuses every other file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models as small
from onnx import numpy_helper

from edgeq.devices import Candidate, open_device
from edgeq.export.audit import AuditError, audit, confirm
from edgeq.records.schema import Audit, Placement

NAMES = list(small.SMALL)


def audited(made: small.Written, path: Path | None = None) -> Audit:
    return audit(made.model, made.quantized, made.stored(path))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", NAMES)
def test_written_files_pass(name: str, runtime: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    made = small.written(name, runtime)
    found = audited(made)
    weights = made.quantized.weights.values()
    assert found.bytes_checked >= sum(w.integers.size for w in weights)
    assert found.tensors_checked >= 2 * len(made.quantized.weights) + 1
    kernels = made.quantized.assignment.kernels
    integer = sum(g.macs for g in made.model.groups if g.name in kernels)
    assert found.integer_mac_percent == pytest.approx(100 * integer / made.model.macs)
    assert {f.layer for f in found.float_operators} == {g.name for g in made.model.groups if g.name not in kernels}
    assert all(f.reason for f in found.float_operators)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["mlp", "two-outputs", "input-to-end"])
def test_files_with_integer_ends_pass(name: str, runtime: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    made = small.written(name, runtime, "integer")
    stored = made.stored()
    assert set(made.model.input_nodes) | set(made.model.output_nodes) <= set(stored.tensors)
    assert audited(made).integer_mac_percent == 100.0


def flip_one_byte(array: np.ndarray) -> None:
    array.reshape(-1).view(np.uint8)[3] ^= 1


def one_step(array: np.ndarray) -> None:
    array.reshape(-1)[-1] += 1


def next_float(array: np.ndarray) -> None:
    array.reshape(-1)[-1:] = np.nextafter(array.reshape(-1)[-1:], np.float32(1))


def swap(array: np.ndarray) -> None:
    array.reshape(-1)[[0, 1]] = array.reshape(-1)[[1, 0]]


def with_changed(made: small.Written, name: str, change: Callable[[np.ndarray], None], folder: Path) -> Path:
    proto = onnx.load(made.path)
    (tensor,) = [i for i in proto.graph.initializer if i.name == name]
    array = numpy_helper.to_array(tensor).copy()
    before = array.copy()
    change(array)
    assert not np.array_equal(before, array)
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    path = folder / "changed.onnx"
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize(
    ("constant", "change", "where", "what"),
    [
        ("expand.weight_quantized", flip_one_byte, "layer expand", "other weights"),
        ("depthwise.weight_quantized", one_step, "layer depthwise", "other weights"),
        ("depthwise.weight_quantized_scale", next_float, "layer depthwise", "weight scales"),
        ("project.weight_quantized_scale", swap, "layer project", "weight scales"),
        ("project.weight_quantized_zero_point", one_step, "layer project", "weight zero points"),
        ("expand.bias_quantized", swap, "layer expand", "another bias"),
        ("project.bias_quantized", one_step, "layer project", "another bias"),
        ("expand.bias_quantized_scale", next_float, "layer expand", "bias scales"),
        ("image_scale", next_float, "tensor image", "scale"),
        ("image_zero_point", one_step, "tensor image", "zero point"),
    ],
)
def test_one_changed_number_is_found_and_named(
    constant: str, change: Callable[[np.ndarray], None], where: str, what: str, tmp_path: Path
) -> None:
    made = small.written("depthwise", "onnxruntime")
    path = with_changed(made, constant, change, tmp_path)
    with pytest.raises(AuditError) as caught:
        audited(made, path)
    assert caught.value.where == where
    assert what in str(caught.value)


def test_a_bias_of_another_layer_is_found(tmp_path: Path) -> None:
    made = small.written("shared-without-norm", "onnxruntime")
    proto = onnx.load(made.path)
    first, second = (i for i in proto.graph.initializer if i.name.endswith("bias_quantized"))
    first.name, second.name = second.name, first.name
    onnx.save(proto, tmp_path / "swapped.onnx")
    with pytest.raises(AuditError, match="another bias"):
        audited(made, tmp_path / "swapped.onnx")


def test_a_pair_that_was_not_written_is_found(tmp_path: Path) -> None:
    made = small.written("depthwise", "onnxruntime")
    proto = onnx.load(made.path)
    (pair,) = [n for n in proto.graph.node if n.name == "image_dequantize"]
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            if name == pair.output[0]:
                node.input[index] = "image"
    for node in [n for n in proto.graph.node if n.name in ("image_quantize", "image_dequantize")]:
        proto.graph.node.remove(node)
    onnx.save(proto, tmp_path / "dropped.onnx")
    with pytest.raises(AuditError, match="not quantized") as caught:
        audited(made, tmp_path / "dropped.onnx")
    assert caught.value.where == "tensor image"


def test_a_layer_left_in_float_is_found(tmp_path: Path) -> None:
    made = small.written("mlp", "onnxruntime")
    with pytest.raises(AuditError, match="not stored as integers") as caught:
        audited(made, made.exporter.float_model("onnx")[0])
    assert caught.value.where == "layer first"


def place(name: str, op: str, integer: bool | None) -> Placement:
    return Placement(name=name, op=op, where="CPUExecutionProvider", integer=integer, microseconds=None)


@pytest.mark.parametrize("suffix", ["", "_token_12", "/MatMulAddFusion", "/WithoutBiases", "/fused"])
def test_a_layer_that_the_runtime_ran_in_float_does_not_count(suffix: str) -> None:
    made = small.written("depthwise", "onnxruntime")
    good = audited(made)
    macs = {g.name: g.macs for g in made.model.groups}
    found = confirm(
        made.model,
        made.quantized,
        good,
        [
            place("expand_token_1", "QLinearConv", True),
            place(f"depthwise{suffix}", "Conv", False),
            place("project_token_7", "QLinearConv", None),
            place("Transpose", "Transpose", None),
        ],
    )
    assert found.integer_mac_percent == pytest.approx(100 * (1 - macs["depthwise"] / sum(macs.values())))
    (refused,) = found.float_operators
    assert refused.layer == "depthwise" and "Conv" in refused.reason
    assert found.tensors_checked == good.tensors_checked


def test_layers_that_were_planned_in_float_stay_so() -> None:
    made = small.written("upconv", "onnxruntime")
    written = audited(made)
    found = confirm(made.model, made.quantized, written, [place("grouped", "ConvTranspose", False)])
    assert found == written
    assert 0 < found.integer_mac_percent < 100


@pytest.mark.parametrize(("name", "runtime"), [("depthwise", "onnxruntime"), ("token-mlp", "onnxruntime"),
                                              ("residual", "openvino")])  # fmt: skip
def test_the_runtimes_own_word_confirms_the_file(name: str, runtime: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    made = small.written(name, runtime)
    rows = open_device("local").placement(Candidate(made.path, made.quantized.runtime.name), small.arrays(name, 1))
    written = audited(made)
    assert confirm(made.model, made.quantized, written, rows) == written
