"""The per-layer table: precision, types, sizes, and where error arises in simulation."""

from __future__ import annotations

import torch

from edgeq.data.dataset import Dataset
from edgeq.methods import NEAREST
from edgeq.model.batches import batches
from edgeq.model.graph import Node
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.model.ops import is_float
from edgeq.numerics import SQNR_END, Scheme, sqnr_db
from edgeq.quantization.quantized import Quantized
from edgeq.quantization.simulate import simulate
from edgeq.records.schema import Layer

SAMPLES = 4


def layer_table(model: Model, quantized: Quantized, data: Dataset) -> list[Layer]:
    """One row for each group. The error is simulated on a few samples, accumulated from the input on: it points at
    layers and is no result."""
    few = data.first(SAMPLES)
    batch = next(iter(batches(model, few, SAMPLES)))
    floats: dict[str, torch.Tensor] = {}

    def keep(node: Node, values: list[torch.Tensor]) -> list[torch.Tensor]:
        if is_float(node):
            floats[node.name] = values[0]
        return values

    errors: dict[str, float] = {}

    def compare(node: Node, values: list[torch.Tensor]) -> list[torch.Tensor]:
        if node.name in floats:
            errors[node.name] = sqnr_db(floats.pop(node.name).numpy(), values[0].numpy())
        return values

    model.run([batch], keep)
    simulate(model, quantized, batch, compare)
    return [_row(quantized, group, errors.get(group.output)) for group in model.groups]


def _row(quantized: Quantized, group: Group, error: float | None) -> Layer:
    weight = quantized.weights.get(group.name)
    tensor = quantized.activations.get(group.output) or quantized.activations.get(group.root)
    dynamic = quantized.assignment.dynamic.get(group.name)
    integer = group.name in quantized.assignment.kernels or dynamic is not None
    activations = "float32" if dynamic is None else f"{dynamic.activations} (in every call)"
    if tensor is not None:
        activations = f"{tensor.q.scheme.dtype} ({tensor.estimator})"
    finite = error is not None and abs(error) < SQNR_END
    return Layer(
        name=group.name,
        op=group.op + (f" + {group.activation_op}" if group.activation_op else ""),
        precision="integer" if integer else "float32",
        weights=_weight_text(weight.q.scheme, quantized.methods[group.name]) if weight else "-",
        activations=activations,
        macs=group.macs,
        parameters=group.parameters,
        simulated_sqnr_db=round(error, 2) if error is not None and finite else None,
    )


def _weight_text(scheme: Scheme, method: str) -> str:
    shared = "" if scheme.granularity == "tensor" else f" per {scheme.granularity}"
    levels = "" if scheme.levels is None else f" {scheme.levels}"
    return f"{scheme.dtype}{levels}{shared}" + ("" if method == NEAREST else f", {method}")
