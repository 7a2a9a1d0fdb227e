"""What is known of a graph node's value before it is computed: its sizes and its type."""

from __future__ import annotations

from edgeq.model.graph import Free, Node, Value


def tensor_of(node: Node) -> Value | None:
    """What is known of the single tensor that a node gives; None where it gives anything else."""
    return node.value if isinstance(node.value, Value) else None


def traced_size(size: int | Free) -> int:
    """A size of a shape; one that is free counts as it was when the graph was made."""
    return size.traced if isinstance(size, Free) else int(size)
