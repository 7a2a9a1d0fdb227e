"""Ways to round weights, by the names that plans have for them."""

from edgeq.errors import UsageError
from edgeq.methods.method import Method
from edgeq.methods.nearest import nearest

NEAREST = "nearest"
METHODS: dict[str, Method] = {NEAREST: nearest}


def method(name: str) -> Method:
    """A method by its name.

    Raises:
        UsageError: there is none.
    """
    if name not in METHODS:
        raise UsageError(f"there is no method {name!r}", remedy=f"one of {', '.join(METHODS)}")
    return METHODS[name]
