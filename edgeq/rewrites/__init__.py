"""Ways to rewrite the float network before anything is rounded, by the names that plans have for them."""

from edgeq.errors import UsageError
from edgeq.model.model import Model
from edgeq.model.ops import WEIGHTED
from edgeq.model.scaled import product_of
from edgeq.rewrites.absorption import ABSORB
from edgeq.rewrites.awq import AWQ
from edgeq.rewrites.equalization import EQUALIZE
from edgeq.rewrites.link_smoothing import SMOOTH_LINKS
from edgeq.rewrites.low_rank import LOW_RANK
from edgeq.rewrites.outlier_columns import OUTLIER_COLUMNS
from edgeq.rewrites.rewrite import Rewrite
from edgeq.rewrites.smooth_quant import SMOOTH_QUANT

REWRITES: dict[str, Rewrite] = {
    "smooth_quant": SMOOTH_QUANT,
    "equalize": EQUALIZE,
    "smooth_links": SMOOTH_LINKS,
    "absorb": ABSORB,
    "awq": AWQ,
    "outlier_columns": OUTLIER_COLUMNS,
    "low_rank": LOW_RANK,
}
"""In the order in which they are done."""


def rewrite_named(name: str) -> Rewrite:
    """A rewrite by its name.

    Raises:
        UsageError: there is none.
    """
    if name not in REWRITES:
        raise UsageError(f"there is no rewrite {name!r}", where="rewrites", remedy=f"one of {', '.join(REWRITES)}")
    return REWRITES[name]


def rewritten_layers(model: Model) -> dict[str, str]:
    """By the name of a layer that reads rewritten values, what was done to them."""
    found: dict[str, str] = {}
    for name, places in model.rewrites.items():
        values = {value: place for place in places for value in (place, product_of(place))}
        for group in model.groups:
            if group.op in WEIGHTED and group.inputs and group.inputs[0] in values:
                rewrite, parameter = rewrite_named(name), places[values[group.inputs[0]]]
                done = f"{rewrite.title} ({rewrite.parameter} {parameter:g}), "
                found[group.name] = found.get(group.name, "") + done
    return found
