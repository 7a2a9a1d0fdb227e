"""What numbers cost that a rewrite adds: in the dB that the same bytes would gain elsewhere.

One bit more for each weight halves the steps of all of them, which is worth 6 dB. A rewrite that adds float weights has
to gain more than the network would gain if its weights were so many bits wider.
"""

from __future__ import annotations

import math

from edgeq.model.model import Model

DB_PER_BIT = 20 * math.log10(2)

FLOAT_BITS = 32


def price_db(added: int, weights: int) -> float:
    """What so many numbers in float cost beside so many weights."""
    return DB_PER_BIT * FLOAT_BITS * added / max(weights, 1)


def price_of(model: Model, changed: Model) -> float:
    """What a rewritten model costs."""
    return price_db(changed.parameters - model.parameters, sum(g.parameters for g in model.groups if g.weight))
