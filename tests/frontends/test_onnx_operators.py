"""Each operator of the ONNX standard that is read, against ONNX Runtime on the same node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeq.errors import UnsupportedError
from edgeq.frontends.onnx.file import parse
from edgeq.frontends.onnx.graph import network_of
from edgeq.frontends.onnx.operators import OPERATORS

Array = NDArray[Any]

RANDOM = np.random.default_rng(0)


def some(*shape: int, low: float = -2.0, high: float = 2.0) -> Array:
    return RANDOM.uniform(low, high, shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


class Held:
    """A constant of the file."""

    def __init__(self, value: Any) -> None:
        self.value = np.asarray(value)


IMAGE = some(2, 3, 6, 8)
POSITIVE = some(2, 3, 4, low=0.1, high=0.9)
ROWS = some(2, 5, 4)


def one(op: str, *arguments: Any, opset: int = 21, outputs: int = 1, **attributes: Any) -> Any:
    name = f"{op}-{opset}" + "".join(
        f"-{key}={value}" for key, value in attributes.items() if not isinstance(value, np.ndarray)
    )
    return pytest.param(op, arguments, opset, outputs, attributes, id=name[:80])


EACH = [
    "Neg", "Abs", "Exp", "Floor", "Ceil", "Round", "Sign", "Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Asinh", "Erf",
    "Identity", "Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "HardSwish", "Mish", "Selu", "LeakyRelu", "Elu",
    "Celu", "HardSigmoid", "ThresholdedRelu", "Shrink", "Softmax", "LogSoftmax", "Hardmax", "LpNormalization",
    "Flatten", "Transpose",
]  # fmt: skip
REDUCTIONS = ["Sum", "Mean", "Max", "Min", "L1", "L2", "SumSquare", "Prod"]

CASES = [
    *(one(op, IMAGE) for op in EACH),
    *(one(op, POSITIVE) for op in ("Sqrt", "Log", "Reciprocal", "Asin", "Acos", "Atanh")),
    one("Acosh", POSITIVE + 1),
    *(one(op, ROWS, some(4)) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *(one(op, ROWS, Held(np.float32(0.5))) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *(one(op, Held(np.float32(0.5)), ROWS) for op in ("Add", "Sub", "Mul", "Div")),
    one("Add", some(4), Held(np.ones((1, 1), np.float32))),
    one("Div", ints(7, -7, 8, -8), ints(2, 2, -3, -3)),
    one("Mod", ints(7, -7, 8, -8), ints(3, 3, -5, -5)),
    one("Mod", ROWS, some(4), fmod=1),
    one("Pow", POSITIVE, Held(np.float32(3))),
    one("Pow", POSITIVE, some(4)),
    one("Sum", ROWS, some(4), some(1)),
    one("Mean", ROWS, some(4), some(1)),
    one("Max", ROWS, some(4), Held(np.float32(0))),
    *(one(op, ROWS, some(4)) for op in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual")),
    one("Equal", ints(1, 2, 3), ints(1, 5, 3)),
    *(one(op, ROWS > 0, ROWS[:1] < 1) for op in ("And", "Or", "Xor")),
    one("Not", ROWS > 0),
    one("Where", ROWS > 0, ROWS, some(4)),
    one("Where", ROWS > 0, ROWS, Held(np.float32(-1e4))),
    one("IsNaN", ROWS),
    one("IsInf", ROWS),
    one("Clip", ROWS, Held(np.float32(-1)), Held(np.float32(0.5))),
    one("Clip", ROWS, opset=10, min=-0.5, max=1.0),
    one("Clip", ROWS * 4, Held(np.float32(0)), Held(np.float32(6))),
    one("Cast", ROWS, to=TensorProto.INT64),
    one("Cast", ints(0, 1, 5), to=TensorProto.FLOAT),
    one("CastLike", ints(0, 1, 5), Held(np.float32(1))),
    one("Gelu", ROWS),
    one("Gelu", ROWS, approximate="tanh"),
    one("PRelu", IMAGE, Held(some(3, 1, 1))),
    one("PRelu", IMAGE, Held(some(8))),
    one("PRelu", IMAGE, Held(some(1))),
    one("HardSigmoid", ROWS, alpha=1 / 6, beta=0.5),
    one("Softmax", IMAGE, axis=1),
    one("Softmax", IMAGE, opset=11),
    one("LogSoftmax", IMAGE, axis=2, opset=11),
    one("Hardmax", IMAGE, axis=1),
    # layers
    one("Conv", IMAGE, Held(some(4, 3, 3, 3)), Held(some(4)), pads=[1, 1, 1, 1]),
    one("Conv", IMAGE, Held(some(4, 3, 3, 3)), pads=[0, 1, 2, 1], strides=[2, 1]),
    one("Conv", IMAGE, Held(some(4, 3, 3, 3)), auto_pad="SAME_UPPER", strides=[2, 2]),
    one("Conv", IMAGE, Held(some(4, 3, 2, 2)), auto_pad="SAME_LOWER"),
    one("Conv", IMAGE, Held(some(6, 1, 3, 3)), group=3, dilations=[2, 1]),
    one("Conv", some(1, 2, 9), Held(some(3, 2, 3)), pads=[2, 0]),
    one("Conv", some(1, 1, 5, 6, 7), Held(some(2, 1, 2, 3, 3)), auto_pad="VALID"),
    one(
        "ConvTranspose",
        IMAGE,
        Held(some(3, 4, 3, 3)),
        Held(some(4)),
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        output_padding=[1, 1],
    ),
    one("ConvTranspose", IMAGE, Held(some(3, 2, 4, 4)), group=3, strides=[2, 2], pads=[0, 1, 2, 1]),
    one("ConvTranspose", IMAGE, Held(some(3, 4, 3, 3)), strides=[2, 2], auto_pad="SAME_UPPER"),
    one("ConvTranspose", IMAGE, Held(some(3, 4, 3, 3)), strides=[2, 2], output_shape=[12, 15]),
    one("Gemm", some(2, 4), Held(some(3, 4)), Held(some(3)), transB=1),
    one("Gemm", some(4, 2), Held(some(4, 3)), Held(some(2, 3)), transA=1, alpha=0.5, beta=2.0),
    one("MatMul", ROWS, Held(some(4, 3))),
    one("MatMul", ROWS, some(2, 4, 3)),
    one("MatMul", some(4), some(4, 3)),
    one("Einsum", ROWS, some(2, 6, 4), equation="bij,bkj->bik"),
    one("MaxPool", IMAGE, kernel_shape=[2, 3]),
    one("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    one("MaxPool", IMAGE, kernel_shape=[3, 3], pads=[0, 0, 1, 1], dilations=[1, 2]),
    one("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    one("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
    one("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    one("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[0, 1, 1, 0]),
    one("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[0, 1, 1, 0], count_include_pad=1),
    one("AveragePool", IMAGE, kernel_shape=[3, 3], auto_pad="SAME_LOWER", strides=[2, 2]),
    one("LpPool", IMAGE, kernel_shape=[2, 2], strides=[2, 2]),
    one("GlobalAveragePool", IMAGE),
    one("GlobalMaxPool", IMAGE),
    one("GlobalAveragePool", some(2, 3, 7)),
    one("BatchNormalization", IMAGE, *(Held(some(3, low=0.5)) for _ in range(4))),
    one("InstanceNormalization", IMAGE, Held(some(3)), Held(some(3))),
    one("GroupNormalization", some(2, 4, 5, 5), Held(some(4)), Held(some(4)), num_groups=2),
    one("LayerNormalization", ROWS, Held(some(4)), Held(some(4))),
    one("LayerNormalization", ROWS, Held(some(5, 4)), axis=1),
    one("LRN", IMAGE, size=3),
    one("LpNormalization", ROWS, p=1, axis=1),
    one("MeanVarianceNormalization", IMAGE),
    one("Dropout", ROWS),
    # shapes
    one("Reshape", ROWS, Held(ints(0, -1, 2))),
    one("Reshape", ROWS, Held(ints(40))),
    one("Flatten", IMAGE, axis=2),
    one("Flatten", IMAGE, axis=0),
    one("Flatten", IMAGE, axis=-1),
    one("Transpose", IMAGE, perm=[0, 2, 3, 1]),
    one("Squeeze", some(1, 3, 1, 2), Held(ints(0, -2))),
    one("Squeeze", some(1, 3, 1, 2)),
    one("Squeeze", some(1, 3, 1, 2), opset=11, axes=[2]),
    one("Unsqueeze", ROWS, Held(ints(0, -1))),
    one("Unsqueeze", ROWS, opset=11, axes=[1, 4]),
    one("Concat", ROWS, some(2, 1, 4), axis=1),
    one("Concat", ROWS, Held(some(2, 1, 4)), axis=-2),
    one("Split", some(2, 6), axis=1, num_outputs=3, outputs=3),
    one("Split", some(2, 7), axis=1, num_outputs=3, outputs=3),
    one("Split", some(2, 6), Held(ints(2, 4)), axis=1, outputs=2),
    one("Split", some(2, 6), opset=11, axis=-1, split=[1, 5], outputs=2),
    one("Split", some(2, 6), opset=11, axis=1, outputs=2),
    one("Slice", IMAGE, Held(ints(1, 0)), Held(ints(-1, 9223372036854775807)), Held(ints(2, 3)), Held(ints(2, 3))),
    one("Slice", IMAGE, Held(ints(-1)), Held(ints(-9223372036854775807)), Held(ints(3)), Held(ints(-1))),
    one("Slice", IMAGE, Held(ints(5)), Held(ints(1)), Held(ints(2)), Held(ints(-2))),
    one("Slice", IMAGE, Held(ints(0, 1)), Held(ints(1, 3))),
    one("Slice", IMAGE, opset=9, starts=[1], ends=[100], axes=[3]),
    one("Gather", IMAGE, Held(np.int64(-1)), axis=2),
    one("Gather", IMAGE, Held(ints(2, 0)), axis=1),
    one("Gather", IMAGE, Held(ints(-1, 0)), axis=3),
    one("Gather", IMAGE, Held(np.array([[0, 1], [2, -1]])), axis=1),
    one("Gather", some(9, 4), ints(1, 8, 3)),
    one("Gather", ROWS, ints(1, 3), axis=1),
    one("GatherElements", ROWS, np.array(RANDOM.integers(-5, 5, (2, 3, 4))), axis=1),
    one("GatherND", ROWS, np.array([[0, 1], [1, 4]])),
    one("GatherND", ROWS, np.array([[1]])),
    one("ScatterND", ROWS, np.array([[0, 1], [1, 4]]), some(2, 4)),
    one("ScatterElements", ROWS, np.array(RANDOM.integers(0, 5, (2, 1, 4))), some(2, 1, 4), axis=1),
    one("Expand", some(3, 1), Held(ints(2, 1, 6))),
    one("Expand", some(3, 2), Held(ints(1))),
    one("Tile", some(2, 3), Held(ints(2, 1))),
    one("Pad", IMAGE, Held(ints(0, 0, 1, 2, 0, 0, 3, 0)), Held(np.float32(0.5))),
    one("Pad", IMAGE, Held(ints(0, 1, 0, 0, 0, 0, 0, 0))),
    one("Pad", IMAGE, Held(ints(0, 0, 0, -1, 0, 0, 1, -2))),
    one("Pad", IMAGE, Held(ints(0, 0, 1, 2, 0, 0, 3, 0)), mode="reflect"),
    one("Pad", IMAGE, Held(ints(0, 0, 1, 2, 0, 0, 3, 0)), mode="edge"),
    one("Pad", IMAGE, Held(ints(0, 0, 1, 2, 0, 0, 3, 0)), mode="wrap"),
    one("Pad", IMAGE, Held(ints(0, 0, 0, 2, 0, 0, 0, 1)), mode="reflect"),
    one("Pad", IMAGE, opset=10, pads=[0, 0, 1, 2, 0, 0, 3, 0], value=1.0),
    one("Pad", IMAGE, Held(ints(1, 2)), Held(np.float32(0)), Held(ints(-1))),
    one("DepthToSpace", some(1, 8, 2, 3), blocksize=2),
    one("DepthToSpace", some(1, 8, 2, 3), blocksize=2, mode="CRD"),
    one("SpaceToDepth", some(1, 2, 4, 6), blocksize=2),
    one("Trilu", some(4, 5)),
    one("Trilu", some(4, 5), Held(np.int64(1)), upper=0),
    one("OneHot", ints(0, 2, -1), Held(np.int64(3)), Held(np.array([-1, 2], np.float32))),
    one("OneHot", ints(0, 2), Held(np.int64(3)), Held(np.array([0, 1], np.float32)), axis=0),
    one("EyeLike", some(3, 4), k=1),
    one("ReverseSequence", some(4, 3), Held(ints(1, 4, 2))),
    # reductions
    *(one(f"Reduce{op}", IMAGE, Held(ints(1, -1)), keepdims=keep) for op in REDUCTIONS for keep in (0, 1)),
    *(one(f"Reduce{op}", POSITIVE, Held(ints(1))) for op in ("LogSum", "LogSumExp")),
    one("ReduceMean", IMAGE),
    one("ReduceSum", IMAGE, noop_with_empty_axes=1),
    one("ReduceMean", IMAGE, opset=11, axes=[2, 3], keepdims=0),
    one("ArgMax", IMAGE, axis=1),
    one("ArgMin", IMAGE, axis=-1, keepdims=0),
    one("TopK", IMAGE, Held(ints(3)), axis=-1, outputs=2),
    one("TopK", IMAGE, Held(ints(2)), axis=2, largest=0, outputs=2),
    one("CumSum", ROWS, Held(np.int64(1))),
    one("CumSum", ROWS, Held(np.int64(-1)), exclusive=1, reverse=1),
    # resizes
    *(
        one(
            "Resize",
            IMAGE,
            None,
            Held(np.array([1, 1, 2, 1.5], np.float32)),
            mode="nearest",
            nearest_mode=how,
            coordinate_transformation_mode=place,
        )
        for how in ("round_prefer_floor", "floor", "ceil", "round_prefer_ceil")
        for place in ("asymmetric", "half_pixel", "align_corners")
    ),
    *(
        one("Resize", IMAGE, None, None, Held(ints(2, 3, 9, 5)), mode="linear", coordinate_transformation_mode=place)
        for place in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    ),
    one("Resize", IMAGE, None, Held(np.array([1, 1, 1.7, 0.6], np.float32)), mode="linear"),
    one("Resize", IMAGE, None, None, Held(ints(2, 3, 12, 16)), mode="cubic"),
    one("Resize", IMAGE, Held(np.array([1, 1, 2, 2], np.float32)), opset=10, mode="nearest"),
    one("Resize", IMAGE, Held(np.array([1, 1, 2, 2], np.float32)), opset=10, mode="linear"),
    one("Upsample", IMAGE, Held(np.array([1, 1, 2, 3], np.float32)), opset=9, mode="nearest"),
    one("GridSample", IMAGE, some(2, 4, 5, 2, low=-1, high=1), mode="linear", align_corners=1),
    one("GridSample", IMAGE, some(2, 4, 5, 2, low=-1.2, high=1.2), mode="nearest", padding_mode="border"),
    # recurrent
    *(
        one(
            "LSTM",
            some(4, 2, 3),
            Held(some(n, 20, 3)),
            Held(some(n, 20, 5)),
            Held(some(n, 40)),
            hidden_size=5,
            direction=way,
            outputs=3,
        )
        for n, way in ((1, "forward"), (1, "reverse"), (2, "bidirectional"))
    ),
    one(
        "LSTM",
        some(4, 2, 3),
        Held(some(1, 20, 3)),
        Held(some(1, 20, 5)),
        None,
        None,
        some(1, 2, 5),
        some(1, 2, 5),
        hidden_size=5,
        outputs=3,
    ),
    one(
        "GRU",
        some(4, 2, 3),
        Held(some(1, 15, 3)),
        Held(some(1, 15, 5)),
        Held(some(1, 30)),
        hidden_size=5,
        linear_before_reset=1,
        outputs=2,
    ),
    one(
        "RNN",
        some(4, 2, 3),
        Held(some(2, 5, 3)),
        Held(some(2, 5, 5)),
        Held(some(2, 10)),
        hidden_size=5,
        direction="bidirectional",
        outputs=2,
    ),
]


def model_of(
    op: str, arguments: Any, opset: int, outputs: int, attributes: Any
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    names, given, held = [], {}, []
    for number, argument in enumerate(arguments):
        names.append(f"in{number}" if argument is not None else "")
        if isinstance(argument, Held):
            held.append(numpy_helper.from_array(argument.value, names[-1]))
        elif argument is not None:
            given[names[-1]] = np.asarray(argument)
    written = [f"out{number}" for number in range(outputs)]
    node = helper.make_node(op, names, written, name="node", **attributes)
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in given.items()],
        [helper.make_empty_tensor_value_info(name) for name in written],
        held,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    for output in model.graph.output:  # operators that the standard explains by others
        if not output.type.tensor_type.HasField("shape"):
            output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, given["in0"].shape))
    return model, given


def answers(path: Path, given: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, given))


@pytest.mark.parametrize(("op", "arguments", "opset", "outputs", "attributes"), CASES)
def test_an_operator(op: str, arguments: Any, opset: int, outputs: int, attributes: Any, tmp_path: Path) -> None:
    model, given = model_of(op, arguments, opset, outputs, attributes)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    wanted = answers(path, given)
    tensors = [torch.from_numpy(one.copy()) for one in given.values()]
    found = network_of(parse(path), path, tensors)(*tensors)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert tuple(a.shape) == b.shape
        assert a.numpy().dtype == b.dtype
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-4, atol=1e-5)


def test_every_operator_is_tested() -> None:
    sizes = {"Shape", "Size", "ConstantOfShape", "Range"}  # in test_onnx_networks.py
    newer = {"RMSNormalization", "Swish", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "BitShift", "Scatter"}
    assert set(OPERATORS) - {case.values[0] for case in CASES} <= sizes | newer


@pytest.mark.parametrize(
    ("op", "arguments", "attributes", "said"),
    [
        ("NonZero", [ROWS], {}, "NonZero is not read"),
        ("RandomNormalLike", [ROWS], {}, "RandomNormalLike is not read"),
        ("Reshape", [ROWS, ints(8, 5)], {}, "depends on a value"),
        ("GRU", [some(4, 2, 3), Held(some(1, 15, 3)), Held(some(1, 15, 5))], {"hidden_size": 5}, "resets before"),
        ("Resize", [IMAGE, None, Held(np.array([1, 2, 2, 2], np.float32))], {}, "the batch or the channels"),
        ("Pad", [IMAGE, Held(ints(1, 1, 0, 0, 0, 0, 0, 0))], {"mode": "reflect"}, "pads the axes"),
        ("Expand", [some(1), Held(ints(1 << 40))], {}, "out of little"),
    ],
)
def test_what_is_not_computed(op: str, arguments: Any, attributes: Any, said: str, tmp_path: Path) -> None:
    model, given = model_of(op, arguments, 21, 1, attributes)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    tensors = [torch.from_numpy(one.copy()) for one in given.values()]
    with pytest.raises(UnsupportedError, match=said) as error:
        network_of(parse(path), path, tensors)(*tensors)
    assert "model.onnx: node" in str(error.value)
    assert "remedy" in str(error.value)
