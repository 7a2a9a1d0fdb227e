"""Where a plan changes between float and integers, or from one type of integers to another: the tensors that then have
to be converted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from edgeq.lowering.assign import writes_integers
from edgeq.lowering.form import form
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.model.values import tensor_of
from edgeq.registry.schema import Runtime

Kind = Literal["quantize", "dequantize", "requantize"]


@dataclass(frozen=True)
class Edge:
    """A float tensor on its way between groups.

    Attributes:
        tensor: graph node whose value it is.
        producer: the group that computes it, None for an input of the model.
        float_anyway: it is float also where its producer runs on integers: as an input of the model, or where the
            producer's activation has no integer kernel.
        readers: the groups that read it, in the model's order.
        elements: numbers in it, for one sample.
    """

    tensor: str
    producer: str | None
    float_anyway: bool
    readers: tuple[str, ...]
    elements: int


def edges(model: Model, runtime: Runtime) -> tuple[Edge, ...]:
    """Every tensor that a group reads, in the model's order."""
    producers = {member: g for g in model.groups for member in g.members}
    readers: dict[str, list[str]] = {}
    for group in model.groups:
        for name in dict.fromkeys(group.inputs):
            readers.setdefault(name, []).append(group.name)
    result = []
    for name, found in readers.items():
        producer = producers.get(name)
        floats = producer is None or not writes_integers(model, runtime, producer)
        result.append(Edge(name, producer.name if producer else None, floats, tuple(found), elements(model, name)))
    return tuple(result)


class Crossing(NamedTuple):
    """A conversion of a tensor into what some of its readers want.

    Attributes:
        form: of integers, or None for float (see `edgeq.lowering.form`).
    """

    edge: Edge
    kind: Kind
    form: str | None


def kind_of(before: str | None, after: str | None) -> Kind:
    """What a conversion between two different forms is called."""
    return "quantize" if before is None else "dequantize" if after is None else "requantize"


def crossings(found: Sequence[Edge], choices: Mapping[str, str]) -> list[Crossing]:
    """The conversions that a plan needs: a float tensor that an integer group reads is quantized, an integer tensor
    that a float group reads is dequantized, and one that is read in another type of integers is requantized. What comes
    into the model is float."""
    result = []
    for edge in found:
        own = None if edge.float_anyway else form(choices[edge.producer or ""])
        wanted = dict.fromkeys(form(choices[reader]) for reader in edge.readers)
        result += [Crossing(edge, kind_of(own, one), one) for one in wanted if one != own]
    return result


def alternating(groups: Sequence[Group], found: Sequence[Edge]) -> dict[str, bool]:
    """Colours groups so that nearly every edge joins two colours: by their distance from the inputs."""
    depth: dict[str, int] = {}
    incoming: dict[str, list[str]] = {}
    for edge in found:
        for reader in edge.readers:
            if edge.producer is not None:
                incoming.setdefault(reader, []).append(edge.producer)
    for group in groups:
        depth[group.name] = 1 + max((depth[p] for p in incoming.get(group.name, ())), default=-1)
    return {name: level % 2 == 0 for name, level in depth.items()}


def elements(model: Model, name: str) -> int:
    """Numbers in the value of a graph node, for one sample; 0 if it is no single tensor."""
    value = tensor_of(model.nodes[name])
    if value is None:
        return 0
    return int(np.prod([int(d) for d in value.shape if isinstance(d, int)], dtype=np.int64))
