"""What a runtime makes of layers that a plan has in float between layers on integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeq.formats import FORMATS
from edgeq.lowering.boundaries import Edge
from edgeq.lowering.choices import Ladder
from edgeq.lowering.form import form
from edgeq.model.groups import only_moves
from edgeq.model.model import Model
from edgeq.model.ops import WEIGHTED
from edgeq.registry.schema import Runtime


def as_run(
    model: Model, runtime: Runtime, edges: Sequence[Edge], options: Ladder, choices: Mapping[str, str]
) -> dict[str, str]:
    """The choices that a plan's layers run with.

    In a file with Q/DQ pairs a layer without weights in float looks like one on integers: a pair before it, a pair
    behind it. A runtime that fuses these runs it on integers whatever the plan says; and what only moves values trades
    places with the pair behind it. A table of times that took such layers for float would find float cheap there, and
    the conversions to and from it free. TFLite says for each operator which of the two is meant.

    Args:
        options: by group name, its choices.
        choices: by group name, those of the plan.
    """
    found = dict(choices)
    if not FORMATS[runtime.format].pairs:
        return found
    producers = {edge.tensor: None if edge.float_anyway else edge.producer for edge in edges}
    readers = {edge.producer: edge.readers for edge in edges}
    for group in model.groups:
        if group.op in WEIGHTED or form(found[group.name]) is not None:
            continue
        before = [producers.get(tensor) for tensor in group.inputs]
        forms = {None if name is None else form(found[name]) for name in before}
        if len(forms) != 1:
            continue
        moves = only_moves(group, model.nodes[group.root]) and len(before) == 1
        behind = [form(found[name]) for name in readers.get(group.name, ())]
        if any(behind) and None in behind:
            continue  # operators in float read it as it is: there is no pair behind it for all
        if moves or any(behind):
            alike = (c for c in options[group.name] if form(c) in forms - {None})
            found[group.name] = next(alike, found[group.name])
    return found
