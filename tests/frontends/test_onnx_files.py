"""ONNX files that are damaged, foreign or hostile: a clear refusal each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeq.cli.app import run
from edgeq.errors import EdgeqError, UnsupportedError, UsageError
from edgeq.frontends.load import load
from edgeq.frontends.onnx import operators
from edgeq.frontends.onnx.operators.node import Operator


def model_of(
    nodes: list[Any], *, shape: Any = (1, 3, 6, 6), opset: int = 17, held: Any = (), **more: Any
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [one if isinstance(one, TensorProto) else numpy_helper.from_array(*one) for one in held],
    )
    imports = [helper.make_opsetid("", opset), *more.pop("imports", ())]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, **more)


WEIGHT = (np.random.default_rng(0).normal(0, 1, (4, 3, 3, 3)).astype(np.float32), "w")
CONV = helper.make_node("Conv", ["x", "w"], ["c"], name="first")
RELU = helper.make_node("Relu", ["c"], ["y"], name="second")


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model_of([CONV, RELU], held=[WEIGHT])), path)
    return path


def refused(model: onnx.ModelProto, path: Path, kind: type[EdgeqError] = UsageError) -> str:
    path.write_bytes(model.SerializeToString())
    with pytest.raises(kind) as error:
        load(path)
    assert error.value.remedy and path.name in str(error.value)
    return str(error.value)


def test_damaged_bytes(good: Path, tmp_path: Path) -> None:
    """What is read after all answers as ONNX Runtime does on the same bytes: it was compared."""
    data, random = good.read_bytes(), np.random.default_rng(0)
    refusals = 0
    for number in range(24):
        broken = bytearray(data)
        if number < 8:
            broken = broken[: random.integers(3, len(data))]
        else:
            for place in random.integers(0, len(data) - 440 if number % 2 else len(data), 3):
                broken[place] ^= 1 << random.integers(8)
        path = tmp_path / f"broken{number}.onnx"
        path.write_bytes(bytes(broken))
        try:
            load(path)
        except EdgeqError as error:
            refusals += 1
            assert error.remedy
    assert refusals > 8


def test_a_graph_that_does_not_hang_together(tmp_path: Path) -> None:
    refused(model_of([RELU, CONV], held=[WEIGHT]), tmp_path / "order.onnx")
    refused(model_of([helper.make_node("Relu", ["none"], ["y"])]), tmp_path / "missing.onnx")
    refused(model_of([]), tmp_path / "empty.onnx")
    short = numpy_helper.from_array(*WEIGHT)
    short.raw_data = short.raw_data[:-4]
    refused(model_of([CONV, RELU], held=[short]), tmp_path / "short.onnx")


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    weight = WEIGHT[0].copy()
    weight[0, 0] = np.nan
    assert "NaN" in refused(model_of([CONV, RELU], held=[(weight, "w")]), tmp_path / "nan.onnx")


@pytest.mark.parametrize("place", ["../secret.bin", "/etc/passwd", "a/../../secret.bin", "link.bin", "none.bin", ""])
def test_data_outside_of_the_folder(place: str, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(b"\1" * 4096)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    weight = numpy_helper.from_array(*WEIGHT)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=place)
    weight.external_data.add(key="length", value="432")
    refused(model_of([CONV, RELU], held=[weight]), folder / "m.onnx")


@pytest.mark.parametrize("said", [{"offset": "4000"}, {"length": "100000"}, {"offset": "-4"}, {"length": "many"}])
def test_data_that_is_not_there(said: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"\1" * 432)
    weight = numpy_helper.from_array(*WEIGHT)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", **said}.items():
        weight.external_data.add(key=key, value=value)
    refused(model_of([CONV, RELU], held=[weight]), tmp_path / "m.onnx")


def test_operators_of_others(tmp_path: Path) -> None:
    node = helper.make_node("FusedConv", ["x", "w"], ["y"], name="fused", domain="com.microsoft")
    foreign = model_of([node], held=[WEIGHT], imports=[helper.make_opsetid("com.microsoft", 1)])
    assert "FusedConv" in refused(foreign, tmp_path / "m.onnx", UnsupportedError)
    assert "version 8" in refused(
        model_of([CONV, RELU], held=[WEIGHT], opset=8), tmp_path / "old.onnx", UnsupportedError
    )


def test_a_loop(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Neg", ["v"], ["w"])],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("v", TensorProto.FLOAT, None)],
        [info("on", TensorProto.BOOL, []), info("w", TensorProto.FLOAT, None)],
    )  # fmt: skip
    node = helper.make_node("Loop", ["n", "", "x"], ["y"], name="again", body=body)
    said = refused(model_of([node], held=[(np.array(3), "n")]), tmp_path / "m.onnx", UnsupportedError)
    assert "Loop" in said and "again" in said


def test_a_branch_on_a_value(tmp_path: Path) -> None:
    graphs = {
        name: helper.make_graph(
            [helper.make_node(op, ["x"], [op])], op, [], [helper.make_tensor_value_info(op, 1, None)]
        )
        for name, op in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0), helper.make_node("Cast", ["m"], ["b"], to=9),
        helper.make_node("If", ["b"], ["y"], name="branch", **graphs),
    ]  # fmt: skip
    assert "depends on a value" in refused(model_of(nodes), tmp_path / "m.onnx", UnsupportedError)


def test_a_function_is_put_in_place_and_one_that_calls_itself_is_refused(tmp_path: Path) -> None:
    def function(name: str, calls: str, domain: str) -> onnx.FunctionProto:
        node = helper.make_node(calls, ["a"], ["b"], domain=domain)
        return helper.make_function(
            "mine", name, ["a"], ["b"], [node], [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
        )

    node, imports = helper.make_node("One", ["x"], ["y"], domain="mine"), [helper.make_opsetid("mine", 1)]
    model = model_of([node], imports=imports, functions=[function("One", "Two", "mine"), function("Two", "Relu", "")])
    onnx.save(model, tmp_path / "m.onnx")
    assert [group.op for group in load(tmp_path / "m.onnx").groups] == ["relu"]
    model = model_of(
        [node], imports=imports, functions=[function("One", "Two", "mine"), function("Two", "One", "mine")]
    )
    assert "Cycle detected" in refused(model, tmp_path / "m.onnx")


def test_functions_that_stand_for_more_than_memory_holds(tmp_path: Path) -> None:
    imports, functions = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)], []
    for number in range(30):
        op, domain = (f"F{number + 1}", "mine") if number < 29 else ("Relu", "")
        nodes = [helper.make_node(op, [a], [b], domain=domain) for a, b in (("a", "t"), ("t", "b"))]
        functions.append(helper.make_function("mine", f"F{number}", ["a"], ["b"], nodes, imports))
    node = helper.make_node("F0", ["x"], ["y"], domain="mine")
    model = model_of([node], imports=imports[1:], functions=functions)
    assert "operators" in refused(model, tmp_path / "m.onnx", UnsupportedError)


def test_branches_have_names_of_their_own(tmp_path: Path) -> None:
    def branch(nodes: list[Any], output: str) -> Any:
        return helper.make_graph(nodes, "b", [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])

    constant = numpy_helper.from_array(np.array([1, 2, 3, 4], np.float32), "v")
    other = branch([helper.make_node("Neg", ["x"], ["t2"])], "t2")
    first = branch([helper.make_node("Constant", [], ["t"], value=constant)], "t")
    second = branch([helper.make_node("Neg", ["x"], ["t"]), helper.make_node("Mul", ["t", "x"], ["u"])], "u")
    nodes = [
        helper.make_node("If", ["c"], ["r"], then_branch=first, else_branch=other),
        helper.make_node("If", ["c"], ["r2"], then_branch=second, else_branch=other),
        helper.make_node("Add", ["r", "r2"], ["y"]),
    ]
    onnx.save(model_of(nodes, shape=[1, 4], held=[(np.array(True), "c")]), tmp_path / "m.onnx")
    assert load(tmp_path / "m.onnx").output_names == ("y",)


@pytest.mark.parametrize("scale", [0.0, -0.1, np.nan, np.inf, [0.1, 0.1, 0.1]])
@pytest.mark.parametrize("flows", [False, True])
def test_scales_that_are_none(scale: Any, flows: bool, tmp_path: Path) -> None:
    held = [(np.float32(scale), "s"), (np.zeros(np.shape(scale), np.int8), "z"), (np.ones((4, 4), np.int8), "w")]
    if flows:
        nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q", axis=0),
                 helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=0)]  # fmt: skip
    else:
        nodes = [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], name="q"),
                 helper.make_node("MatMul", ["x", "d"], ["y"])]  # fmt: skip
    refused(model_of(nodes, shape=[1, 4], held=held), tmp_path / "m.onnx", EdgeqError)


@pytest.mark.parametrize("shape", [[1 << 40, 4], [1, 1 << 30], [1 << 62, 4], [1, 0]])
def test_inputs_that_no_machine_holds(shape: list[int], tmp_path: Path) -> None:
    refused(model_of([helper.make_node("Relu", ["x"], ["y"])], shape=shape), tmp_path / "m.onnx")


def test_an_input_of_one_number(tmp_path: Path) -> None:
    onnx.save(model_of([helper.make_node("Relu", ["x"], ["y"])], shape=[]), tmp_path / "m.onnx")
    assert load(tmp_path / "m.onnx").inputs[0].shape == ()


def test_sizes_that_the_file_leaves_open(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    said = refused(model_of([CONV, RELU], held=[WEIGHT], shape=["n", 3, "h", "w"]), path)
    assert "--input x:" in said
    assert load(path, inputs=["x:1x3x8x10"]).inputs[0].shape == (None, 3, 8, 10)
    with pytest.raises(UsageError, match="not \\[1, 4, 8, 10\\]"):
        load(path, inputs=["1x4x8x10"])


def test_a_batch_that_the_file_fixes_stays(good: Path) -> None:
    assert load(good).inputs[0].shape == (1, 3, 6, 6)


def test_other_answers_are_noticed(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(operators.OPERATORS, "Relu", Operator(lambda node, x: x.abs()))
    with pytest.raises(UnsupportedError, match="answers otherwise than ONNX Runtime"):
        load(good)


def test_inspect_names_it(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(good), "--target", "x86-avx2"]) == 0
    told = capsys.readouterr().out
    assert "ONNX" in told and "first" in told
    assert run(["inspect", str(good), "--arch", "a:b"]) == 2
