"""What each layer may choose from: the kernels that the runtime has for it, and float."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from edgeq.calibration.histogram import Histogram
from edgeq.lowering.assign import FLOAT, assign
from edgeq.lowering.float_ends import float_ends_refusal
from edgeq.lowering.form import form, on_integers
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.registry.schema import Kernel, Runtime

Ladder = Mapping[str, tuple[str, ...]]
"""By group name, the names of its choices: the preferred one first, which is float where nothing runs on integers."""


def by_activations(runtime: Runtime) -> dict[str, Runtime]:
    """A runtime as far as each type of integers that it computes activations in: with the kernels of the preferred one
    alone, then with those of the next one as well, and so on; those that read and write float are always there. By the
    type that is new in it; by `float32` where nothing is computed on integers."""
    types = list(dict.fromkeys(k.activations for k in runtime.kernels if not k.float_ends))
    return {
        one: runtime.model_copy(
            update={"kernels": [k for k in runtime.kernels if k.float_ends or k.activations in types[:number]]}
        )
        for number, one in enumerate(types, start=1)
    } or {FLOAT: runtime}


def with_preferred(runtime: Runtime) -> Runtime:
    """The first of `by_activations`: no other integers than those of the preferred kernels."""
    return next(iter(by_activations(runtime).values()))


def of_choices(runtime: Runtime, choices: Iterable[str]) -> Runtime:
    """Of `by_activations`, the first with all of these choices; the first of all where none has."""
    wanted = set(filter(on_integers, choices))
    every = list(by_activations(runtime).values())
    return next((one for one in every if wanted <= {k.name for k in one.kernels}), every[0])


def ladder(
    model: Model,
    runtime: Runtime,
    histograms: dict[str, Histogram],
    without: Collection[tuple[str, str]] = (),
    named: Collection[str] = (),
) -> dict[str, tuple[str, ...]]:
    """The choices of every group, in the model's order.

    Kernels of one type of integers read and write a tensor alike: those with another scheme than the first one's are
    left out, and those of a type in which the activation behind a layer does not run as it does in the preferred one.

    Args:
        without: operator classes and kernel names that are not to be offered.
        named: of kernels that are offered only to whom names them.
    """
    preferred = assign(model, runtime, histograms).kernels

    def fits(group: Group, kernel: Kernel) -> bool:
        hidden = kernel.only_named and kernel.name not in named
        if group.op not in kernel.ops or hidden or (group.op, kernel.name) in without:
            return False
        if kernel.float_ends:
            return not float_ends_refusal(model, group, runtime, kernel)
        alike = (k for k in runtime.kernels if group.op in k.ops and not k.float_ends)
        first = next(k for k in alike if k.activations == kernel.activations)
        if group.name not in preferred or kernel.activation_scheme != first.activation_scheme:
            return False
        behind = group.activation_op
        if behind is None or behind in runtime.fused_activations:
            return True
        its_own = [k.activations for k in runtime.kernels if behind in k.ops and not k.float_ends]
        return not its_own or kernel.activations in its_own

    found: dict[str, tuple[str, ...]] = {}
    for group in model.groups:
        names = list(dict.fromkeys(k.name for k in runtime.kernels if fits(group, k)))
        first = next((name for name in names if on_integers(name)), FLOAT)
        found[group.name] = tuple(dict.fromkeys([first, *names, FLOAT]))
    return found


def uniform(choices: Ladder, wanted: str | None = None) -> dict[str, str]:
    """The plan that gives each layer the choice `wanted` where it has it, or else the first one that reads and writes
    the same integers, or else the preferred one; beside layers that compute in float, float."""

    def fitting(options: tuple[str, ...]) -> str:
        if wanted is None or wanted in options:
            return wanted or options[0]
        return next((c for c in options if form(c) == form(wanted)), options[0]) if on_integers(wanted) else FLOAT

    return {name: fitting(options) for name, options in choices.items()}
