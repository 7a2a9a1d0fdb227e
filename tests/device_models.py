"""Tiny artefacts with answers that numpy gives independently."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as tfl
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[np.generic]

WEIGHT = np.array([[1, -2, 3, 4], [5, 6, -7, 8], [-9, 1, 2, -3]], np.int8)
BIAS = np.array([10, -20, 30], np.int32)


def samples(count: int, seed: int = 0) -> NDArray[np.float32]:
    """[count, 4] multiples of 1/2 that an int8 tensor of scale 1/2 holds exactly."""
    return (np.random.default_rng(seed).integers(-20, 20, (count, 4)) / 2).astype(np.float32)


def write_float_onnx(path: Path) -> Path:
    """Outputs `sum` = a + 2b [N, 4] and `product` = relu(a W' + bias) [N, 3], inputs in the order b, a."""
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["b", "two"], ["b2"]),
            helper.make_node("Add", ["a", "b2"], ["sum"], name="adder"),
            helper.make_node("Gemm", ["a", "w", "bias"], ["g"], name="gemm", transB=1),
            helper.make_node("Relu", ["g"], ["product"], name="relu"),
        ],
        "float",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("b", "a")],
        [
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("product", TensorProto.FLOAT, ["N", 3]),
        ],
        [
            numpy_helper.from_array(np.array(2, np.float32), "two"),
            numpy_helper.from_array(WEIGHT.astype(np.float32), "w"),
            numpy_helper.from_array(BIAS.astype(np.float32), "bias"),
        ],
    )
    return _save(graph, path)


def float_answer(a: Array, b: Array) -> list[Array]:
    return [a + 2 * b, np.maximum(a @ WEIGHT.T.astype(np.float32) + BIAS, 0)]


def write_quantized_onnx(path: Path) -> Path:
    """A 1x1 convolution [N, 4, 3, 3] to [N, 3, 3, 3] as QDQ: uint8 of scale 1/2 and zero point 128, int8 weights of
    scale 1/4, outputs of scale 1/8."""
    constants = {
        "xs": np.array(0.5, np.float32), "ys": np.array(0.125, np.float32), "z": np.array(128, np.uint8),
        "ws": np.array(0.25, np.float32), "wz": np.array(0, np.int8), "w": WEIGHT[:, :, None, None],
        "bs": np.array(0.125, np.float32), "bz": np.array(0, np.int32), "bias": BIAS,
    }  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "xs", "z"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "xs", "z"], ["xf"]),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"]),
            helper.make_node("DequantizeLinear", ["bias", "bs", "bz"], ["bf"]),
            helper.make_node("Conv", ["xf", "wf", "bf"], ["c"], name="conv"),
            helper.make_node("QuantizeLinear", ["c", "ys", "z"], ["yq"]),
            helper.make_node("DequantizeLinear", ["yq", "ys", "z"], ["y"]),
        ],
        "quantized",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, 3, 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return _save(graph, path)


def images(count: int) -> NDArray[np.float32]:
    """[count, 4, 3, 3], exact in the quantized model's input."""
    return samples(count * 9).reshape(count, 3, 3, 4).transpose(0, 3, 1, 2)


def quantized_answer(x: Array) -> Array:
    steps = np.einsum("nchw,oc->nohw", np.rint(x / 0.5), WEIGHT) + BIAS[:, None, None]
    return (np.clip(steps + 128, 0, 255) - 128) * np.float32(0.125)


def write_saturating_onnx(path: Path) -> Path:
    """A 1x1 convolution [N, 64, 1, 1] to [N, 16, 1, 1] of uint8 by weights that are all 127; one output step is 1."""
    constants = {
        "one": np.array(1, np.float32), "u0": np.array(0, np.uint8), "s0": np.array(0, np.int8),
        "w": np.full((16, 64, 1, 1), 127, np.int8), "ws": np.array(1 / 16384, np.float32),
    }  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "one", "u0"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "one", "u0"], ["xf"]),
            helper.make_node("DequantizeLinear", ["w", "ws", "s0"], ["wf"]),
            helper.make_node("Conv", ["xf", "wf"], ["c"]),
            helper.make_node("QuantizeLinear", ["c", "one", "u0"], ["yq"]),
            helper.make_node("DequantizeLinear", ["yq", "one", "u0"], ["y"]),
        ],
        "saturating",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64, 1, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16, 1, 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return _save(graph, path)


def _save(graph: onnx.GraphProto, path: Path) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def write_pte(path: Path) -> Path:
    """What `write_float_onnx` writes, for one sample; its inputs are `args_0`, which is b, and `args_1`, which is a."""
    path.write_bytes(_pte())
    return path


@cache
def _pte() -> bytes:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    class Float(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)
            self.layer.weight.data, self.layer.bias.data = (torch.from_numpy(x).float() for x in (WEIGHT, BIAS))

        def forward(self, b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return a + 2 * b, torch.relu(self.layer(a))

    program = torch.export.export(Float().eval(), (torch.zeros(1, 4), torch.zeros(1, 4)))
    return bytes(to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)


def write_tflite(path: Path, *, signature: bool) -> Path:
    """Two int8 fully connected operators, one for each input.

    The subgraph lists inputs and outputs the wrong way round; the signature numbers them rightly.
    """
    buffers = [tfl.BufferT()]

    def tensor(name: str, shape: list[int], kind: int, scale: float, zero: int, data: Array | None = None) -> int:
        t = tfl.TensorT()
        t.name, t.shape, t.type, t.buffer = name, shape, kind, 0
        t.quantization = tfl.QuantizationParametersT()
        t.quantization.scale, t.quantization.zeroPoint = [scale], [zero]
        if data is not None:
            buffer = tfl.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            buffers.append(buffer)
            t.buffer = len(buffers) - 1
        tensors.append(t)
        return len(tensors) - 1

    tensors: list[tfl.TensorT] = []
    weight = tensor("weight", [3, 4], tfl.TensorType.INT8, 0.25, 0, WEIGHT)
    bias = tensor("bias", [3], tfl.TensorType.INT32, 0.125, 0, BIAS)
    ends = {}
    operators = []
    for name in ("a", "b"):
        source = tensor(f"in_{name}", [1, 4], tfl.TensorType.INT8, 0.5, 3)
        result = tensor(f"out_{name}", [1, 3], tfl.TensorType.INT8, 0.125, -5)
        op = tfl.OperatorT()
        op.opcodeIndex, op.inputs, op.outputs = 0, [source, weight, bias], [result]
        op.builtinOptionsType = tfl.BuiltinOptions.FullyConnectedOptions
        op.builtinOptions = tfl.FullyConnectedOptionsT()
        operators.append(op)
        ends[name] = (source, result)

    graph = tfl.SubGraphT()
    graph.tensors, graph.operators = tensors, operators
    graph.inputs, graph.outputs = [ends["b"][0], ends["a"][0]], [ends["b"][1], ends["a"][1]]
    code = tfl.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = tfl.BuiltinOperator.FULLY_CONNECTED
    code.version = 4
    model = tfl.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], buffers
    if signature:
        one = tfl.SignatureDefT()
        one.signatureKey, one.subgraphIndex = "serving_default", 0
        one.inputs = [_named(f"args_{i}", ends[n][0]) for i, n in enumerate("ab")]
        one.outputs = [_named(f"output_{i}", ends[n][1]) for i, n in enumerate("ab")]
        model.signatureDefs = [one]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def _named(name: str, index: int) -> tfl.TensorMapT:
    entry = tfl.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry


def integers(count: int, seed: int = 0) -> NDArray[np.int8]:
    """[count, 4] inputs of the `.tflite` model; some answers saturate."""
    return np.random.default_rng(seed).integers(-20, 20, (count, 4)).astype(np.int8)


def tflite_answer(x: Array) -> Array:
    # The scales multiply to one, so that no rounding is left to a kernel's choice.
    steps = (x.astype(np.int32) - 3) @ WEIGHT.T.astype(np.int32) + BIAS
    return np.clip(steps - 5, -128, 127).astype(np.int8)
