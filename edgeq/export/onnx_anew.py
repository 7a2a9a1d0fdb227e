"""What single readers round, and all others read as it is: each such reader gets a Q/DQ pair of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import onnx_ir as ir

from edgeq.errors import UnsupportedError
from edgeq.export.onnx_constant import TYPES, constant
from edgeq.export.onnx_float import FloatOnnx
from edgeq.model.groups import Group, only_moves
from edgeq.model.model import Model
from edgeq.numerics import QParams, same_steps
from edgeq.quantization.quantized import Quantized

_Place = tuple[ir.Node, int]
"""An operator, and the number of one of its inputs."""


def name_anew(node: str, dtype: str) -> str:
    """What the constants are called after by which single readers round a value: no value is called so."""
    return f"{node}/{dtype}"


def names_anew(node: str) -> list[str]:
    """All that may be."""
    return [name_anew(node, dtype) for dtype in ("int8", "uint8", "int16", "uint16")]


class Anew(NamedTuple):
    """What some operators read in another way than the value is rounded for all others.

    Attributes:
        node: graph node whose value it is.
        value: of the file; the node's own, or what that is moved to.
        name: what the constants are called after.
        readers: operators, and the places of their inputs.
    """

    node: str
    value: ir.Value
    name: str
    q: QParams
    readers: list[_Place]


def read_anew(model: Model, quantized: Quantized, values: Mapping[str, ir.Value], source: FloatOnnx) -> list[Anew]:
    """Everything that is rounded for single readers: in another type than it is written in, where others read it in
    float, or where what was rounded (a padding that the exporter made a part of its convolution) has no value of its
    own in the file. The readers are found by what they compute: the way back from a layer's value to what it reads
    leads through its own operators.

    Raises:
        UnsupportedError: there is no such way.
    """
    ways: dict[tuple[str, str], list[tuple[str, list[_Place]]]] = {}
    grids: dict[str, QParams] = {}
    rounded = quantized.rounded
    makers = {group.output: group for group in model.groups}

    def behind(node: str) -> Iterator[str]:
        """A value, and those that it is moved from, as far as the file has them."""
        if node in source.values:
            yield node
        made_by = makers.get(node)
        if made_by is not None and only_moves(made_by, model.nodes[made_by.root]):
            yield from behind(made_by.inputs[0])

    def way_to(group: Group, held: str) -> list[_Place]:
        inputs = {source.values[n] for n in (*group.inputs, held) if n in source.values}
        return _way(values[source.values[group.root]], inputs, values[source.values[held]])

    for group in model.groups:
        for node in group.inputs:
            read, places = quantized.read(group, node), list(behind(node))
            if read is None or group.root not in source.values or not places:
                continue  # what the exporter made a part of its reader is rounded where that reads; a constant nowhere
            ways_to = {held: way_to(group, held) for held in places}
            held = next((held for held, way in ways_to.items() if way), places[0])
            before, way = rounded.get(held), ways_to[held]
            if before is not None and same_steps(before.q, read.q):
                continue  # it reads what everyone reads
            own = quantized.activations.get(held)
            called = held if own is not None and same_steps(own.q, read.q) else node
            name = name_anew(called, read.q.scheme.dtype)
            grids[name] = read.q
            ways.setdefault((name, held), []).append((group.name, way))
    found: list[Anew] = []
    names: Counter[str] = Counter()
    for (name, held), several in ways.items():
        found += _rounded_for(several, held, name, grids[name], values[source.values[held]], names)
    return found


def _rounded_for(
    several: Sequence[tuple[str, list[_Place]]], node: str, name: str, q: QParams, value: ir.Value, names: Counter[str]
) -> Iterable[Anew]:
    """One value on one grid, for the readers of several ways; at each place where these part from others.

    Args:
        several: layers, and their ways from the value.
        names: how many are called so already.
    """
    passed = {place for _, way in several for place in way}
    by_value: dict[int, Anew] = {}
    for layer, way in several:
        at = _to_round(way, value, passed)
        if at is None:
            raise UnsupportedError(
                "what it reads is not to be found in the exported ONNX model",
                where=f"layer {layer}",
                remedy="give it the choice of the layer that it reads from",
            )
        if id(at) not in by_value:
            by_value[id(at)] = Anew(node, at, f"{name}/{names[name]}" if names[name] else name, q, [])
            names[name] += 1
        one = by_value[id(at)]
        one.readers.extend(place for place in way if _at(place) is at and place not in one.readers)
    return by_value.values()


_MOVES = frozenset({"Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


def _to_round(way: Sequence[_Place], wanted: ir.Value, passed: Collection[_Place]) -> ir.Value | None:
    """What is to be rounded for the reader that a way begins with: the value itself, or, where an operator on the way
    gives to others as well, what that one moved it to; None if there is nothing that only moved."""
    for number, place in enumerate(way):
        value = _at(place)
        if value is not wanted and value is not None and any(tuple(use) not in passed for use in value.uses()):
            return value if all(node.op_type in _MOVES for node, _ in way[number + 1 :]) else None
    return wanted if way else None


def _at(place: _Place) -> ir.Value | None:
    node, index = place
    return node.inputs[index]


def _way(result: ir.Value | None, ends: Collection[str], wanted: ir.Value) -> list[_Place]:
    """All places that are passed on the ways back from a result to a value, which do not lead beyond the ends."""
    node = result.producer() if result is not None else None
    found: list[_Place] = []
    for index, value in enumerate(node.inputs if node is not None else ()):
        if node is not None and value is wanted:
            found.append((node, index))
        elif node is not None and value is not None and str(value.name) not in ends:
            behind = _way(value, ends, wanted)
            found += [(node, index), *behind] if behind else []
    return found


def round_again(graph: ir.Graph, real: ir.Value, name: str, q: QParams, readers: Sequence[_Place]) -> None:
    """These readers alone read a value through a Q/DQ pair of their own."""
    scale = constant(graph, f"{name}_scale", q.scale)
    zero = constant(graph, f"{name}_zero_point", q.zero_point.astype(TYPES[q.scheme.dtype].numpy()))
    quantize = ir.Node("", "QuantizeLinear", [real, scale, zero], name=f"{name}_quantize")
    integers = quantize.outputs[0]
    integers.name, integers.dtype, integers.shape = f"{name}_integers", TYPES[q.scheme.dtype], real.shape
    dequantize = ir.Node("", "DequantizeLinear", [integers, scale, zero], name=f"{name}_dequantize")
    again = dequantize.outputs[0]
    again.name, again.dtype, again.shape = f"{name}_real", ir.DataType.FLOAT, real.shape
    producer = real.producer()
    if producer is not None:
        graph.insert_after(producer, [quantize, dequantize])
    else:
        graph.insert_before(graph[0], [quantize, dequantize])
    for reader, index in readers:
        reader.replace_input_with(index, again)
