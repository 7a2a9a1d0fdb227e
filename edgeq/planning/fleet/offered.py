"""What else runs an artefact: which of a runtime's choices another runtime of the same format offers as well.

Another runtime runs an artefact natively if it reads the format and has a kernel for each layer that takes everything
that the first one's kernel can have stored: 7-bit weights are 8-bit weights as well, but not the other way round. This
is what target files say; whether it is so is measured where a device is there.
"""

from __future__ import annotations

from edgeq.lowering.assign import FLOAT, computed_wrong, writes_integers
from edgeq.lowering.choices import Ladder
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.model.ops import WEIGHTED
from edgeq.numerics.scheme import Scheme
from edgeq.plans.plan import FloatPrecision
from edgeq.registry.schema import Kernel, Runtime


def refusal(own: Runtime, other: Runtime, precision: FloatPrecision = "float32") -> str:
    """Why no artefact made for a runtime is one for another; empty if some are.

    Args:
        precision: what the artefact's float layers are to be computed in.
    """
    if own.format != other.format:
        return f"it reads {other.format}, not {own.format}"
    if own.io != other.io:
        return f"its models take and give {other.io} values, not {own.io}"
    if precision != "float32" and precision not in other.float_alternatives:
        return f"its target file lists no {precision}"
    return ""


def offered_too(model: Model, own: Runtime, other: Runtime, options: Ladder) -> dict[str, tuple[str, ...]]:
    """Of each layer's choices in a runtime those that another one offers as well, which `refusal` has nothing against;
    a layer may be left with none."""
    return {g.name: tuple(c for c in options[g.name] if _takes(model, g, own, other, c)) for g in model.groups}


def takes(other: Kernel, own: Kernel) -> bool:
    """Whether a kernel computes with everything that was stored for another one."""
    if own.weights != other.weights or own.dynamic != other.dynamic or (own.weights and own.bias != other.bias):
        return False
    wide, narrow = other.weight_scheme, own.weight_scheme
    weights = wide is None or narrow is None or _holds(wide, narrow)
    return weights and _holds(other.activation_scheme, own.activation_scheme)


def _holds(wide: Scheme, narrow: Scheme) -> bool:
    """Whether every tensor of a narrow scheme is one of a wide scheme."""
    if (wide.dtype, wide.granularity, wide.levels) != (narrow.dtype, narrow.granularity, narrow.levels):
        return False
    if wide.integer and not (wide.quant_min <= narrow.quant_min and narrow.quant_max <= wide.quant_max):
        return False
    return (wide.symmetry == "asymmetric" or narrow.symmetry == "symmetric") and (
        narrow.power_of_two or not wide.power_of_two
    )


def _takes(model: Model, group: Group, own: Runtime, other: Runtime, choice: str) -> bool:
    if choice == FLOAT:
        # what keeps a runtime from rounding a float layer by itself is written only for those that would
        return own.rounds_float_layers or not other.rounds_float_layers or group.op not in WEIGHTED
    kernel = own.kernel(group.op, choice)
    if kernel is None:
        return False
    mine, theirs = (
        {f for f in r.fixed_outputs if f.op in (group.op, group.activation_op) and f.dtype == kernel.activations}
        for r in (own, other)
    )
    return (
        _has(other, group.op, kernel)
        and (kernel.float_ends or not computed_wrong(model, group, other))
        and (group.activation_op is None or _same_activation(group.activation_op, own, other))
        and (writes_integers(model, own, group) or not writes_integers(model, other, group))
        and (group.op in own.shared_scale or group.op not in other.shared_scale)
        and theirs <= mine
    )


def _same_activation(op: str, own: Runtime, other: Runtime) -> bool:
    """Whether the activation behind a layer runs as the artefact has it: inside the layer's kernel, in a kernel of its
    own, or in float."""
    if op in own.fused_activations:
        return op in other.fused_activations
    kernel = own.kernel(op)
    return kernel is None or _has(other, op, kernel)


def _has(other: Runtime, op: str, kernel: Kernel) -> bool:
    return any(op in k.ops and takes(k, kernel) for k in other.kernels)
