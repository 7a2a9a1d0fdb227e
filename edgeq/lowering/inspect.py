"""What a model is made of, and what of it each target can run on integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from edgeq.lowering.assign import assign
from edgeq.model.graph import Node
from edgeq.model.model import Model
from edgeq.model.values import tensor_of
from edgeq.records.schema import OnNpu
from edgeq.registry.schema import Format, Runtime, RuntimeName, Target


def inspect_model(model: Model, targets: Sequence[Target], notes: Sequence[str] = ()) -> Inspection:
    """Look at a model without running it.

    Args:
        model: what to look at.
        targets: those to compare its operators with.
        notes: what loading it assumed.
    """
    outputs = zip(model.output_names, model.output_nodes, strict=True)
    return Inspection(
        source=model.source,
        kind=model.kind,
        sha256=model.sha256,
        inputs=[InspectedTensor(name=s.name, shape=list(s.shape), dtype=s.dtype) for s in model.inputs],
        outputs=[_tensor(name, model.nodes[node]) for name, node in outputs],
        dynamic_batch=model.dynamic_batch,
        parameters=model.parameters,
        macs=model.macs,
        layers=[
            InspectedLayer(name=g.name, op=g.op, activation=g.activation_op, parameters=g.parameters, macs=g.macs)
            for g in model.groups
        ],
        targets=[_fit(model, target, runtime) for target in targets for runtime in target.runtimes],
        notes=[*notes, *_uncounted(model)],
    )


def _uncounted(model: Model) -> list[str]:
    strange = sorted({group.op for group in model.groups if group.op.startswith("aten.")})
    if not strange:
        return []
    return [f"no target has a class for {', '.join(strange)}: they stay in float, and their work is not in the MACs"]


def _fit(model: Model, target: Target, runtime: Runtime) -> RuntimeFit:
    # Without calibrated ranges: whether a concatenation's inputs can share a scale is then taken to be so.
    assignment = assign(model, runtime, {})
    integer = [group for group in model.groups if group.name in assignment.kernels]
    return RuntimeFit(
        target=target.name,
        runtime=runtime.name,
        format=runtime.format,
        integer_mac_percent=100 * sum(g.macs for g in integer) / model.macs if model.macs else None,
        integer_operators=dict(Counter(g.op for g in integer)),
        float_operators=dict(Counter(g.op for g in model.groups if g.name not in assignment.kernels)),
        reasons={g.name: assignment.reasons[g.name] for g in model.groups if g.name not in assignment.kernels},
    )


def _tensor(name: str, node: Node) -> InspectedTensor:
    value = tensor_of(node)
    assert value is not None  # what returns anything else was refused
    shape: list[int | None] = [size if isinstance(size, int) else None for size in value.shape]
    return InspectedTensor(name=name, shape=shape, dtype=value.dtype)


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InspectedTensor(_Frozen):
    """An input or output. None in the shape is a free axis."""

    name: str
    shape: list[int | None]
    dtype: str


class InspectedLayer(_Frozen):
    """What runs as one kernel."""

    name: str
    op: str
    activation: str | None
    parameters: int
    macs: int
    """Multiply-accumulates for one sample."""


class RuntimeFit(_Frozen):
    """A model as one runtime of a target would run it, before calibration."""

    target: str
    runtime: RuntimeName
    format: Format
    integer_mac_percent: float | None
    """Share of multiply-accumulates that would run on integers; None where the model has none."""
    integer_operators: dict[str, int]
    float_operators: dict[str, int]
    reasons: dict[str, str]
    """Why, for each layer that stays in float."""
    npu: OnNpu | None = None
    """What the compiler of its NPU makes of the structure; None where there is none, or it was not asked."""


class Inspection(_Frozen):
    """What there is to know about a model before anything is done to it."""

    source: str
    kind: str
    sha256: str
    inputs: list[InspectedTensor]
    outputs: list[InspectedTensor]
    dynamic_batch: bool
    parameters: int
    macs: int
    layers: list[InspectedLayer]
    targets: list[RuntimeFit]
    notes: list[str]
