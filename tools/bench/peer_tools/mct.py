"""Sony's Model Compression Toolkit: its capabilities of IMX500, which have 4-bit weights, but with activations that may
take any scale and zero point. Its ONNX has the weights as floats on their grid: it has no exporter of integers.

Option `gptq`: so many epochs of its gradient-based rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import onnx
import torch

from peer_tools.job import Job, carry_out
from peer_tools.modules import as_modules, weighted

BATCH = 32


def capabilities() -> Any:
    """Of the platform."""
    from mct_quantizers import QuantizationMethod
    from model_compression_toolkit.target_platform_capabilities.tpc_models.imx500_tpc.v1_0 import tpc

    base, candidates, default = tpc.get_op_quantization_configs()
    base, default, *candidates = (
        one.clone_and_edit(activation_quantization_method=QuantizationMethod.UNIFORM)
        for one in (base, default, *candidates)
    )
    return tpc.generate_tpc(default, base, candidates, "peers")


def quantize(job: Job) -> None:
    # torchvision's operators are not there where it was built for another PyTorch, and nothing here needs them
    sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")
    import model_compression_toolkit as mct
    from model_compression_toolkit.core import BitWidthConfig, CoreConfig
    from model_compression_toolkit.core.common.network_editors import NodeNameFilter

    with job.timed("convert"):
        network = as_modules(torch.export.load(job.model), job.samples()[0])
    batches = job.batches(BATCH)

    def data() -> Iterator[list[Any]]:
        return (list(batch.values()) for batch in batches)

    with job.timed("quantize"):
        bits = BitWidthConfig()
        if job.precision == "w4a8":
            for name in weighted(network)[1:-1]:
                layer = NodeNameFilter(name) | NodeNameFilter(f"{name}_bn")  # as it is called with its norm folded
                bits.set_manual_weights_bit_width(layer, 4, "weight")
        told: dict[str, Any] = {"core_config": CoreConfig(bit_width_config=bits)}
        told["target_platform_capabilities"] = capabilities()
        if epochs := job.options.get("gptq"):
            told["gptq_config"] = mct.gptq.get_pytorch_gptq_config(n_epochs=epochs)
            quantized, _ = mct.gptq.pytorch_gradient_post_training_quantization(network, data, **told)
        else:
            quantized, _ = mct.ptq.pytorch_post_training_quantization(network, data, **told)
        kind = mct.exporter.QuantizationFormat.FAKELY_QUANT
        torch.onnx.export = partial(torch.onnx.export, dynamo=False)  # the exporter that it was written for
        mct.exporter.pytorch_export_model(quantized, str(job.out), data, quantization_format=kind)
        _name_inputs(job)


def _name_inputs(job: Job) -> None:
    """As the model has them: the exporter gives names of its own."""
    model = onnx.load(job.out)
    for port, name in zip(model.graph.input, job.arrays(), strict=True):
        for node in model.graph.node:
            node.input[:] = [name if used == port.name else used for used in node.input]
        port.name = name
    onnx.save_model(model, job.out)


def main() -> None:
    carry_out(quantize, "model-compression-toolkit")


if __name__ == "__main__":
    main()
