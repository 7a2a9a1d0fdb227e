"""ONNX Runtime's own static quantization, with what its guide gives for CPUs: one scale for each channel, uint8."""

from __future__ import annotations

from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from peer_tools.float_onnx import float_onnx
from peer_tools.job import Job, Sample, carry_out


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, samples: list[Sample]) -> None:
        self._samples = iter(samples)

    def get_next(self) -> Sample | None:
        return next(self._samples, None)


def quantize(job: Job) -> None:
    model, ready = float_onnx(job), job.out.with_name("ready.onnx")
    with job.timed("quantize"):
        quant_pre_process(model, ready, skip_symbolic_shape=True)
        kind = quantization.QuantType.QUInt8
        quantization.quantize_static(ready, job.out, _Reader(job.samples()), per_channel=True, activation_type=kind)


def main() -> None:
    carry_out(quantize, "onnxruntime")


if __name__ == "__main__":
    main()
