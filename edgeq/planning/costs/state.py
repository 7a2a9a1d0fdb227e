"""States a model's choices and their costs as the program that the solver takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from edgeq.lowering.boundaries import Edge, Kind, kind_of
from edgeq.lowering.choices import Ladder
from edgeq.lowering.form import form
from edgeq.lowering.space import Space
from edgeq.model.groups import only_moves
from edgeq.model.ops import WEIGHTED
from edgeq.planning.costs.size import Sizes
from edgeq.planning.costs.timing import Timing
from edgeq.planning.sensitivity.value import Sensitivity, predicted_losses
from edgeq.planning.solver.solve import Boundary, Need, Problem


def state(
    space: Space,
    sensitivity: Sensitivity,
    tables: Mapping[str, Timing],
    sizes: Sizes,
    alone: Mapping[tuple[str, str], float],
) -> Problem:
    """The program for one runtime.

    A layer on integers pays for its rounded weights and for the rounded values that it leaves behind; a float value
    that an integer layer reads pays for its rounding where it is converted.

    Args:
        tables: by measure, such as `latency`, what layers and conversions cost of it. A choice that a table does not
            have goes without that measure, and so costs nothing of it: see `known`.
        alone: losses that are known better, by group and choice.
    """
    losses = predicted_losses(space, sensitivity) | dict(alone)
    costs = {
        name: {
            choice: {"loss": losses.get((name, choice), 0.0), "size": sizes.layers[name][choice]}
            | {m: t.layers[name][choice] for m, t in tables.items() if choice in t.layers.get(name, {})}
            for choice in offered
        }
        for name, offered in space.options.items()
    }
    conversions = [b for edge in space.edges for b in _conversions(edge, space.options, sensitivity, tables, sizes)]
    return Problem(costs, conversions, _needs(space), {"size": sizes.fixed})


def known(problem: Problem, offered: Ladder, measure: str) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """What is left to choose from where a measure counts: a choice that nothing is known of would seem to be free.

    Args:
        offered: by layer, its choices.

    Returns:
        The choices, and the layers of whose choices none is known: they keep them all, and no number has them in it.
    """
    left = {name: tuple(c for c in given if measure in problem.options[name][c]) for name, given in offered.items()}
    return {name: left[name] or given for name, given in offered.items()}, [n for n in offered if not left[n]]


def _by_form(options: Collection[str]) -> dict[str | None, frozenset[str]]:
    return {one: frozenset(c for c in options if form(c) == one) for one in dict.fromkeys(map(form, options))}


def _conversions(
    edge: Edge, choices: Ladder, sensitivity: Sensitivity, tables: Mapping[str, Timing], sizes: Sizes
) -> list[Boundary]:
    def priced(kind: Kind) -> dict[str, float]:
        return {measure: table.conversions[edge.tensor][kind] for measure, table in tables.items()}

    readers = {r: _by_form(choices[r]) for r in edge.readers}
    producer = None if edge.float_anyway else edge.producer
    own = {None: frozenset[str]()} if producer is None else _by_form(choices[producer])
    found = []
    for after in dict.fromkeys(one for forms in readers.values() for one in forms):
        entering = {r: forms.get(after, frozenset()) for r, forms in readers.items()}
        for before, leaving in own.items():
            if before == after:
                continue
            costs = {} if after is None else {"size": sizes.conversion}
            if after is not None and (before is None or int(after[1:]) < int(before[1:])):
                costs["loss"] = sensitivity.tensors.get((edge.tensor, after), 0.0)  # fewer bits, or the first ones
            found.append(Boundary(producer, leaving, entering, costs | priced(kind_of(before, after))))
    return found


def _needs(space: Space) -> list[Need]:
    """A layer without weights runs on integers only behind one that does; where it only moves them, on those that it is
    given (see `assign`)."""
    model, choices, inputs = space.model, space.options, set(space.model.input_nodes)
    sources = {e.tensor: e.producer for e in space.edges if not e.float_anyway}
    every = {one for offered in choices.values() for one in map(form, offered) if one}
    found = []
    for group in model.groups:
        if group.op in WEIGHTED or inputs.intersection(group.inputs):
            continue
        producers = [p for node in group.inputs if (p := sources.get(node))]
        for alike in [{one} for one in sorted(every)] if only_moves(group, model.nodes[group.root]) else [every]:
            own, *behind = (frozenset(c for c in choices[g] if form(c) in alike) for g in (group.name, *producers))
            if own:
                found.append(Need(group.name, own, tuple(zip(producers, behind, strict=True))))
    return found
