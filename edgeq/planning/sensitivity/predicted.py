"""The losses of all choices, put together from what weights and tensors lose."""

from __future__ import annotations

from edgeq.lowering.assign import FLOAT, writes_integers
from edgeq.lowering.choices import Ladder
from edgeq.lowering.form import form
from edgeq.model.groups import only_moves
from edgeq.model.model import Model
from edgeq.planning.sensitivity.value import Sensitivity
from edgeq.registry.schema import Runtime


def predicted_losses(
    model: Model, runtime: Runtime, choices: Ladder, sensitivity: Sensitivity
) -> dict[tuple[str, str], float]:
    """By group and choice other than float: the damage of its weights, and of the values that it leaves behind where
    those are integers. What only moves values from a scale to the same scale rounds nothing: whoever made the
    integers has paid for them."""
    moved = {g.output for g in model.groups if g.op in runtime.shared_scale and only_moves(g, model.nodes[g.root])}
    left_behind = {g.output for g in model.groups if writes_integers(model, runtime, g)} - moved
    found: dict[tuple[str, str], float] = {}
    for group in model.groups:
        written = [node for node in group.members if node != group.output or node in left_behind]
        weights = sensitivity.weights.get(group.name, {})
        found |= {
            (group.name, c): weights.get(c, 0.0)
            + sum(sensitivity.tensors.get((n, form(c) or ""), 0.0) for n in written)
            for c in choices[group.name]
            if c != FLOAT
        }
    return found
