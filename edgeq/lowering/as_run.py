"""What a runtime makes of layers that a plan has in float between layers on integers."""

from __future__ import annotations

from collections.abc import Mapping

from edgeq.formats import FORMATS
from edgeq.lowering.form import form
from edgeq.lowering.space import Space
from edgeq.model.groups import only_moves
from edgeq.model.ops import WEIGHTED


def as_run(space: Space, choices: Mapping[str, str]) -> dict[str, str]:
    """The choices that a plan's layers run with.

    In a file with Q/DQ pairs a layer without weights in float looks like one on integers: a pair before it, a pair
    behind it. A runtime that fuses these runs it on integers whatever the plan says; and what only moves values trades
    places with the pair behind it. A table of times that took such layers for float would find float cheap there, and
    the conversions to and from it free. TFLite says for each operator which of the two is meant.

    Args:
        choices: by group name, those of the plan.
    """
    found = dict(choices)
    if not FORMATS[space.runtime.format].pairs:
        return found
    producers = {edge.tensor: None if edge.float_anyway else edge.producer for edge in space.edges}
    readers = {edge.producer: edge.readers for edge in space.edges}
    for group in space.model.groups:
        if group.op in WEIGHTED or form(found[group.name]) is not None:
            continue
        before = [producers.get(tensor) for tensor in group.inputs]
        forms = {None if name is None else form(found[name]) for name in before}
        if len(forms) != 1:
            continue
        moves = only_moves(group, space.model.nodes[group.root]) and len(before) == 1
        behind = [form(found[name]) for name in readers.get(group.name, ())]
        if any(behind) and None in behind:
            continue  # operators in float read it as it is: there is no pair behind it for all
        if moves or any(behind):
            alike = (c for c in space.options[group.name] if form(c) in forms - {None})
            found[group.name] = next(alike, found[group.name])
    return found
