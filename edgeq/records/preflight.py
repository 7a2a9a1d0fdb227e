"""What an artefact answers on the CPUs of its family."""

from __future__ import annotations

from pydantic import Field

from edgeq.records.strict import Strict


class Difference(Strict):
    """Where the answers of two CPUs part, and why.

    Attributes:
        layer: the first one, in the order in which they run, that writes other integers.
        steps: how far apart these are at most, in quantization steps.
        cause: in the arithmetic.
        saturating: layers in which sums saturate, as far as the samples tell.
    """

    layer: str
    steps: int
    cause: str
    saturating: list[str] = []


class OnMember(Strict):
    """The artefact on one CPU.

    Attributes:
        differing: indices of samples that are answered otherwise (see `edgeq.preflight.compare.differing`).
        moved: of an output, the largest difference to the reference's in its own units; None where one of the two is
            no number.
        difference: None where nothing differs, or the format does not show its layers.
        remedy: what would make the answers the same.
    """

    device: str
    about: str
    differing: list[int] = []
    moved: float | None = 0.0
    difference: Difference | None = None
    remedy: str = ""
    unreached: str = ""
    """Why nothing was run on it."""


class Preflight(Strict):
    """All of them.

    Attributes:
        reference: the member that the others are compared with.
        samples: that were run on each.
    """

    schema_version: int = 1
    artifact: str
    target: str
    samples: int
    reference: str
    members: dict[str, OnMember]
    warnings: list[str] = []
    """What keeps the comparison from telling all."""
    layers: list[str] = Field(default=[])
    """Those in which sums saturate on some member: the ones to give narrower weights."""
