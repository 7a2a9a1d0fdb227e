"""The written file against the plan: every integer, every scale, and what was left in float."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from edgeq.errors import EdgeqError
from edgeq.export.stored import Stored
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.numerics.weights import bias_scale, quantize_bias
from edgeq.quantization.quantized import Quantized
from edgeq.records.schema import Audit, FloatOperator, Placement


class AuditError(EdgeqError):
    """The file does not store what the plan says. Never the user's fault."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(
            f"the written file differs from the plan: {what}",
            where=where,
            remedy="report this model as a defect of edgeq",
        )


def audit(model: Model, quantized: Quantized, stored: Stored) -> Audit:
    """Compares every stored integer, scale and zero point with what was to be written.

    Raises:
        AuditError: the first difference, with its layer.
    """
    weighted = [group for group in model.groups if group.name in quantized.weights]
    sizes = [_same_weight(quantized, stored, group) for group in weighted]
    return Audit(
        tensors_checked=2 * len(sizes) + _same_tensors(model, quantized, stored),
        bytes_checked=sum(sizes),
        integer_mac_percent=_share(model, stored.integer_groups),
        float_operators=_left_in_float(model, quantized, stored.integer_groups),
    )


def _same_weight(quantized: Quantized, stored: Stored, group: Group) -> int:
    """Compares the weight and the bias of a layer; how many bytes these are.

    Raises:
        AuditError: they differ.
    """
    where, weight, found = f"layer {group.name}", quantized.weights[group.name], stored.weights.get(group.name)
    if found is None:
        raise AuditError(where, "its weight is not stored as integers")
    if found.dtype != weight.q.scheme.dtype or not np.array_equal(found.integers, weight.integers):
        raise AuditError(where, f"other weights ({found.dtype} {found.integers.shape})")
    if not _same_levels(found.levels, weight.levels):
        raise AuditError(where, "other levels of its weights")
    scale, zero = weight.q.scale.reshape(-1), weight.q.zero_point.reshape(-1)
    if not np.array_equal(found.scale.reshape(-1), scale):
        raise AuditError(where, "other weight scales")
    if not np.array_equal(np.broadcast_to(found.zero_point.reshape(-1), zero.shape), zero):
        raise AuditError(where, "other weight zero points")
    bias: np.ndarray = quantized.biases[group.name]
    kernel = quantized.assignment.kernel(group.name)
    if kernel is not None and kernel.bias in ("int32", "int64"):
        input_scale = quantized.input_scale(group)
        wanted_scales = bias_scale(input_scale, weight.q)
        bias = quantize_bias(bias, input_scale, weight.q).astype(kernel.bias)
        if found.bias_scale is not None and not np.array_equal(found.bias_scale.reshape(-1), wanted_scales.reshape(-1)):
            raise AuditError(where, "other bias scales")
    if found.bias is None or found.bias.dtype != bias.dtype or not np.array_equal(found.bias.reshape(-1), bias):
        raise AuditError(where, f"another bias ({found.bias_dtype or 'none'})")
    places = -(-weight.integers.size * weight.q.scheme.stored_bits // 8)
    return places + bias.nbytes + scale.nbytes + (0 if weight.levels is None else weight.levels.nbytes)


def _same_levels(found: np.ndarray | None, wanted: np.ndarray | None) -> bool:
    if found is None or wanted is None:
        return found is wanted
    return found.dtype == wanted.dtype and np.array_equal(found, wanted)


def _same_tensors(model: Model, quantized: Quantized, stored: Stored) -> int:
    """Compares the grids of activations; how many these are.

    Raises:
        AuditError: one differs.
    """
    checked = 0
    again = ((node, tensor) for (node, _), tensor in quantized.again.items())
    readers: dict[str, set[str]] = {}
    for group in model.groups:
        for node in group.inputs if group.name in quantized.assignment.kernels else ():
            readers.setdefault(node, set()).add(group.root)
    for node, tensor in (*quantized.activations.items(), *again):
        if node not in stored.held:
            continue  # merged into the operator behind it, which carries the same scale
        if node in quantized.assignment.also_float and stored.held.isdisjoint(readers[node]):
            continue  # those that would round it are merged into operators in float
        forms = stored.tensors.get(node, ())
        if not any(form.holds(tensor.q) for form in forms):
            raise AuditError(f"tensor {node}", " and ".join(sorted(map(str, forms))) or "it is not quantized")
        checked += 1
    return checked


def confirm(model: Model, quantized: Quantized, written: Audit, placements: Sequence[Placement]) -> Audit:
    """The audit with the runtime's own word: a layer that it ran in float does not count as integer.

    Args:
        placements: where every operator ran; those that carry a layer's name speak for the layer.
    """
    groups = {g.name: g for g in model.groups}
    in_float = {f.layer for f in written.float_operators}
    refused: dict[str, Placement] = {}
    for placement in placements:
        name = re.split(r"_token_\d+$|/WithoutBiases$|/MatMulAddFusion$|/fused", placement.name)[0]
        if name in groups and placement.integer is False and groups[name].macs:
            refused[name] = placement
    integer = {name for name, g in groups.items() if g.macs and name not in in_float and name not in refused}
    extra = [
        FloatOperator(
            layer=name,
            op=groups[name].op,
            macs=groups[name].macs,
            reason=f"the runtime ran it in float ({p.op}, {p.where})",
        )
        for name, p in refused.items()
        if name not in in_float
    ]
    return written.model_copy(
        update={"integer_mac_percent": _share(model, integer), "float_operators": [*extra, *written.float_operators]}
    )


def _share(model: Model, integer: set[str]) -> float:
    total = model.macs
    return 100.0 * sum(g.macs for g in model.groups if g.name in integer) / total if total else 0.0


def _left_in_float(model: Model, quantized: Quantized, integer: set[str]) -> list[FloatOperator]:
    found = []
    for group in model.groups:
        reason = quantized.assignment.reasons[group.name]
        if group.name in quantized.assignment.kernels or group.name in quantized.assignment.dynamic:
            if not group.macs or group.name in integer:
                continue
            reason = "the exported file computes it in float"
        found.append(FloatOperator(layer=group.name, op=group.op, macs=group.macs, reason=reason))
    return found
