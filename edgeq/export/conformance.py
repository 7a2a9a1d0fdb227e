"""Written files against the documented rules of runtimes that are not run here."""

from __future__ import annotations

from pathlib import Path

from edgeq.errors import UnsupportedError
from edgeq.records.schema import Conformance
from edgeq.runtimes import NOT_RUN


class ConformanceError(UnsupportedError):
    """The runtime would refuse the written file, or compute something else than was planned."""


def conformance(runtime: str, path: Path) -> Conformance | None:
    """A written file against the rules of its runtime; None for one that is run.

    Raises:
        ConformanceError: it breaks a rule without which the runtime does not read it; what costs time alone is told.
    """
    book = NOT_RUN.get(runtime)
    if book is None:
        return None
    found = book.hold(path)
    for breach in found.refusals:
        raise ConformanceError(
            f"the written file breaks one of {book.name} ({breach.rule}): {breach.cause}, but {breach.text}",
            where=breach.node,
            remedy=f"choose another kernel for the layer (see {breach.source}), or report this model",
        )
    return found
