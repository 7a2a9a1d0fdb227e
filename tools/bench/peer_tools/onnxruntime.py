"""ONNX Runtime's own static quantization, with what its guide gives for CPUs: one scale for each channel, uint8, and
weights of 7 bits where the CPU has no VNNI."""

from __future__ import annotations

from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgeq.on_device.worker import describe_cpu
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
        narrow = "vnni" not in describe_cpu()["cpu_isa"]
        quantization.quantize_static(
            ready,
            job.out,
            _Reader(job.samples()),
            per_channel=True,
            reduce_range=narrow,
            activation_type=quantization.QuantType.QUInt8,
        )


def main() -> None:
    carry_out(quantize, "onnxruntime")


if __name__ == "__main__":
    main()
