"""Writes down a quantized model as a plan."""

from __future__ import annotations

import hashlib

from edgeq.methods import NEAREST
from edgeq.methods.effort import DEFAULT, EffortName
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.plans.plan import FloatPrecision, LayerPlan, Plan, TensorPlan, WeightPlan
from edgeq.quantization.activations import QuantizedTensor
from edgeq.quantization.quantized import Quantized
from edgeq.rewrites import rewritten_layers


def describe(
    model: Model,
    quantized: Quantized,
    *,
    target: str,
    data_hash: str,
    precision: FloatPrecision = "float32",
    effort: EffortName = DEFAULT,
) -> Plan:
    """The plan of a quantized model: schemes, ranges and reasons, layer by layer."""
    runtime, told = quantized.runtime, rewritten_layers(model)
    return Plan(
        model_hash=model.sha256,
        data_hash=data_hash,
        target=target,
        runtime=runtime.name,
        format=runtime.format,
        float_precision=precision,
        effort=effort,
        inputs={
            spec.name: _tensor(node, quantized.activations[node])
            for spec, node in zip(model.inputs, model.input_nodes, strict=True)
            if node in quantized.activations
        },
        rewrites={name: dict(places) for name, places in model.rewrites.items()},
        layers=[_layer(quantized, group, told.get(group.name, "")) for group in model.groups],
    )


def _layer(quantized: Quantized, group: Group, rewritten: str) -> LayerPlan:
    written = next((n for n in (group.output, group.root) if n in quantized.activations), None)
    return LayerPlan(
        name=group.name,
        op=group.op + (f" + {group.activation_op}" if group.activation_op else ""),
        members=list(group.members),
        macs=group.macs,
        parameters=group.parameters,
        choice=quantized.assignment.choice(group.name),
        reason=quantized.assignment.reasons[group.name],
        weight=_weight(quantized, group, rewritten),
        output=_tensor(written, quantized.activations[written]) if written else None,
        reads_again={node: _tensor(node, tensor) for node, tensor in quantized.read_anew(group).items()},
    )


def _tensor(node: str, tensor: QuantizedTensor) -> TensorPlan:
    return TensorPlan(
        dtype=tensor.q.scheme.dtype,
        symmetry=tensor.q.scheme.symmetry,
        scale=float(tensor.q.scale),
        zero_point=int(tensor.q.zero_point),
        low=tensor.low,
        high=tensor.high,
        estimator=tensor.estimator,
        tied_to=tensor.share if tensor.share != node else None,
        reason=tensor.reason,
    )


_ROUNDED = {NEAREST: "round to nearest, analytic bias correction"}
"""What methods are called in words, where that is more than their name."""


def _weight(quantized: Quantized, group: Group, rewritten: str) -> WeightPlan | None:
    method = quantized.methods.get(group.name, NEAREST)
    weight, kernel = quantized.weights.get(group.name), quantized.assignment.kernel(group.name)
    if weight is None or kernel is None:
        return None
    digest = hashlib.sha256(weight.integers.tobytes())
    if weight.levels is not None:
        digest.update(weight.levels.tobytes())
    digest.update(weight.q.scale.tobytes())
    return WeightPlan(
        dtype=weight.q.scheme.dtype,
        symmetry=weight.q.scheme.symmetry,
        granularity=weight.q.scheme.granularity,
        levels=weight.q.scheme.levels,
        axis=weight.q.axis or 0,
        algorithm=rewritten + _ROUNDED.get(method, method),
        method=method,
        sha256=digest.hexdigest(),
        bias=kernel.bias,
    )
