"""The damage that each choice does: how far rounding one layer's weights, or one tensor, moves the model's outputs.

`edgeq.planning.sensitivity.damages` measures it. Damages of different layers add up as long as they are small and know
nothing of one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

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
    tensors: dict[Rounded, float]


def contenders(predicted: Mapping[Choice, float], count: int = CONTENDERS) -> list[Choice]:
    """The choices that are worth measuring: the worst one of each of the layers with the most damage makes half of them
    (two choices of a layer that share their weights would tell the same), the others are spread over the rest."""
    ranked = sorted((key for key, value in predicted.items() if value > 0), key=lambda key: (-predicted[key], key))
    worst: dict[str, Choice] = {}
    for key in ranked:
        worst.setdefault(key[0], key)
    first = list(worst.values())[: count // 2]
    rest = [key for key in ranked if key not in first]
    spread = (
        sorted({round(i) for i in np.linspace(0, len(rest) - 1, min(len(rest), count - len(first)))}) if rest else []
    )
    return first + [rest[i] for i in spread]
