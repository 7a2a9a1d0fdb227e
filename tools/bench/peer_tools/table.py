"""The tools, as data: which module calls each, what it makes, what is installed for it, what it is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from edgeq.methods.effort import EFFORTS


class Tool(NamedTuple):
    """One way to make artefacts.

    Attributes:
        module: its `main` does one job (see `peer_tools.job`).
        about: what it does, in a line.
        makes: precisions, by format.
        requires: packages, in an environment of their own; none where this one will do.
        options: what its module is told.
    """

    module: str
    about: str
    makes: Mapping[str, tuple[str, ...]]
    requires: tuple[str, ...] = ()
    options: Mapping[str, Any] = {}


EIGHT, BOTH = ("w8a8",), ("w8a8", "w4a8")
EVERY = {"onnx": BOTH, "openvino": BOTH, "tflite": BOTH}
AIMET, MCT, BREVITAS = ("aimet-onnx",), ("model-compression-toolkit", "torchvision"), ("brevitas", "onnxoptimizer")

OURS = "edgeq (balanced)"
"""What latencies are also told in units of."""

UNIT = "nncf"
"""What seconds are also told in units of."""

_EDGEQ = Tool("peer_tools.edgeq", "`edgeq.deploy`, in `w4a8` with an edited plan", EVERY)

TOOLS: dict[str, Tool] = {
    **{f"edgeq ({effort})": _EDGEQ._replace(options={"effort": effort}) for effort in EFFORTS},
    "onnxruntime": Tool("peer_tools.onnxruntime", "`quantize_static`, one scale a channel", {"onnx": EIGHT}),
    "nncf": Tool("peer_tools.nncf", "`nncf.quantize`", {"openvino": EIGHT, "onnx": EIGHT}, ("nncf",)),
    "nncf (slow bias correction)": Tool(
        "peer_tools.nncf",
        "the same with `fast_bias_correction=False`",
        {"openvino": EIGHT, "onnx": EIGHT},
        ("nncf",),
        {"fast_bias_correction": False},
    ),
    "ai-edge-quantizer": Tool(
        "peer_tools.ai_edge", "its recipe `static_wi8_ai8`", {"tflite": EIGHT}, ("ai-edge-quantizer", "litert-torch")
    ),
    "aimet": Tool("peer_tools.aimet", "cross-layer equalization, then `QuantizationSimModel`", {"onnx": BOTH}, AIMET),
    "aimet (seq mse)": Tool(
        "peer_tools.aimet", "the same with `apply_seq_mse`", {"onnx": BOTH}, AIMET, {"weights": "seq_mse"}
    ),
    "aimet (adaround)": Tool(
        "peer_tools.aimet", "the same with `apply_adaround`", {"onnx": BOTH}, AIMET, {"weights": "adaround"}
    ),
    "mct": Tool("peer_tools.mct", "post-training quantization; its ONNX has weights as floats", {"onnx": BOTH}, MCT),
    "mct (gptq)": Tool(
        "peer_tools.mct", "the same with gradient-based rounding, 5 epochs", {"onnx": BOTH}, MCT, {"gptq": 5}
    ),
    "brevitas": Tool(
        "peer_tools.brevitas",
        "equalization, `quantize` of the graph, bias correction, QCDQ",
        {"onnx": BOTH},
        BREVITAS,
        {"backend": "fx"},
    ),
    "brevitas (layerwise)": Tool(
        "peer_tools.brevitas",
        "the same with `layerwise_quantize`",
        {"onnx": BOTH},
        BREVITAS,
        {"backend": "layerwise"},
    ),
    "brevitas (gptq)": Tool(
        "peer_tools.brevitas",
        "`layerwise_quantize` with GPTQ",
        {"onnx": BOTH},
        BREVITAS,
        {"backend": "layerwise", "gptq": True},
    ),
}
