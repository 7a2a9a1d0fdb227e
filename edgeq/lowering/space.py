"""Every plan of a model in one runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from edgeq.lowering.boundaries import Edge, edges
from edgeq.lowering.choices import Ladder
from edgeq.model.model import Model
from edgeq.registry.schema import Runtime


@dataclass(frozen=True)
class Space:
    """What there is to choose from: by group name, the choices that the runtime offers."""

    model: Model
    runtime: Runtime
    options: Ladder

    @cached_property
    def edges(self) -> Sequence[Edge]:
        """The tensors between groups."""
        return edges(self.model, self.runtime)
