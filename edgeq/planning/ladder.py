"""What each layer may choose from: the kernels that the runtime has for it, and float."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from edgeq.calibration.histogram import Histogram
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.planning.assign import FLOAT, assign, weight_only_refusal
from edgeq.planning.form import on_integers
from edgeq.registry.schema import Kernel, Runtime

Ladder = Mapping[str, tuple[str, ...]]
"""By group name, the names of its choices: the preferred one first, which is float where nothing runs on integers."""


def by_activations(runtime: Runtime) -> dict[str, Runtime]:
    """A runtime once for each type of integers that it computes activations in, the preferred one first, each with the
    kernels of that type and with those that only store weights. A plan is of one of them: a tensor between two layers
    has one type. By that type; by `float32` where nothing is computed on integers."""
    types = dict.fromkeys(k.activations for k in runtime.kernels if not k.weight_only)
    return {
        one: runtime.model_copy(
            update={"kernels": [k for k in runtime.kernels if k.weight_only or k.activations == one]}
        )
        for one in types
    } or {FLOAT: runtime}


def of_choices(runtime: Runtime, choices: Iterable[str]) -> Runtime:
    """Of `by_activations`, the one with all of these choices; the first where none has."""
    wanted = set(filter(on_integers, choices))
    every = list(by_activations(runtime).values())
    return next((one for one in every if wanted <= {k.name for k in one.kernels}), every[0])


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
