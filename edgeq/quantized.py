"""The quantized model of a job: what every build, proof and explanation of it is made from."""

from __future__ import annotations

from collections.abc import Mapping

from edgeq.methods.quantize import quantize_model
from edgeq.prepare import Job
from edgeq.quantization.activations import Ranges
from edgeq.quantization.quantized import Quantized
from edgeq.registry.schema import Runtime


def quantize_job(
    job: Job, runtime: Runtime, choices: Mapping[str, str] | None = None, ranges: Ranges | None = None
) -> Quantized:
    """Integers and scales for one runtime, rounded as the job says.

    Args:
        choices: by layer; the runtime's preferred kernels if None.
        ranges: what was found for other plans of the same job and runtime; what is found now is added to it.
    """
    return quantize_model(
        job.model,
        runtime,
        job.calibration,
        job.impact,
        choices=choices,
        methods=job.methods,
        inputs=job.calibration_data.inputs,
        ranges=ranges,
    )
