"""TensorRT's documented rules: a file that holds them, that file broken in one way each, and the command that tells."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeq.cli.app import run
from edgeq.errors import UsageError
from edgeq.records.schema import Conformance
from edgeq.records.wording import conformance_text
from edgeq.runtimes import NOT_RUN

CHANNELS, TOKENS, BLOCK = 8, 64, 64
BOOK = dataclasses.replace(NOT_RUN["tensorrt"], compiler=lambda path: None)
"""The rules as they are documented; NVIDIA's compiler has a test of its own."""
Break = Callable[[onnx.ModelProto], None]


def right() -> onnx.ModelProto:
    """A convolution with a residual connection and an activation, then a product with int4 weights by blocks."""
    numbers = np.random.default_rng(0)
    nodes, held = [], []

    def constant(name: str, kind: int, shape: tuple[int, ...], values: np.ndarray) -> str:
        held.append(helper.make_tensor(name, kind, shape, values.reshape(-1).tolist()))
        return name

    def pair(value: str, scale: float) -> str:
        ends = [
            constant(f"{value}_scale", TensorProto.FLOAT, (), np.array(scale)),
            constant(f"{value}_zero", TensorProto.INT8, (), np.array(0)),
        ]
        nodes.append(helper.make_node("QuantizeLinear", [value, *ends], [f"{value}_q"], f"{value}/quantize"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{value}_q", *ends], [f"{value}_r"], f"{value}/dequantize"))
        return f"{value}_r"

    def conv(name: str, given: str) -> str:
        shape = (CHANNELS, CHANNELS, 1, 1)
        ends = [
            constant(f"{name}_w", TensorProto.INT8, shape, numbers.integers(-127, 128, shape)),
            constant(f"{name}_w_scale", TensorProto.FLOAT, (CHANNELS,), numbers.uniform(0.01, 0.02, CHANNELS)),
            constant(f"{name}_w_zero", TensorProto.INT8, (CHANNELS,), np.zeros(CHANNELS)),
        ]
        nodes.append(helper.make_node("DequantizeLinear", ends, [f"{name}_wr"], f"{name}/weight", axis=0))
        bias = constant(f"{name}_bias", TensorProto.FLOAT, (CHANNELS,), numbers.normal(size=CHANNELS))
        nodes.append(helper.make_node("Conv", [given, f"{name}_wr", bias], [name], name))
        return name

    def node(op: str, inputs: list[str], output: str) -> str:
        nodes.append(helper.make_node(op, inputs, [output], output))
        return output

    stem = pair(node("Relu", [conv("stem", pair("image", 0.05))], "stem_relu"), 0.1)
    total = node("Relu", [node("Add", [conv("inner", stem), stem], "sum")], "sum_relu")
    last = conv("last", pair(total, 0.2))
    constant("rows_shape", TensorProto.INT64, (2,), np.array([0, -1]))
    rows = node("Reshape", [last, "rows_shape"], "rows")
    constant("few_w", TensorProto.INT4, (CHANNELS, TOKENS * 2), numbers.integers(-8, 8, (CHANNELS, TOKENS * 2)))
    shape = (CHANNELS, TOKENS * 2 // BLOCK)
    constant("few_w_scale", TensorProto.FLOAT, shape, numbers.uniform(0.01, 0.02, shape))
    nodes.append(
        helper.make_node(
            "DequantizeLinear", ["few_w", "few_w_scale"], ["few_wr"], "few/weight", axis=1, block_size=BLOCK
        )
    )
    nodes.append(helper.make_node("Gemm", [rows, "few_wr"], ["answer"], "few", transB=1))
    given = helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, CHANNELS, 4, 4))
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, (1, CHANNELS))
    graph = helper.make_graph(nodes, "right", [given], [answer], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def replace(model: onnx.ModelProto, name: str, kind: int, values: object) -> None:
    """Gives a constant other values."""
    array = np.asarray(values)
    old = next(held for held in model.graph.initializer if held.name == name)
    old.CopyFrom(helper.make_tensor(name, kind, array.shape, array.reshape(-1).tolist()))


def held(model: onnx.ModelProto, tmp_path: Path) -> Conformance:
    path = tmp_path / "file.onnx"
    onnx.save(model, path)
    return BOOK.hold(path)


def asymmetric(model: onnx.ModelProto) -> None:
    replace(model, "image_zero", TensorProto.INT8, 5)


def unsigned(model: onnx.ModelProto) -> None:
    replace(model, "image_zero", TensorProto.UINT8, 0)


def nothing_said(model: onnx.ModelProto) -> None:
    """Without a zero point integers are uint8, says ONNX."""
    for end in ("quantize", "dequantize"):
        del node_of(model, f"image/{end}").input[2]


def sixteen_bits(model: onnx.ModelProto) -> None:
    replace(model, "stem_relu_zero", TensorProto.INT16, 0)


def negative_scale(model: onnx.ModelProto) -> None:
    scales = np.full(CHANNELS, 0.01)
    scales[3] = -0.01
    replace(model, "inner_w_scale", TensorProto.FLOAT, scales)


def computed_scale(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("ReduceMax", ["image"], ["found"], "largest", keepdims=0))
    for end in ("quantize", "dequantize"):
        node_of(model, f"image/{end}").input[1] = "found"


def by_channel(model: onnx.ModelProto) -> None:
    replace(model, "stem_relu_scale", TensorProto.FLOAT, np.full(CHANNELS, 0.1))
    replace(model, "stem_relu_zero", TensorProto.INT8, np.zeros(CHANNELS, int))


def other_axis(model: onnx.ModelProto) -> None:
    node_of(model, "inner/weight").attribute[0].i = 1


def few_scales(model: onnx.ModelProto) -> None:
    replace(model, "inner_w_scale", TensorProto.FLOAT, np.full(CHANNELS - 1, 0.1))
    replace(model, "inner_w_zero", TensorProto.INT8, np.zeros(CHANNELS - 1, int))


def small_blocks(model: onnx.ModelProto) -> None:
    replace(model, "few_w_scale", TensorProto.FLOAT, np.full((CHANNELS, TOKENS * 2 // 32), 0.1))
    next(a for a in node_of(model, "few/weight").attribute if a.name == "block_size").i = 32


def uneven_blocks(model: onnx.ModelProto) -> None:
    replace(model, "few_w_scale", TensorProto.FLOAT, np.full((CHANNELS, 3), 0.1))


def int8_blocks(model: onnx.ModelProto) -> None:
    replace(model, "few_w", TensorProto.INT8, np.ones((CHANNELS, TOKENS * 2), int))


def odd(model: onnx.ModelProto) -> None:
    replace(model, "few_w", TensorProto.INT4, np.ones((TOKENS * 2, CHANNELS - 1), int))
    replace(model, "few_w_scale", TensorProto.FLOAT, np.full((2, CHANNELS - 1), 0.1))
    node_of(model, "few").attribute[0].i = 0
    next(a for a in node_of(model, "few/weight").attribute if a.name == "axis").i = 0


def int4_convolution(model: onnx.ModelProto) -> None:
    replace(model, "inner_w", TensorProto.INT4, np.ones((CHANNELS, CHANNELS, 1, 2), int))
    replace(model, "inner_w_zero", TensorProto.INT4, np.zeros(CHANNELS, int))


def int4_activation(model: onnx.ModelProto) -> None:
    replace(model, "sum_relu_zero", TensorProto.INT4, 0)


def old(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 19


def other_scale(model: onnx.ModelProto) -> None:
    node_of(model, "stem_relu/dequantize").input[1] = "image_scale"


def read_by_others(model: onnx.ModelProto) -> None:
    node_of(model, "inner").input[0] = "stem_relu_q"


def integer_bias(model: onnx.ModelProto) -> None:
    replace(model, "inner_bias", TensorProto.INT32, np.ones(CHANNELS, int))
    bias = helper.make_node("DequantizeLinear", ["inner_bias", "inner_w_scale"], ["bias_r"], "inner/bias", axis=0)
    model.graph.node.insert(0, bias)
    node_of(model, "inner").input[2] = "bias_r"


def in_every_call(model: onnx.ModelProto) -> None:
    ends = ["rows_q", "rows_scale", "rows_zero"]
    model.graph.node.append(helper.make_node("DynamicQuantizeLinear", ["rows"], ends, "rows/rounded"))


def float_input(model: onnx.ModelProto) -> None:
    node_of(model, "last").input[0] = "sum_relu"


def one_side(model: onnx.ModelProto) -> None:
    """Of the residual addition neither the convolution's side nor the other is quantized."""
    node_of(model, "sum").input[1] = "stem_relu"


def mixed(model: onnx.ModelProto) -> None:
    replace(model, "inner_w", TensorProto.FLOAT8E4M3FN, np.ones((CHANNELS, CHANNELS, 1, 1)))
    replace(model, "inner_w_zero", TensorProto.FLOAT8E4M3FN, np.zeros(CHANNELS))


def transposed(model: onnx.ModelProto) -> None:
    node_of(model, "inner").op_type = "ConvTranspose"


BROKEN: list[tuple[str, Break, str]] = [
    ("zero point", asymmetric, "image/quantize"),
    ("quantized type", unsigned, "image/quantize"),
    ("quantized type", nothing_said, "image/quantize"),
    ("quantized type", sixteen_bits, "stem_relu/quantize"),
    ("scale", negative_scale, "inner/weight"),
    ("scale", computed_scale, "image/quantize"),
    ("activation per tensor", by_channel, "stem_relu/quantize"),
    ("channel axis", other_axis, "inner/weight"),
    ("channel axis", few_scales, "inner/weight"),
    ("block", small_blocks, "few/weight"),
    ("block", uneven_blocks, "few/weight"),
    ("block", int8_blocks, "few/weight"),
    ("int4 packing", odd, "few/weight"),
    ("int4 weight only", int4_convolution, "inner/weight"),
    ("int4 weight only", int4_activation, "sum_relu/quantize"),
    ("opset", old, "few/weight"),
    ("pair", other_scale, "stem_relu/dequantize"),
    ("pair", read_by_others, "stem_relu/quantize"),
    ("bias", integer_bias, "inner/bias"),
    ("operator", in_every_call, "rows/rounded"),
    ("weighted inputs", float_input, "last"),
    ("residual", one_side, "sum"),
    ("one type", mixed, "inner"),
    ("transposed convolution", transposed, "inner"),
]

ALSO: dict[Break, set[str]] = {
    sixteen_bits: {"residual"},
    int8_blocks: {"weighted inputs"},
    int4_convolution: {"residual"},
    read_by_others: {"weighted inputs", "residual"},
}
"""What else falls with a change: layers that do not compute on 8 bits any more."""


def test_a_file_that_holds_the_rules_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = held(right(), tmp_path)
    assert found.breaches == [] and found.rules == len(BOOK.rules)
    assert run(["inspect", str(tmp_path / "file.onnx"), "--target", "nvidia-gpu"]) == 0
    said = capsys.readouterr().out
    assert "not executed" in said and "holds TensorRT's rules for explicit quantization" in said
    assert "as documented" in said


@pytest.mark.parametrize(("rule", "breaks", "where"), BROKEN, ids=[f"{r}-{b.__name__}" for r, b, _ in BROKEN])
def test_each_rule_is_told_by_name_where_it_is_broken(rule: str, breaks: Break, where: str, tmp_path: Path) -> None:
    model = right()
    breaks(model)
    found = held(model, tmp_path)
    mine = [breach for breach in found.breaches if breach.rule == rule]
    assert where in [breach.node for breach in mine]
    assert all(breach.remedy and breach.source.startswith("https://") and breach.cause for breach in mine)
    assert {breach.rule for breach in found.breaches} == {rule} | ALSO.get(breaks, set())


def test_every_rule_is_broken_by_a_file() -> None:
    assert {rule for rule, _, _ in BROKEN} == {rule.name for rule in BOOK.rules}


def test_weights_that_are_transposed_keep_their_axis(tmp_path: Path) -> None:
    """PyTorch exports the weight of a linear layer as [outputs, inputs], in front of a Transpose and a MatMul."""
    model = right()
    few = node_of(model, "few")
    few.op_type, few.input[1] = "MatMul", "turned"
    del few.attribute[:]
    replace(model, "few_w", TensorProto.INT8, np.ones((CHANNELS, TOKENS * 2), int))
    replace(model, "few_w_scale", TensorProto.FLOAT, np.full(CHANNELS, 0.1))
    weight = node_of(model, "few/weight")
    del weight.attribute[:]
    weight.attribute.append(helper.make_attribute("axis", 0))
    position = list(model.graph.node).index(few)
    model.graph.node.insert(position, helper.make_node("Transpose", ["few_wr"], ["turned"], "turn", perm=[1, 0]))
    found = held(model, tmp_path)
    assert [breach.rule for breach in found.breaches] == ["weighted inputs"]
    weight.attribute[0].i = 1
    replace(model, "few_w_scale", TensorProto.FLOAT, np.full(TOKENS * 2, 0.1))
    assert "channel axis" in {breach.rule for breach in held(model, tmp_path).breaches}


def test_rules_hold_within_branches(tmp_path: Path) -> None:
    inner = [
        helper.make_node("QuantizeLinear", ["image", "s", "z"], ["q"], "inside/quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["r"], "inside/dequantize"),
    ]
    ends = [numpy_helper.from_array(np.array(0.1, np.float32), "s"), numpy_helper.from_array(np.array(3, np.int8), "z")]
    out = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    branch = helper.make_graph(inner, "branch", [], [out], ends)
    other = helper.make_graph([helper.make_node("Identity", ["image"], ["r2"])], "other", [], [
        helper.make_tensor_value_info("r2", TensorProto.FLOAT, None)
    ])  # fmt: skip
    node = helper.make_node("If", ["c"], ["answer"], "choose", then_branch=branch, else_branch=other)
    given = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, (4,)),
        helper.make_tensor_value_info("c", TensorProto.BOOL, ()),
    ]
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, (4,))
    model = helper.make_model(
        helper.make_graph([node], "branches", given, [answer]), opset_imports=[helper.make_opsetid("", 21)]
    )
    assert {breach.node for breach in held(model, tmp_path).breaches} == {"inside/quantize", "inside/dequantize"}


def test_functions_are_looked_into_and_bare_nodes_refused(tmp_path: Path) -> None:
    model = right()
    node_of(model, "sum_relu").domain, node_of(model, "sum_relu").op_type = "mine", "Kept"
    body = [helper.make_node("Relu", ["x"], ["y"])]
    model.functions.append(helper.make_function("mine", "Kept", ["x"], ["y"], body, [helper.make_opsetid("", 21)]))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    assert held(model, tmp_path).breaches == []
    del node_of(model, "image/quantize").input[:]
    with pytest.raises(UsageError, match="image/quantize lacks inputs"):
        held(model, tmp_path)


def test_the_command_tells_rule_place_and_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NOT_RUN, "tensorrt", BOOK)
    model = right()
    asymmetric(model)
    one_side(model)
    held(model, tmp_path)
    path = str(tmp_path / "file.onnx")
    assert run(["inspect", path, "--target", "nvidia-gpu", "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    (target,) = answer["targets"]
    assert (target["target"], target["runtime"]) == ("nvidia-gpu", "tensorrt")
    told = {breach["rule"]: breach for breach in target["breaches"]}
    assert set(told) == {"zero point", "residual"}
    assert told["zero point"]["refused"] and not told["residual"]["refused"]
    assert run(["inspect", path, "--target", "nvidia-gpu"]) == 3
    captured = capsys.readouterr()
    assert "its zero point is 5" in captured.out and "\n  remedy:" in captured.out and "https://" in captured.out
    assert "zero point, residual" in captured.err


def test_another_quantizer_has_to_be_told(tmp_path: Path) -> None:
    """ONNX Runtime's own breaks rules by default, and holds them with the settings of NVIDIA's Model Optimizer."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    shape = (CHANNELS, CHANNELS, 3, 3)
    weights = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "w0", "b"], ["first"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["first"], ["relu"], "relu"),
        helper.make_node("Conv", ["relu", "w1", "b"], ["second"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["second", "relu"], ["sum"], "sum"),
    ]
    held_in_it = [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)]
    held_in_it.append(numpy_helper.from_array(np.ones(CHANNELS, np.float32), "b"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, CHANNELS, 4, 4)) for name in ("image", "sum")]
    graph = helper.make_graph(nodes, "float", ends[:1], ends[1:], held_in_it)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "f.onnx")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            self.left = list(np.random.default_rng(2).normal(size=(4, 1, CHANNELS, 4, 4)).astype(np.float32))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return {"image": self.left.pop()} if self.left else None

    def rules(**how: object) -> set[str]:
        quantization.quantize_static(tmp_path / "f.onnx", tmp_path / "q.onnx", Reader(), **how)
        return {breach.rule for breach in BOOK.hold(tmp_path / "q.onnx").breaches}

    assert {"bias", "quantized type", "zero point"} <= rules(activation_type=quantization.QuantType.QUInt8)
    told = {"ActivationSymmetric": True, "QuantizeBias": False, "AddQDQPairToWeight": True}
    assert rules(per_channel=True, extra_options=told) == set()


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x0a\x12\x00"])
def test_what_is_no_model_is_refused(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file.onnx"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        BOOK.hold(path)
    assert run(["inspect", str(path), "--target", "nvidia-gpu"]) == 2
    assert run(["inspect", str(tmp_path / "none.onnx"), "--target", "nvidia-gpu"]) == 2
    assert "none.onnx" in capsys.readouterr().err


def test_for_a_target_that_is_run_it_is_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held(right(), tmp_path)
    assert run(["inspect", str(tmp_path / "file.onnx"), "--target", "x86-avx512"]) == 0
    assert "multiply-accumulates a sample" in capsys.readouterr().out


def test_what_costs_time_alone_is_told_as_that(tmp_path: Path) -> None:
    model = right()
    one_side(model)
    slow = held(model, tmp_path)
    assert slow.refusals == []
    said = conformance_text(slow)
    assert said.startswith("not executed; holds") and "slower than it might be: sum: " in said
    asymmetric(model)
    refused = held(model, tmp_path)
    assert [breach.rule for breach in refused.refusals] == ["zero point", "zero point"]
    assert conformance_text(refused).startswith("not executed; breaks") and f"of {len(BOOK.rules)}" in said
