"""What the layers of a plan are offered: the kernels of the target's table that the shipped evidence proves."""

from __future__ import annotations

from edgeq.calibration.histogram import Histogram
from edgeq.lowering.choices import Ladder, ladder
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
