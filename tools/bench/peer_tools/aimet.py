"""AIMET, on ONNX: encodings of its default, with per-channel weights, written as QuantizeLinear and DequantizeLinear.

Option `weights`: `seq_mse` looks for each layer's scales, `adaround` learns how its weights are rounded.
"""

from __future__ import annotations

import onnx

from peer_tools.float_onnx import between_first_and_last, float_onnx
from peer_tools.job import Job, carry_out

ITERATIONS = 10_000
"""Of AdaRound, for each layer: what its documentation recommends."""

BATCH = 32


def quantize(job: Job) -> None:
    import aimet_onnx
    from aimet_onnx.cross_layer_equalization import equalize_model
    from aimet_onnx.quantsim import set_param_type

    path, batches = float_onnx(job), job.batches(BATCH)
    with job.timed("quantize"):
        model = onnx.load(path)
        equalize_model(model)
        between = {node.name for node in between_first_and_last(model)}
        sim = aimet_onnx.QuantizationSimModel(model, param_type="int8", activation_type="int8", config_file="default")
        if job.precision == "w4a8":
            set_param_type(sim, "int4", nodes_to_include=between)
        if job.options.get("weights") == "seq_mse":
            aimet_onnx.apply_seq_mse(sim, batches)
        if job.options.get("weights") == "adaround":
            aimet_onnx.apply_adaround(sim, batches, num_iterations=ITERATIONS)
        sim.compute_encodings(batches)
        onnx.save_model(sim.to_onnx_qdq(prequantize_constants=True), job.out)


def main() -> None:
    carry_out(quantize, "aimet-onnx")


if __name__ == "__main__":
    main()
