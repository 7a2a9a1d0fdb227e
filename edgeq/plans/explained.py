"""What is said of a plan when it is explained: what other choices would change, and where its loss comes from."""

from __future__ import annotations

from math import inf
from typing import Literal

from edgeq.lowering.boundaries import Kind
from edgeq.plans.plan import AloneLoss
from edgeq.records.strict import Strict

CHANCE = 2.0
"""Standard errors within which a figure may be chance."""

Cause = Literal["clipping", "weights", "activations", "bias"]
CAUSES: tuple[Cause, ...] = ("clipping", "weights", "activations", "bias")

LossFrom = Literal["predicted", "alone", "simulated"]


class Change(Strict):
    """One layer with another choice, all others left as they are."""

    layer: str
    choice: str
    latency: float | None
    """Seconds more, conversions included."""
    size: float
    """Bytes more."""
    loss: float
    """How much more is lost, as a share of what the whole plan loses."""
    loss_from: LossFrom = "predicted"
    """`simulated` if the whole plan was run with this change (see `edgeq.planning.explain.attribution`), `alone` if
    this layer was, all others in float."""


class ExplainedLayer(Strict):
    """Why a layer is what it is."""

    name: str
    op: str
    choice: str
    reason: str
    loss_share: float
    """Its part of what the plan is expected to lose."""
    alternatives: list[Change]
    alone: list[AloneLoss] = []
    """Of its choices, those whose loss was simulated, beside what had been predicted."""


class Explanation(Strict):
    """A plan taken apart."""

    layers: list[ExplainedLayer]
    gain_accuracy: list[Change]
    """The changes that win back the most for the least time; or size, where there is no time."""
    gain_speed: list[Change]
    """The changes that save the most time for the least loss; empty where there is no time."""
    latency_from: Literal["measured", "modelled"] | None = None
    """Whether the latencies are those of a device, or modelled."""
    losses_alone: int = 0
    """How many choices of all layers were simulated alone."""
    rank_correlation: float | None = None
    """Spearman's, of the predicted and the simulated losses of those."""
    notes: list[str] = []
    """What the plan's rules overrule, and which of them change nothing."""


class Recosted(Strict):
    """An edited plan under its rules and the costs that it carries."""

    faults: list[str]
    costs: dict[str, float]
    before: dict[str, float]
    latency_from: Literal["measured", "modelled"] | None = None
    notes: list[str] = []
    """What the plan's rules overrule, and which of them change nothing."""


What = Kind | Literal["activation"]


class LostFusion(Strict):
    """One thing that runs beside a kernel instead of within it."""

    layer: str
    """The layer to change."""
    what: What
    neighbours: list[str]
    """The layers whose choices differ from this one's; none for an activation."""
    latency: float | None
    """Predicted seconds, from the plan's own costs; None where they hold none. Float layers that read one tensor share
    its conversion."""
    text: str
    instead: Change | None = None
    """The integer choice of this layer that would take the least time, predicted; None where there is none."""


class Recovered(Strict):
    """How much less the plan would lose, as a share of what it loses; negative if it would lose more."""

    share: float
    error: float | None
    """Standard error over samples; None for a single one."""

    @property
    def chance(self) -> float:
        """How much of it may be chance."""
        return inf if self.error is None else CHANCE * self.error

    @property
    def beyond_chance(self) -> bool:
        return abs(self.share) > self.chance


class Saturation(Strict):
    """Shares of values at the lowest and the highest integer, where the float model's values go on beyond it."""

    low: float
    high: float


class Ties(Strict):
    """Percent of answers that share the first place at the model's output, as planned and without rounding there."""

    planned: float
    without: float


class Causes(Strict):
    """The loss of one place, taken apart; None where a cause has no place, such as weights in an addition."""

    all: Recovered
    """Without any of the four: what is computed there is float."""
    clipping: Recovered | None = None
    weights: Recovered | None = None
    activations: Recovered | None = None
    bias: Recovered | None = None
    """The mean shift that the analytic correction left."""
    interaction: float
    """What all four bring back together beyond the sum of what each brings back alone."""
    largest: Cause | None
    """The cause that brings back most; None if that may be chance."""
    bias_corrected: Recovered | None = None
    """What the analytic correction has brought back already."""
    widened: Recovered | None = None
    """What a range at the true extremes would bring back: no clipping, coarser steps. None where it is there."""
    saturation: Saturation | None = None
    ties: Ties | None = None


class Instead(Strict):
    """The plan with another choice for one layer."""

    choice: str
    recovered: Recovered


class Reach(Strict):
    """A tensor's range, and the extremes that calibration saw; of the layer's last tensor that is rounded."""

    low: float
    high: float
    seen_low: float
    seen_high: float


class AttributedLayer(Strict):
    """A layer, or an input of the model."""

    name: str
    op: str
    choice: str
    expected: float
    """Its part of what the plan is expected to lose: what the places are ranked by."""
    causes: Causes
    reach: Reach | None
    instead: list[Instead]


class Attribution(Strict):
    """Where a plan's loss comes from."""

    schema_version: Literal[1] = 1
    how: Literal["simulated"] = "simulated"
    model_hash: str
    data_hash: str
    target: str
    runtime: str
    samples: int
    loss: float
    """What the plan loses on these samples: squared movement of the outputs over their own power."""
    error: float | None
    """Its standard error over samples."""
    predicted_loss: float | None
    places: int
    """At which something is rounded: the layers below are the guiltiest of them, or those that were asked for."""
    layers: list[AttributedLayer]
    """In the model's order."""
    together: Recovered
    """If all layers below were computed in float at once."""
    added: float
    """The sum of what each brings back alone; it is `together` where errors add up."""
    lost_fusion: list[LostFusion]
    """Of the whole plan, predicted, the longest first."""
    notes: list[str]
