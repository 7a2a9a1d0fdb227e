"""Ways to round weights, by the names that plans have for them."""

from collections.abc import Sequence
from importlib import import_module

from edgeq.errors import UsageError
from edgeq.methods.method import Change, Method, Seen, Wanted
from edgeq.methods.nearest import nearest
from edgeq.model.model import Model

NEAREST = "nearest"
RECONSTRUCT = "reconstruct"


def late(module: str, name: str) -> Method:
    """A method whose module is imported when it is used: PyTorch takes seconds."""

    def called(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
        change: Change = getattr(import_module(module), name)(model, wanted, seen)
        return change

    return called


METHODS: dict[str, Method] = {NEAREST: nearest, RECONSTRUCT: late("edgeq.methods.reconstruct", "reconstruct")}
"""In the order in which they are applied, where layers of a model take several."""

TOGETHER = frozenset({RECONSTRUCT})
"""Those whose integers of one layer depend on how others are rounded."""


def method(name: str) -> Method:
    """A method by its name.

    Raises:
        UsageError: there is none.
    """
    if name not in METHODS:
        raise UsageError(f"there is no method {name!r}", remedy=f"one of {', '.join(METHODS)}")
    return METHODS[name]
