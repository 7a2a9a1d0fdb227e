"""A network in blocks that run one after the other: residual blocks, or what a few layers of it make."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgeq.model.graph import Free, Node, Program, linked, replaced
from edgeq.model.values import tensor_of, traced_size

MOST = 4
"""Layers in a block: two residual blocks of two, or an inverted one of three."""


@dataclass(frozen=True)
class Block:
    """A part of a network.

    Attributes:
        program: it alone. Its inputs are the tensors of the whole that it reads, by their names there; its outputs
            those that others read, or the caller gets.
        layers: graph nodes of the layers in it.
    """

    program: Program
    layers: tuple[str, ...]


def find_blocks(program: Program, layers: Collection[str], most: float = MOST) -> list[Block]:
    """The whole network in blocks, in the order in which they run.

    A block ends where the fewest numbers are alive, of all places behind its first layers: between residual blocks,
    and at the narrow ends of inverted ones. What is alive may be several tensors, such as the skips of a U-Net.

    Args:
        layers: graph nodes of the layers that count.
        most: layers in a block, where it can be ended at all.
    """
    nodes = [node for node in program.nodes if node.op == "call_function"]
    at = {name: -1 for name in program.inputs} | {node.name: place for place, node in enumerate(nodes)}
    every = {node.name: node for node in program.nodes if node.name in at}
    last = dict(at)
    for place, node in enumerate(nodes):
        last |= {read.name: place for read in node.all_input_nodes if read.name in at}
    last |= dict.fromkeys(program.outputs, len(nodes))

    def alive(end: int) -> list[Node]:
        """What is there before the node at a place, and is read from there on."""
        return [node for name, node in every.items() if at[name] < end <= last[name]]

    blocks: list[Block] = []
    start = 0
    while start < len(nodes):
        end, least, seen = len(nodes), math.inf, 0
        for place in range(start, len(nodes)):
            seen += nodes[place].name in layers
            if seen > most and least < math.inf:
                break
            there = alive(place + 1)
            numbers = sum(_numbers(node) for node in there)
            if seen and numbers <= least and all(tensor_of(n) or _has_size(n, there) for n in there):
                end, least = place + 1, numbers
        if not any(node.name in layers for node in nodes[end:]):
            end = len(nodes)
        inside = nodes[start:end]
        program_of = _alone(program, inside, alive(start), {n.name for n in alive(end)})
        blocks.append(Block(program_of, tuple(n.name for n in inside if n.name in layers)))
        start = end
    return blocks


def _numbers(node: Node) -> int:
    value = tensor_of(node)
    return 0 if value is None else math.prod(map(traced_size, value.shape))


def _has_size(node: Node, tensors: Sequence[Node]) -> tuple[Node, int] | None:
    """For a size, a tensor that has it, and the axis."""
    for tensor in tensors if isinstance(node.value, Free) else ():
        value = tensor_of(tensor)
        for axis, size in enumerate(value.shape if value else ()):
            if isinstance(size, Free) and replace(size, traced=0) == replace(node.value, traced=0):  # type: ignore[type-var]
                return tensor, axis
    return None


def _alone(program: Program, inside: Sequence[Node], alive: Sequence[Node], read_behind: Collection[str]) -> Program:
    """Some nodes of a program as a program. Sizes that come from before are asked of tensors."""
    own = {node.name for node in inside}
    read = [n for n in dict.fromkeys(one for node in inside for one in node.all_input_nodes) if n.name not in own]
    held = [node for node in read if node.op == "get_attr" or node.name in program.lifted]
    sizes = {node: found for node in read if (found := _has_size(node, [*(n for n in alive if n in read), *alive]))}
    given = dict.fromkeys([n for n in read if n not in held and n not in sizes] + [n for n, _ in sizes.values()])
    copies: dict[Node, Node] = {}

    def copy(
        node: Node, op: Any, target: str, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> None:
        copies[node] = Node(node.name, op, target, args, kwargs or {}, node.value, node.modules)

    for node in (*given, *held):
        copy(node, *("placeholder", node.name) if node in given else (node.op, node.target))
    for node, (tensor, axis) in sizes.items():
        copy(node, "call_function", "aten.sym_size.int", (copies[tensor], axis))
    for node in inside:
        args, kwargs = replaced(
            (node.args, node.kwargs), lambda leaf: copies.get(leaf, leaf) if isinstance(leaf, Node) else leaf
        )
        copy(node, node.op, node.target, args, dict(kwargs))
    outputs = [node for node in inside if node.name in read_behind and tensor_of(node)]
    end = Node("output", "output", "output", (tuple(copies[node] for node in outputs),))
    return replace(
        program,
        nodes=linked([*copies.values(), end]),
        inputs=tuple(node.name for node in given),
        outputs=tuple(node.name for node in outputs),
        lifted={node.name: program.lifted[node.name] for node in held if node.name in program.lifted},
    )
