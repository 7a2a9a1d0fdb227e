"""Activation tensors to integers: one scale and zero point for each share of tensors."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np

from edgeq.calibration.calibration import Calibration
from edgeq.calibration.estimators import ESTIMATORS, choose
from edgeq.calibration.histogram import Histogram
from edgeq.calibration.impact import Impact
from edgeq.errors import UnsupportedError
from edgeq.lowering.assign import Assignment, Version
from edgeq.model.model import Model
from edgeq.model.ops import MOVEMENT, op_class
from edgeq.numerics import QParams, Scheme, per_tensor, qparams, same_steps
from edgeq.registry.schema import FixedOutput, Runtime

END = "an input or output of the model: true extremes"
GIVEN = "given"
GIVEN_REASON = "the model came with it"
LEVELLED = "its channels were smoothed: true extremes"
"""All channels reach equally far then. What is cut off would be cut off everywhere, and layers behind a normalisation
bear that less well than gradients say."""


@dataclass(frozen=True)
class QuantizedTensor:
    """An activation's scale, and where it came from.

    Attributes:
        q: per-tensor scale and zero point.
        low, high: the range that was asked for, before it was widened to contain zero and rounded to a grid.
        estimator: name of the range estimator, or `fixed`.
        share: the tensor that stands for all that carry this scale.
        reason: one line for the plan.
    """

    q: QParams
    low: float
    high: float
    estimator: str
    share: str
    reason: str

    @property
    def version(self) -> Version:
        """What all have in common that carry this scale."""
        return self.share, self.q.scheme.dtype


class Activations(NamedTuple):
    """Every quantized tensor.

    Attributes:
        tensors: by graph node, in the type that its value has first.
        again: by graph node and type, rounded anew for those that read another type.
    """

    tensors: dict[str, QuantizedTensor]
    again: dict[Version, QuantizedTensor]


Ranges = dict[tuple[str, Scheme, bool, tuple[str, ...]], QuantizedTensor]
"""Found ranges, by estimator, scheme, whether the runtime prescribed them, and the tensors that share them."""


def quantize_activations(
    model: Model,
    runtime: Runtime,
    assignment: Assignment,
    calibration: Calibration,
    impact: Impact | None = None,
    estimator: str = "auto",
    ranges: Ranges | None = None,
) -> Activations:
    """Scale and zero point of every quantized tensor.

    Args:
        impact: what the rule minimizes.
        estimator: `auto` for the rule of `edgeq.calibration.estimators.choose`, or the name of one estimator.
        ranges: what was found for other plans of the same model; what is found now is added to it.
    """
    known = {} if ranges is None else ranges
    shares: dict[Version, list[str]] = defaultdict(list)
    own = assignment.tensors.items()
    for name, share in (*own, *((name, share) for (name, _), share in assignment.again.items())):
        shares[share].append(name)
    at_the_ends, levelled = ends(model), model.levelled
    found: dict[Version, QuantizedTensor] = {}
    for share, names in shares.items():
        scheme = assignment.schemes[share].activation_scheme
        fixed = next((f for n in names if (f := _fixed(model, n, runtime, scheme)) is not None), None)
        key = (estimator, scheme, fixed is not None, tuple(sorted(names)))
        if key not in known:
            whole = END if not at_the_ends.isdisjoint(names) else LEVELLED if not levelled.isdisjoint(names) else ""
            known[key] = (
                _given(model, names, share[0], scheme, fixed)
                or (_prescribed(fixed, share[0], runtime.name) if fixed else None)
                or _estimated(names, share[0], scheme, calibration, impact, estimator, whole)
            )
        found[share] = known[key]
    return Activations(
        {name: found[share] for name, share in own},
        {version: found[share] for version, share in assignment.again.items()},
    )


def ends(model: Model) -> set[str]:
    """The inputs and outputs of a model, and whatever is only moved to become an output."""
    found = {*model.input_nodes, *model.output_nodes}
    for node in reversed(model.program.nodes):
        if node.name in found and node.op == "call_function" and op_class(node) in MOVEMENT:
            found.update(read.name for read in node.all_input_nodes)
    return found


def _fixed(model: Model, name: str, runtime: Runtime, scheme: Scheme) -> FixedOutput | None:
    node = model.nodes[name]
    op = op_class(node) if node.op == "call_function" else None
    return next((f for f in runtime.fixed_outputs if f.op == op and f.dtype == scheme.dtype), None)


def _given(
    model: Model, names: list[str], share: str, scheme: Scheme, fixed: FixedOutput | None
) -> QuantizedTensor | None:
    """The grid that the model came with for tensors that share one; None where it has none.

    Raises:
        UnsupportedError: it has another one than the scheme can hold, or several.
    """
    grids = [grid for name in names if model.grids is not None for grid in model.grids.of(name)]
    fits = [q for grid in grids if (q := grid.of_activations(scheme)) is not None]
    if not grids:
        return None
    q = fits[0] if fits else None
    if q is None or any(not same_steps(q, other) for other in fits):
        cause = (
            f"{scheme.dtype} {scheme.symmetry} is wanted" if q is None else f"{', '.join(names)} share one scale there"
        )
    elif fixed is not None and (float(q.scale), int(q.zero_point)) != (np.float32(fixed.scale), fixed.zero_point):
        cause = f"the runtime prescribes the scale {fixed.scale:.4g} behind {fixed.op}"
    else:
        return QuantizedTensor(q, q.low, q.high, GIVEN, share, GIVEN_REASON)
    raise UnsupportedError(
        f"the model rounds it to {'; '.join(map(str, grids))}, and {cause}",
        where=f"the value {share}",
        remedy="give the plan that it was trained with, take another target, or quantize the float model",
    )


def _prescribed(fixed: FixedOutput, share: str, runtime: str) -> QuantizedTensor:
    q = per_tensor(Scheme(fixed.dtype), fixed.scale, fixed.zero_point)
    return QuantizedTensor(q, q.low, q.high, "fixed", share, f"{runtime} prescribes it for {fixed.op}")


def _estimated(
    names: list[str],
    share: str,
    scheme: Scheme,
    calibration: Calibration,
    impact: Impact | None,
    estimator: str,
    whole: str,
) -> QuantizedTensor:
    """A range for tensors that share it; the true extremes where `whole` says why."""
    histogram = reduce(Histogram.union, (calibration.histograms[n] for n in names))
    if estimator == "auto":
        known = impact if impact is not None and impact.knows(names) else None
        damage = None if known is None else lambda q: known.of(names, q)
        used, (low, high) = choose(histogram, scheme, boundary=bool(whole), damage=damage)
        reason = "least expected movement of the outputs" if known else "least squared error: no gradient reaches it"
        reason = whole or reason
    else:
        used, (low, high) = estimator, ESTIMATORS[estimator](histogram, scheme)
        reason = "asked for"
    if len(names) > 1:
        reason += f"; shared by {len(names)} tensors"
    q = qparams(low, high, scheme)
    return QuantizedTensor(q, low, high, used, share, reason)
