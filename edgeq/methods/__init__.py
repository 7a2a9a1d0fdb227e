"""Ways to round weights, by the names that plans have for them."""

from collections.abc import Callable, Sequence

from edgeq.errors import UsageError
from edgeq.methods.awq_clip import awq_clip
from edgeq.methods.binary import binary_connect, xnor
from edgeq.methods.gptq import gptq
from edgeq.methods.hqq import hqq
from edgeq.methods.method import Change, Method, Seen, Wanted
from edgeq.methods.nearest import nearest
from edgeq.methods.squeezellm import squeezellm
from edgeq.methods.twn import twn
from edgeq.model.model import Model
from edgeq.numerics import Scheme

NEAREST = "nearest"
GPTQ = "gptq"
RECONSTRUCT = "reconstruct"
DISTIL = "distil"
RE_ESTIMATE = "re-estimate"
SQUEEZELLM = "squeezellm"
TWN = "twn"
XNOR = "xnor"
BINARY_CONNECT = "binaryconnect"


def _reconstruct(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    from edgeq.methods.reconstruct import reconstruct  # PyTorch takes seconds to import

    return reconstruct(model, wanted, seen)


def _re_estimate(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    from edgeq.methods.re_estimate import re_estimate  # likewise

    return re_estimate(model, wanted, seen)


def _distil(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    from edgeq.methods.distil import distil  # likewise

    return distil(model, wanted, seen)


METHODS: dict[str, Method] = {
    NEAREST: nearest,
    GPTQ: gptq,
    "hqq": hqq,
    "awq-clip": awq_clip,
    SQUEEZELLM: squeezellm,
    TWN: twn,
    XNOR: xnor,
    BINARY_CONNECT: binary_connect,
    RE_ESTIMATE: _re_estimate,
    RECONSTRUCT: _reconstruct,
    DISTIL: _distil,
}
"""In the order in which they are applied, where layers of a model take several."""

TOGETHER = frozenset({RE_ESTIMATE, RECONSTRUCT, DISTIL})
"""Those whose integers of one layer depend on how others are rounded."""


def method(name: str) -> Method:
    """A method by its name.

    Raises:
        UsageError: there is none.
    """
    if name not in METHODS:
        raise UsageError(f"there is no method {name!r}", remedy=f"one of {', '.join(METHODS)}")
    return METHODS[name]


def _evenly(scheme: Scheme) -> bool:
    return scheme.levels is None


def _of_three(scheme: Scheme) -> bool:
    """Whether there are -1, 0 and 1, and any scale."""
    return scheme.dtype == "int2" and scheme.symmetry == "symmetric" and not scheme.power_of_two and _evenly(scheme)


ROUNDS_TO: dict[str, Callable[[Scheme], bool]] = {
    NEAREST: lambda scheme: True,
    GPTQ: lambda scheme: True,
    SQUEEZELLM: lambda scheme: scheme.levels is not None,
    TWN: _of_three,
    XNOR: _of_three,
    BINARY_CONNECT: _of_three,
}
"""The schemes of methods that are not for all with evenly spaced levels, and for these alone."""


def fits(name: str, scheme: Scheme) -> bool:
    """Whether a method rounds to such integers."""
    return ROUNDS_TO.get(name, _evenly)(scheme)
