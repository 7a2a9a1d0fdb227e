"""AI Edge Quantizer, LiteRT's own: its recipe for 8-bit weights and activations of fixed ranges."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from peer_tools.job import Job, carry_out

NARROW: dict[Any, Any] = {np.dtype(np.int64): np.int32}
"""What the converter makes of inputs of such types."""


class _Whole(torch.nn.Module):
    """A program as a module that may be told to be in evaluation mode, as this converter does."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        self.inner = program.module()

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.inner(*inputs)


def quantize(job: Job) -> None:
    import litert_torch
    from ai_edge_quantizer import quantizer, recipe

    samples, whole = job.samples(), job.out.with_name("float.tflite")
    with job.timed("convert"):
        example = tuple(torch.from_numpy(array) for array in samples[0].values())
        litert_torch.convert(_Whole(torch.export.load(job.model)), example).export(str(whole))
    with job.timed("quantize"):
        tool = quantizer.Quantizer(str(whole), recipe.static_wi8_ai8())
        data = [
            {f"args_{i}": array.astype(NARROW.get(array.dtype, array.dtype)) for i, array in enumerate(sample.values())}
            for sample in samples
        ]
        tool.quantize(tool.calibrate({"serving_default": data})).export_model(str(job.out))


def main() -> None:
    carry_out(quantize, "ai-edge-quantizer")


if __name__ == "__main__":
    main()
