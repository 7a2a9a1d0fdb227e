"""OpenVINO IR, by way of the ONNX model: its PyTorch front end refuses integer constants under a dequantization."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir

from edgeq.errors import MissingExtraError, UnsupportedError
from edgeq.export.onnx_float import save


def write_openvino(model: ir.Model, path: Path) -> None:
    """Writes `path` (.xml) and the .bin beside it.

    Args:
        model: a float or QDQ ONNX model.
        path: ends in .xml.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        UnsupportedError: OpenVINO cannot read an operator.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", "openvino") from error
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        onnx_file = Path(folder) / "model.onnx"
        save(model, onnx_file)
        try:
            read = openvino.Core().read_model(onnx_file)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise UnsupportedError(
                f"OpenVINO cannot read the exported model: {lines[-1] if lines else error}",
                remedy="choose another format for this model",
            ) from error
        for port, value in [
            *zip(read.inputs, model.graph.inputs, strict=True),
            *zip(read.outputs, model.graph.outputs, strict=True),
        ]:
            port.set_names({str(value.name)})
        # what the plan leaves in float stays float32: halving it is not this stage's choice
        openvino.save_model(read, path, compress_to_fp16=False)
