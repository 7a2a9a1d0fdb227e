"""Brevitas: its quantization of a graph of layers, as its own example for image classifiers calls it: 8-bit unsigned
activations, weights of the least squared error with a scale for each channel, bias correction.

Options: `backend`, `fx` quantizes every value, `layerwise` only what layers with weights read; `gptq` rounds by GPTQ.
"""

from __future__ import annotations

import torch

from peer_tools.job import Job, carry_out
from peer_tools.modules import as_modules, weighted

BATCH = 32
EQUALIZATIONS = 20
ROUNDS = 200
"""After which it may give up aligning the scales of what is added; it would try ten thousand times."""


def quantize(job: Job) -> None:
    from brevitas.export import export_onnx_qcdq
    from brevitas.graph import quantize_impl
    from brevitas.graph.calibrate import bias_correction_mode, calibration_mode
    from brevitas.graph.gptq import gptq_mode
    from brevitas.graph.quantize import preprocess_for_quantize
    from brevitas_examples.imagenet_classification.ptq.ptq_common import quantize_model

    quantize_impl.MAX_RESIDUAL_ITERS = ROUNDS
    with job.timed("convert"):
        network = as_modules(torch.export.load(job.model), job.samples()[0])
    batches = [[torch.from_numpy(array) for array in batch.values()] for batch in job.batches(BATCH)]
    with job.timed("quantize"), torch.no_grad():
        merged = preprocess_for_quantize(
            network, equalize_iters=EQUALIZATIONS, equalize_merge_bias=True, merge_bn=True, trace_model=False
        )
        quantized = quantize_model(
            merged,
            job.options["backend"],
            8,
            8,
            None,
            "per_channel",
            99.999,
            "asym",
            "float_scale",
            "int",
            weight_param_method="mse",
        )
        if job.precision == "w4a8":
            for name in weighted(quantized)[1:-1]:
                proxy = quantized.get_submodule(name).weight_quant
                proxy.quant_injector = proxy.quant_injector.let(bit_width=4)
                proxy.init_tensor_quant()
        quantized(*batches[0])  # it takes a pass until the scales of the weights are there
        with calibration_mode(quantized):
            for batch in batches:
                quantized(*batch)
        if job.options.get("gptq"):
            with gptq_mode(quantized, use_quant_activations=False) as gptq:
                for _ in range(gptq.num_layers):
                    for batch in batches:
                        gptq.model(*batch)
                    gptq.update()
        with bias_correction_mode(quantized):
            for batch in batches:
                quantized(*batch)
        told = {"input_names": list(job.arrays()), "opset_version": 17, "keep_initializers_as_inputs": False}
        example = tuple(tensor[:1] for tensor in batches[0])
        # the newer exporter would write the weights as floats
        export_onnx_qcdq(quantized.eval(), example, str(job.out), dynamo=False, **told)


def main() -> None:
    carry_out(quantize, "brevitas")


if __name__ == "__main__":
    main()
