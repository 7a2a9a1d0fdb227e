"""Ways to round weights, by the names that plans have for them."""

from edgeq.errors import UsageError
from edgeq.methods.awq_clip import awq_clip
from edgeq.methods.gptq import gptq
from edgeq.methods.hqq import hqq
from edgeq.methods.method import Method
from edgeq.methods.nearest import nearest

NEAREST = "nearest"
METHODS: dict[str, Method] = {
    NEAREST: nearest,
    "gptq": gptq,
    "hqq": hqq,
    "awq-clip": awq_clip,
}


def method(name: str) -> Method:
    """A method by its name.

    Raises:
        UsageError: there is none.
    """
    if name not in METHODS:
        raise UsageError(f"there is no method {name!r}", remedy=f"one of {', '.join(METHODS)}")
    return METHODS[name]
