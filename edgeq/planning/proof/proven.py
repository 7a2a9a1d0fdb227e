"""What the layers of a plan are offered: the kernels of the target's table that the shipped evidence proves."""

from __future__ import annotations

from collections.abc import Mapping

from edgeq.calibration.histogram import Histogram
from edgeq.lowering.assign import FLOAT
from edgeq.lowering.choices import Ladder, ladder
from edgeq.methods import fits
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.probing.evidence import shipped, unproven
from edgeq.registry.schema import Runtime, Target
from edgeq.runtimes import RUNTIMES


def proven_choices(
    target: Target, runtime: Runtime, model: Model, histograms: dict[str, Histogram]
) -> tuple[Ladder, list[str]]:
    """The choices of every group, and what to tell of those that were left out.

    A table without any evidence, such as that of a user's own target, is taken at its word.

    Raises:
        UsageError: the shipped evidence is damaged.
    """
    claimed = ladder(model, runtime, histograms)
    if shipped(target, runtime) is None:
        note = f"there is no evidence for {runtime.name} on {target.name}: its table is taken at its word"
        tried = target.execution != "none" and runtime.name in RUNTIMES
        return claimed, [f"{note} (edgeq probe --target {target.name} tries it)" if tried else note]
    proven = ladder(model, runtime, histograms, unproven(target, runtime))
    ops = {group.name: group.op for group in model.groups}
    gone = {f"{ops[name]} {c}" for name, choices in claimed.items() for c in choices if c not in proven[name]}
    more = f"the table of {target.name} claims more for {runtime.name} than was proven; left out: "
    return proven, [more + ", ".join(sorted(gone))] if gone else []


def rounded_by(offered: Ladder, runtime: Runtime, model: Model, methods: Mapping[str, str] | None) -> Ladder:
    """Of each layer's choices those that the method that is asked for rounds to; all where none is."""
    if methods is None:
        return offered

    def able(group: Group, choice: str) -> bool:
        kernel = None if choice == FLOAT else runtime.kernel(group.op, choice)
        scheme = None if kernel is None else kernel.weight_scheme
        return scheme is None or group.name not in methods or fits(methods[group.name], scheme)

    return {g.name: tuple(choice for choice in offered[g.name] if able(g, choice)) for g in model.groups}
