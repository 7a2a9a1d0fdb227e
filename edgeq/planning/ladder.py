"""What each layer may choose from: the kernels that the runtime has for it, and float."""

from __future__ import annotations

from collections.abc import Mapping

from edgeq.calibration.histogram import Histogram
from edgeq.model.model import Model
from edgeq.planning.assign import FLOAT, assign
from edgeq.registry.schema import Runtime

Ladder = Mapping[str, tuple[str, ...]]
"""By group name, the names of its choices: the runtime's preferred kernel first, float last."""


def ladder(model: Model, runtime: Runtime, histograms: dict[str, Histogram]) -> dict[str, tuple[str, ...]]:
    """The choices of every group, in the model's order.

    Kernels whose activations are of another type than the preferred kernel's are left out: a tensor between two
    layers has one type.
    """
    preferred = assign(model, runtime, histograms).kernels
    found: dict[str, tuple[str, ...]] = {}
    for group in model.groups:
        first = preferred.get(group.name)
        kernels = [
            k for k in runtime.kernels if first and group.op in k.ops and k.activation_scheme == first.activation_scheme
        ]
        found[group.name] = (*dict.fromkeys(k.name for k in kernels), FLOAT)
    return found


def uniform(choices: Ladder, wanted: str | None = None) -> dict[str, str]:
    """The plan that gives each layer the choice `wanted` where it has it, or else the runtime's preferred one."""
    return {
        name: wanted if wanted is not None and wanted in options else options[0] for name, options in choices.items()
    }
