"""TFLite files come in as LiteRT answers them; damaged and foreign ones get a clear refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

import edgeq
from edgeq.cli.app import run
from edgeq.errors import EdgeqError, UnsupportedError, UsageError
from edgeq.frontends.load import load
from edgeq.frontends.tflite import file, operators
from edgeq.frontends.tflite.graph import network_of
from edgeq.frontends.tflite.operators.node import Operator

RANDOM = np.random.default_rng(0)
KINDS = {"float32": 0, "int32": 2, "uint8": 3, "int64": 4, "bool": 6, "int8": 9}


def some(*shape: int) -> np.ndarray:
    return RANDOM.uniform(-2, 2, shape).astype(np.float32)


def ints(*values: Any) -> np.ndarray:
    return np.array(values, np.int32)


def saved(
    path: Path,
    op: str,
    inputs: list[Any],
    output: tuple[int, ...],
    options: Any = None,
    grids: dict[str, Any] | None = None,
) -> Path:
    """A file of one operator, from `x0`, `x1`, ... to `y`; inputs that are arrays are constants, shapes are given."""
    tensors, buffers, grids = [], [schema.BufferT()], grids or {}

    def tensor(name: str, shape: Any, dtype: str, data: np.ndarray | None = None) -> int:
        one = schema.TensorT()
        one.name, one.shape, one.type, one.buffer = name, np.array(shape, np.int32), KINDS[dtype], 0
        if name in grids:
            said = schema.QuantizationParametersT()
            scale, zero, said.quantizedDimension = grids[name]
            said.scale, said.zeroPoint = np.atleast_1d(np.float32(scale)), np.atleast_1d(np.int64(zero))
            one.quantization = said
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            one.buffer = len(buffers)
            buffers.append(buffer)
        tensors.append(one)
        return len(tensors) - 1

    reads, given = [], []
    for number, one in enumerate(inputs):
        if isinstance(one, np.ndarray):
            reads.append(tensor(f"c{number}", one.shape, str(one.dtype), one))
        else:
            shape, dtype = one if isinstance(one, tuple) and isinstance(one[-1], str) else (one, "float32")
            reads.append(tensor(f"x{number}", shape, dtype))
            given.append(reads[-1])
    written = tensor("y", output, "int8" if "y" in grids else "float32")
    code, operator, graph, model = schema.OperatorCodeT(), schema.OperatorT(), schema.SubGraphT(), schema.ModelT()
    number = getattr(schema.BuiltinOperator, op)
    code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
    operator.opcodeIndex, operator.inputs, operator.outputs = (
        0,
        np.array(reads, np.int32),
        np.array([written], np.int32),
    )
    if options is not None:
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        operator.builtinOptions = options
    graph.tensors, graph.operators, graph.name = tensors, [operator], "main"
    graph.inputs, graph.outputs = np.array(given, np.int32), np.array([written], np.int32)
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], buffers
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def with_options(kind: str, **values: Any) -> Any:
    found = getattr(schema, f"{kind}OptionsT")()
    for name, value in values.items():
        assert hasattr(found, name)
        setattr(found, name, value)
    return found


IMAGE = (1, 6, 7, 3)
CONV: dict[str, Any] = {"strideH": 2, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
POOL: dict[str, Any] = {"filterHeight": 3, "filterWidth": 2, "strideH": 2, "strideW": 2}
CASES: dict[str, tuple[str, list[Any], tuple[int, ...], Any]] = {
    "conv same": (
        "CONV_2D",
        [IMAGE, some(4, 3, 3, 3), some(4)],
        (1, 3, 7, 4),
        with_options("Conv2D", padding=0, fusedActivationFunction=1, **CONV),
    ),
    "conv valid": (
        "CONV_2D",
        [IMAGE, some(4, 3, 3, 3), some(4)],
        (1, 2, 5, 4),
        with_options("Conv2D", padding=1, **CONV),
    ),
    "depthwise": (
        "DEPTHWISE_CONV_2D",
        [IMAGE, some(1, 3, 3, 6), some(6)],
        (1, 3, 7, 6),
        with_options("DepthwiseConv2D", padding=0, depthMultiplier=2, fusedActivationFunction=3, **CONV),
    ),
    "transposed": (
        "TRANSPOSE_CONV",
        [ints(1, 12, 14, 4), some(4, 3, 3, 3), IMAGE],
        (1, 12, 14, 4),
        with_options("TransposeConv", padding=0, strideH=2, strideW=2),
    ),
    "fully connected": (
        "FULLY_CONNECTED",
        [(2, 5), some(3, 5), some(3)],
        (2, 3),
        with_options("FullyConnected", fusedActivationFunction=1),
    ),
    "average": ("AVERAGE_POOL_2D", [IMAGE], (1, 3, 4, 3), with_options("Pool2D", padding=0, **POOL)),
    "largest": ("MAX_POOL_2D", [IMAGE], (1, 3, 4, 3), with_options("Pool2D", padding=0, **POOL)),
    "add": ("ADD", [IMAGE, some(3)], IMAGE, with_options("Add", fusedActivationFunction=1)),
    "multiply": ("MUL", [IMAGE, (1, 1, 1, 3)], IMAGE, with_options("Mul")),
    "mean": ("MEAN", [IMAGE, ints(1, 2)], (1, 3), with_options("Reducer", keepDims=False)),
    "mean of rows": ("MEAN", [IMAGE, ints(1)], (1, 7, 3), with_options("Reducer", keepDims=False)),
    "pad": ("PAD", [IMAGE, np.array([[0, 0], [1, 2], [0, 1], [0, 0]], np.int32)], (1, 9, 8, 3), None),
    "mirror": (
        "MIRROR_PAD",
        [IMAGE, np.array([[0, 0], [1, 2], [0, 1], [0, 0]], np.int32)],
        (1, 9, 8, 3),
        with_options("MirrorPad", mode=0),
    ),
    "softmax": ("SOFTMAX", [(2, 5)], (2, 5), with_options("Softmax", beta=2.0)),
    "bilinear": ("RESIZE_BILINEAR", [IMAGE, ints(12, 10)], (1, 12, 10, 3), with_options("ResizeBilinear")),
    "bilinear half": (
        "RESIZE_BILINEAR",
        [IMAGE, ints(12, 14)],
        (1, 12, 14, 3),
        with_options("ResizeBilinear", halfPixelCenters=True),
    ),
    "nearest": (
        "RESIZE_NEAREST_NEIGHBOR",
        [IMAGE, ints(12, 10)],
        (1, 12, 10, 3),
        with_options("ResizeNearestNeighbor"),
    ),
    "strided": (
        "STRIDED_SLICE",
        [IMAGE, ints(0, 1, 0, 0), ints(1, 6, 7, 3), ints(1, 2, 1, 1)],
        (1, 3, 3),
        with_options("StridedSlice", beginMask=4, endMask=2, shrinkAxisMask=8),
    ),
    "transpose": ("TRANSPOSE", [IMAGE, ints(0, 3, 1, 2)], (1, 3, 6, 7), None),
    "swish": ("HARD_SWISH", [IMAGE], IMAGE, None),
    "leaky": ("LEAKY_RELU", [IMAGE], IMAGE, with_options("LeakyRelu", alpha=0.2)),
    "prelu": ("PRELU", [IMAGE, some(1, 1, 3)], IMAGE, None),
    "space to depth": ("SPACE_TO_DEPTH", [(1, 4, 6, 3)], (1, 2, 3, 12), with_options("SpaceToDepth", blockSize=2)),
    "depth to space": ("DEPTH_TO_SPACE", [(1, 2, 3, 12)], (1, 4, 6, 3), with_options("DepthToSpace", blockSize=2)),
    "space to batch": (
        "SPACE_TO_BATCH_ND",
        [(1, 4, 6, 3), ints(2, 2), np.array([[0, 0], [2, 0]], np.int32)],
        (4, 2, 4, 3),
        None,
    ),
    "batch to space": (
        "BATCH_TO_SPACE_ND",
        [(4, 2, 4, 3), ints(2, 2), np.array([[0, 0], [2, 0]], np.int32)],
        (1, 4, 6, 3),
        None,
    ),
    "normed": ("L2_NORMALIZATION", [(2, 5)], (2, 5), with_options("L2Norm")),
    "squared difference": ("SQUARED_DIFFERENCE", [(2, 5), some(5)], (2, 5), None),
    "tile": ("TILE", [(2, 3), ints(2, 2)], (4, 6), None),
    "largest of": ("REDUCE_MAX", [IMAGE, ints(3)], (1, 6, 7, 1), with_options("Reducer", keepDims=True)),
}


def answers(path: Path, *given: np.ndarray) -> list[np.ndarray]:
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(str(path), experimental_op_resolver_type=plain)
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), given, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


@pytest.mark.parametrize("name", CASES)
def test_an_operator(name: str, tmp_path: Path) -> None:
    op, inputs, output, options = CASES[name]
    path = saved(tmp_path / "m.tflite", op, inputs, output, options)
    given = [some(*one) for one in inputs if isinstance(one, tuple)]
    found = network_of(file.parse(path), path)(*map(torch.from_numpy, given))
    for a, b in zip(found, answers(path, *given), strict=True):
        assert tuple(a.shape) == b.shape
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-4, atol=1e-5)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.depth = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, 2, 1, groups=8)
        self.last = torch.nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.depth(torch.relu(self.first(image))))
        return self.last(x.mean((2, 3)))


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """INT8 files of a network, as edgeq writes them."""
    folder = tmp_path_factory.mktemp("build")
    torch.manual_seed(0)
    images = some(64, 3, 8, 8)
    np.savez(folder / "calib.npz", image=images)
    edgeq.deploy(
        torch.export.export(Net().eval(), (torch.from_numpy(images[:1]),)), target="x86-avx512", format="tflite",
        device="local", calibration=str(folder / "calib.npz"), evaluation=str(folder / "calib.npz"),
        limits=edgeq.Limits(allow_slower=True), out=folder / "build",
    )  # fmt: skip
    return folder / "build" / "model.tflite"


def test_integers_stay_what_they_are(build: Path, tmp_path: Path) -> None:
    model = load(build)
    assert model.kind == "TFLite" and model.grids is not None
    found = [one.integers for name, one in model.grids.weights.items() if name in model.state]
    interpreter = Interpreter(str(build))
    wanted = []
    for tensor in interpreter.get_tensor_details():
        if tensor["dtype"] == np.int8 and len(tensor["quantization_parameters"]["scales"]) and len(tensor["shape"]) > 1:
            try:
                wanted.append(sorted(interpreter.get_tensor(tensor["index"]).ravel().tolist()))
            except ValueError:  # it has a value only while it runs
                continue
    assert sorted(sorted(one.astype(int).ravel().tolist()) for one in found) == sorted(wanted)
    assert [group.op for group in model.groups if group.weight] == ["conv2d", "depthwise_conv2d", "linear"]


def test_a_layer_of_integers(tmp_path: Path) -> None:
    weight, bias = RANDOM.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8), ints(100, -50, 0, 7)
    scale = np.array([0.01, 0.02, 0.03, 0.005], np.float32)
    grids = {
        "x0": (0.05, -3, 0),
        "c1": (scale, np.zeros(4), 0),
        "c2": (scale * np.float32(0.05), np.zeros(4), 0),
        "y": (0.1, 5, 0),
    }
    options = with_options("Conv2D", padding=0, strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
    path = saved(tmp_path / "m.tflite", "CONV_2D", [((1, 6, 7, 3), "int8"), weight, bias], (1, 6, 7, 4), options, grids)
    model = load(path)
    assert model.inputs[0].dtype == "float32" and any("are integers" in note for note in model.notes)
    assert model.grids is not None
    ((_, rounded),) = model.grids.weights.items()
    assert np.array_equal(rounded.integers, weight.transpose(0, 3, 1, 2))
    (read,) = model.grids.of(model.input_nodes[0])
    assert np.float32(read.scale) == np.float32(0.05) and int(read.zero_point) == -3


def test_damaged_bytes(build: Path, tmp_path: Path) -> None:
    """What is read after all answers as LiteRT does on the same bytes: it was compared."""
    data, random = build.read_bytes(), np.random.default_rng(0)
    refusals = 0
    for number in range(24):
        broken = bytearray(data)
        if number < 8:
            broken = broken[: random.integers(9, len(data))]
        else:
            for place in random.integers(8, len(data), 6):
                broken[place] ^= 1 << random.integers(8)
        path = tmp_path / f"broken{number}.tflite"
        path.write_bytes(bytes(broken))
        try:
            load(path)
        except EdgeqError as error:
            refusals += 1
            assert error.remedy
    assert refusals > 8


def changed(path: Path, change: Any) -> Path:
    """The file with something else in its tables."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes()))
    change(model, model.subgraphs[0])
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda model, graph: setattr(graph.tensors[1].quantization, "zeroPoint", np.array([0, 0], np.int64)),
        lambda model, graph: setattr(graph.tensors[0].quantization, "zeroPoint", np.array([], np.int64)),
        lambda model, graph: setattr(graph.tensors[1].quantization, "quantizedDimension", -9),
        lambda model, graph: setattr(graph.tensors[0].quantization, "scale", np.array([np.nan], np.float32)),
        lambda model, graph: setattr(graph.tensors[1], "shape", np.array([4, 27], np.int32)),
        lambda model, graph: setattr(graph.tensors[0], "shape", np.array([1, 2**20, 1, 2**11], np.int32)),
        lambda model, graph: setattr(graph.operators[0], "outputs", np.array([], np.int32)),
        lambda model, graph: setattr(graph.operators[0], "inputs", np.array([], np.int32)),
        lambda model, graph: setattr(graph, "inputs", np.array([], np.int32)),
    ],
)
def test_tables_that_do_not_fit(change: Any, tmp_path: Path) -> None:
    scale = np.array([0.01, 0.02, 0.03, 0.005], np.float32)
    grids = {"x0": (0.05, -3, 0), "c1": (scale, np.zeros(4), 0), "y": (0.1, 5, 0)}
    options = with_options("Conv2D", padding=0, strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
    weight = RANDOM.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    path = saved(
        tmp_path / "m.tflite",
        "CONV_2D",
        [((1, 6, 7, 3), "int8"), weight, ints(1, 2, 3, 4)],
        (1, 6, 7, 4),
        options,
        grids,
    )
    with pytest.raises(EdgeqError) as error:
        load(changed(path, change))
    assert error.value.remedy


def test_what_is_not_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.tflite", "WHILE", [(2, 3)], (2, 3))
    with pytest.raises(UnsupportedError, match="WHILE is not read") as error:
        load(path)
    assert "m.tflite: y" in str(error.value)
    with pytest.raises(UnsupportedError, match="depends on a value"):
        load(saved(tmp_path / "n.tflite", "RESHAPE", [(2, 3), ((1,), "int32")], (6,), with_options("Reshape")))


def test_other_answers_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "m.tflite", "TANH", [(2, 3)], (2, 3))
    assert load(path).inputs[0].shape == (2, 3)
    monkeypatch.setitem(operators.OPERATORS, "TANH", Operator(lambda node, x: x.abs()))
    with pytest.raises(UnsupportedError, match="answers otherwise than LiteRT"):
        load(path)


def test_sizes_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "m.tflite", "TANH", [(2, 3)], (2, 3))
    with pytest.raises(UsageError, match=r"not \[2, 4\]"):
        load(path, inputs=["2x4"])
    assert run(["inspect", str(path), "--target", "x86-avx2"]) == 0
    assert "TFLite" in capsys.readouterr().out
    assert run(["inspect", str(path), "--arch", "a:b"]) == 2
