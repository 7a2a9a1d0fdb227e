"""What each layer may choose from: the kernels that the runtime has for it, and float."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from edgeq.calibration.histogram import Histogram
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.planning.assign import FLOAT, assign, weight_only_refusal
from edgeq.planning.form import on_integers
from edgeq.registry.schema import Kernel, Runtime

Ladder = Mapping[str, tuple[str, ...]]
"""By group name, the names of its choices: the preferred one first, which is float where nothing runs on integers."""


def ladder(
    model: Model, runtime: Runtime, histograms: dict[str, Histogram], without: Collection[tuple[str, str]] = ()
) -> dict[str, tuple[str, ...]]:
    """The choices of every group, in the model's order.

    Kernels whose activations are integers of another type than the preferred kernel's are left out: a tensor between
    two layers has one type.

    Args:
        without: operator classes and kernel names that are not to be offered.
    """
    preferred = assign(model, runtime, histograms).kernels

    def fits(group: Group, kernel: Kernel) -> bool:
        if group.op not in kernel.ops or (group.op, kernel.name) in without:
            return False
        if kernel.weight_only:
            return not weight_only_refusal(model, group, kernel)
        first = preferred.get(group.name)
        return first is not None and kernel.activation_scheme == first.activation_scheme

    found: dict[str, tuple[str, ...]] = {}
    for group in model.groups:
        names = list(dict.fromkeys(k.name for k in runtime.kernels if fits(group, k)))
        first = next((name for name in names if on_integers(name)), FLOAT)
        found[group.name] = tuple(dict.fromkeys([first, *names, FLOAT]))
    return found


def uniform(choices: Ladder, wanted: str | None = None) -> dict[str, str]:
    """The plan that gives each layer the choice `wanted` where it has it, or else the preferred one; beside layers
    that compute in float, float."""
    floats = wanted is not None and not on_integers(wanted)
    return {
        name: wanted if wanted is not None and wanted in options else FLOAT if floats else options[0]
        for name, options in choices.items()
    }
