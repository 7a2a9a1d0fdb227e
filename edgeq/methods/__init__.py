"""Ways to round weights, by the names that plans have for them."""

from edgeq.methods.method import Method
from edgeq.methods.nearest import nearest

NEAREST = "nearest"
METHODS: dict[str, Method] = {NEAREST: nearest}
