"""The damage that each choice does: how far rounding one layer's weights, or one tensor, moves the model's outputs.

`edgeq.planning.sensitivity.damages` measures it. Damages of different layers add up as long as they are small and know
nothing of one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import PlainSerializer, PlainValidator

from edgeq.lowering.assign import FLOAT, writes_integers
from edgeq.lowering.form import form
from edgeq.lowering.space import Space
from edgeq.model.groups import only_moves

CONTENDERS = 32

Choice = tuple[str, str]
"""A group's name and the name of a choice."""

Rounded = tuple[str, str]
"""A graph node and the form of integers that its values are rounded to."""


@dataclass(frozen=True)
class Sensitivity:
    """Damages: squared movement of the outputs over their own power, averaged over samples.

    Attributes:
        weights: by group name and choice, of its rounded weights with their corrected bias.
        tensors: by graph node and form (see `edgeq.lowering.form`), of its rounded values.
    """

    weights: dict[str, dict[str, float]]
    tensors: Annotated[
        dict[Rounded, float],
        PlainValidator(lambda kept: {(node, one): value for node, one, value in kept}),
        PlainSerializer(lambda found: [[*key, value] for key, value in found.items()]),
    ]


def predicted_losses(space: Space, sensitivity: Sensitivity) -> dict[Choice, float]:
    """By group and choice other than float: the damage of its weights, and of the values that it leaves behind where
    those are integers. What only moves values from a scale to the same scale rounds nothing: whoever made the
    integers has paid for them."""
    model, runtime = space.model, space.runtime
    moved = {g.output for g in model.groups if g.op in runtime.shared_scale and only_moves(g, model.nodes[g.root])}
    left_behind = {g.output for g in model.groups if writes_integers(model, runtime, g)} - moved
    found: dict[Choice, float] = {}
    for group in model.groups:
        written = [node for node in group.members if node != group.output or node in left_behind]
        weights = sensitivity.weights.get(group.name, {})
        found |= {
            (group.name, c): weights.get(c, 0.0)
            + sum(sensitivity.tensors.get((n, form(c) or ""), 0.0) for n in written)
            for c in space.options[group.name]
            if c != FLOAT
        }
    return found


def contenders(predicted: Mapping[Choice, float], count: int = CONTENDERS) -> list[Choice]:
    """The choices that are worth measuring: half are the worst ones of the layers with the most damage, one of each;
    the others are spread over the rest."""
    ranked = sorted((key for key, value in predicted.items() if value > 0), key=lambda key: (-predicted[key], key))
    worst: dict[str, Choice] = {}
    for key in ranked:
        worst.setdefault(key[0], key)
    first = list(worst.values())[: count // 2]
    rest = [key for key in ranked if key not in first]
    spread = np.linspace(0, len(rest) - 1, min(len(rest), count - len(first)))
    return first + [rest[i] for i in sorted({round(i) for i in spread})]
