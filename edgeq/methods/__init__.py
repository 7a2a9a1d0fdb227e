"""Ways to round weights, by the names that plans have for them."""

from collections.abc import Sequence

from edgeq.errors import UsageError
from edgeq.methods.awq_clip import awq_clip
from edgeq.methods.gptq import gptq
from edgeq.methods.hqq import hqq
from edgeq.methods.method import Change, Method, Seen, Wanted
from edgeq.methods.nearest import nearest
from edgeq.model.model import Model

NEAREST = "nearest"
GPTQ = "gptq"
RECONSTRUCT = "reconstruct"
DISTIL = "distil"


def _reconstruct(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    from edgeq.methods.reconstruct import reconstruct  # PyTorch takes seconds to import

    return reconstruct(model, wanted, seen)


def _distil(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    from edgeq.methods.distil import distil  # likewise

    return distil(model, wanted, seen)


METHODS: dict[str, Method] = {
    NEAREST: nearest,
    GPTQ: gptq,
    "hqq": hqq,
    "awq-clip": awq_clip,
    RECONSTRUCT: _reconstruct,
    DISTIL: _distil,
}
"""In the order in which they are applied, where layers of a model take several."""

TOGETHER = frozenset({RECONSTRUCT, DISTIL})
"""Those whose integers of one layer depend on how others are rounded."""


def method(name: str) -> Method:
    """A method by its name.

    Raises:
        UsageError: there is none.
    """
    if name not in METHODS:
        raise UsageError(f"there is no method {name!r}", remedy=f"one of {', '.join(METHODS)}")
    return METHODS[name]
