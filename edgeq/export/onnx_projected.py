"""LSTMs that project what they hand on (`proj_size`): ONNX has no such operator, so they are written step by step."""

from __future__ import annotations

import torch
from torch._decomp.decompositions import lstm_impl
from torch.export import ExportedProgram
from torch.fx import Node

_LSTM = torch.ops.aten.lstm.input


def spell_out_projections(program: ExportedProgram) -> ExportedProgram:
    """The program with every LSTM as products of matrices, if one of them projects; else as it is."""
    projected = any(node.target is _LSTM and _projects(node) for node in program.graph.nodes)
    return program.run_decompositions({_LSTM: lstm_impl}) if projected else program


def _projects(node: Node) -> bool:
    hidden, cell = (state.meta["val"].shape[-1] for state in node.args[1])  # type: ignore[union-attr]
    return bool(hidden != cell)
