"""What a source of latencies is: a clock, a compiler's estimate, a model of a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from edgeq.lowering.space import Space
from edgeq.planning.costs.builds import Built
from edgeq.planning.costs.timing import Timing
from edgeq.plans.plan import FloatPrecision, ModelledBy
from edgeq.prepare import Job


class Bench(NamedTuple):
    """What a source may look at.

    Attributes:
        job: with its device, profile and threads.
        space: the model, the runtime and the choices that are to be priced.
        built: a few builds of the whole model, by name (see `edgeq.planning.costs.builds.probing_plans`).
        labels: by each name that an operator of a build may carry, its layer.
    """

    job: Job
    space: Space
    built: Mapping[str, Built]
    labels: Mapping[str, str]


class Latencies(NamedTuple):
    """What choices take.

    Attributes:
        tables: by the precision of what stays in float, seconds of every layer with every choice that is known, and of
            the conversions between them.
        by: what modelled them; None where the device's own clock measured them.
    """

    tables: dict[FloatPrecision, Timing]
    by: ModelledBy | None


class Source(Protocol):
    """One way to know latencies (docs/costs.md)."""

    __name__: str

    def __call__(self, bench: Bench) -> Latencies | str | None:
        """The latencies; a sentence that says why there are none; or None where this is no device of this source."""
