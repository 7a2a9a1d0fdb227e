"""NNCF, OpenVINO's quantization, on a model of OpenVINO or on one of ONNX.

Options: `transformer`, and `fast_bias_correction`, False for the slow one that needs a pass over the samples a layer.
"""

from __future__ import annotations

import onnx

from peer_tools.float_onnx import float_onnx
from peer_tools.job import Job, carry_out


def quantize(job: Job) -> None:
    import nncf
    import openvino

    options = dict(job.options)
    kind = nncf.ModelType.TRANSFORMER if options.pop("transformer", False) else None
    path, samples = float_onnx(job), job.samples()
    with job.timed("convert"):
        model = openvino.convert_model(path) if job.format == "openvino" else onnx.load(path)
    with job.timed("quantize"):
        data = nncf.Dataset(samples)
        quantized = nncf.quantize(model, data, model_type=kind, subset_size=len(samples), **options)
        (openvino.save_model if job.format == "openvino" else onnx.save_model)(quantized, job.out)


def main() -> None:
    carry_out(quantize, "nncf")


if __name__ == "__main__":
    main()
