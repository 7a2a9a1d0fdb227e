"""The float model as tools for ONNX take it."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch

from peer_tools.job import Job

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def float_onnx(job: Job) -> Path:
    """The program as PyTorch's own exporter writes it, in a file beside the artefact, with its batch normalization
    folded."""
    path = job.out.with_name("float.onnx")
    with job.timed("convert"):
        program = torch.export.load(job.model)
        torch.onnx.export(program, (), path, input_names=list(job.arrays()), dynamo=True, external_data=False)
    return path


def between_first_and_last(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes with weights, without the first and the last one."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [n for n in model.graph.node if n.op_type in WEIGHTED and n.input[1] in constants][1:-1]
