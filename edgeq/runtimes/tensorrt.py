"""TensorRT's rules for explicit quantization, as far as they are documented: nothing here runs it.

The documentation differs from release to release. A file is to be read by all from 10.0 on: where two differ, the
stricter one counts.
"""

from __future__ import annotations

from edgeq.runtimes import tensorrt_places as places
from edgeq.runtimes import tensorrt_values as values
from edgeq.runtimes.rules import Rule, Rulebook
from edgeq.runtimes.tensorrt_rtx import compile_file

_GUIDE = (
    "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html"
)
_TYPES = "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html"
_OPSETS = "https://docs.nvidia.com/deeplearning/tensorrt/latest/reference/onnx-opset-guide.html"
_QUANTIZE = "https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/operators/Quantize.html"
_HEADER = "https://github.com/NVIDIA/TensorRT/blob/main/include/NvInfer.h"
_PARSER = "https://github.com/onnx/onnx-tensorrt/blob/10.1-GA/onnxOpImporters.cpp"
_OPERATORS = "https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md"
_OPTIMIZER = "https://github.com/NVIDIA/Model-Optimizer/blob/main/modelopt/onnx/quantization/ort_utils.py"

RULES = Rulebook(
    "TensorRT's rules for explicit quantization",
    (
        Rule(
            "quantized type",
            "integers are int8, int4 or float8e4m3fn; uint8, uint4 and 16 bits are not read, or read as something else",
            "quantize symmetrically, to int8",
            f"{_TYPES}; {_PARSER}, QuantDequantLinearHelper",
            values.wrong_types,
        ),
        Rule(
            "zero point",
            "quantization is symmetric: every zero point is the constant 0, one for each scale",
            "calibrate for symmetric int8",
            f"{_HEADER}, IQuantizeLayer and IDequantizeLayer; {_OPERATORS}, y_zero_point must be 0",
            values.zero_points,
        ),
        Rule(
            "scale",
            "scales are constants of float32, float16 or bfloat16 above zero",
            "store the scale as an initializer; raise one that is zero",
            f"{_QUANTIZE}; {_HEADER}, strictly positive; {_PARSER}, Scale coefficients must all be positive",
            values.scales,
        ),
        Rule(
            "activation per tensor",
            "what is computed has one scale; only constants have scales by channel or block",
            "give the activation one scale",
            f"{_HEADER}, IQuantizeLayer: activations cannot be quantized per-channel",
            values.activations_by_channel,
        ),
        Rule(
            "channel axis",
            "scales by channel lie along the output channels of a weight, one for each",
            "set the axis: 0 for Conv, that of the outputs for Gemm and MatMul",
            f"{_HEADER}, IDequantizeLayer; {_PARSER}, number of scales; {_OPTIMIZER}, QDQOpTypePerChannelSupportToAxis",
            values.channel_axes,
        ),
        Rule(
            "block",
            "by blocks are int4 and float8e4m3fn alone, along one of the last two dimensions, which they divide; those "
            "of int4 have 64 or 128 weights",
            "choose blocks of 64 or 128 that divide the weights of an output, or leave the layer in float",
            f"{_HEADER}, IDequantizeLayer; {_PARSER}, only a single blocking dimension; {_TYPES}, block quantization",
            values.blocks,
        ),
        Rule(
            "int4 packing",
            "two int4 share a byte: the last dimension is even",
            "store the weight the other way round, or pad it",
            f"{_PARSER}, odd last dimension",
            values.odd_rows,
        ),
        Rule(
            "int4 weight only",
            "int4 is for constant weights of MatMul and Gemm, by blocks, with inputs in float",
            "give the layer int8, or leave it in float",
            f"{_TYPES}, weight-only quantization",
            places.int4_places,
        ),
        Rule(
            "opset",
            "scales by channel need opset 13, float8e4m3fn 19, int4 and blocks 21; TensorRT 11 reads up to 25",
            "export the model with opset 21",
            f"{_GUIDE}, ONNX support; {_OPSETS}",
            values.opsets,
        ),
        Rule(
            "pair",
            "a QuantizeLinear is read by DequantizeLinear with the same scale, and that reads nothing else than it or "
            "a constant",
            "write both around every quantized value, with one scale",
            f"{_GUIDE}, ONNX support; {_OPERATORS}, quantized types",
            places.unpaired,
        ),
        Rule(
            "bias",
            "a bias is float: it passes through no DequantizeLinear",
            "store the bias as float (QuantizeBias = False in ONNX Runtime's quantizer)",
            f"{_OPTIMIZER}, QuantizeBias; https://github.com/microsoft/onnxruntime/issues/14229",
            places.biases,
        ),
        Rule(
            "operator",
            "integers stand between QuantizeLinear and DequantizeLinear alone: no operator computes on them, and none "
            "finds scales in every call",
            "export in QDQ format, with scales from calibration",
            _OPERATORS,
            places.unknown_operators,
        ),
        Rule(
            "weighted inputs",
            "a layer whose weight is quantized to 8 bits has a quantized input; else it computes in float",
            "quantize its input too",
            f"{_GUIDE}, placement: quantize all inputs of weighted operations",
            places.half_quantized,
            refused=False,
        ),
        Rule(
            "residual",
            "of an addition whose sum is quantized, both sides are quantized, or one is and a quantized layer writes "
            "the other in float; else the layer in front cannot write integers",
            "quantize the other side of the addition",
            f"{_GUIDE}, placement: quantize the residual input in skip connections; "
            "https://docs.nvidia.com/deeplearning/tensorrt/tensorflow-quantization-toolkit/docs/docs/add_custom_qdq_cases.html",
            places.residuals,
            refused=False,
        ),
        Rule(
            "one type",
            "an operator reads int8 or float8e4m3fn, and not both: no kernel multiplies one by the other",
            "give both inputs of the operator one type",
            "https://github.com/NVIDIA/TensorRT/blob/main/demo/Diffusion/demo_diffusion/dd_argparse.py",
            places.mixed_types,
            refused=False,
        ),
        Rule(
            "transposed convolution",
            "the weight of a ConvTranspose has one scale: kernels have none by output channel",
            "give the weight one scale",
            "https://github.com/NVIDIA/TensorRT/issues/2380",
            values.transposed_convolutions,
            refused=False,
        ),
    ),
    compile_file,
)
"""Scales by channel of a ConvTranspose are no refusal: Model Optimizer writes them along axis 1."""
