"""Choices changed one by one: a plan where the program has none in time, and what its tolerances leave undone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from edgeq.planning.solver.problem import (
    Boundary,
    Costs,
    Need,
    Problem,
    Relation,
    cost_of,
    crossed,
    met,
    over,
    relations,
    tied,
    touched,
)

_ROUNDING = 1e-12
"""Relative differences below this are those of floating point sums."""

_SWEEPS = 50

_Nearby: TypeAlias = tuple[dict[str, float], int]
"""What some groups and all that touches them cost, and how many needs and ties there are broken."""


def cheapest(problem: Problem, minimize: str, limits: Costs) -> dict[str, str]:
    """For each group the choice that takes least of what is limited; without limits, the most accurate one."""

    def price(costs: Costs) -> tuple[float, float, float]:
        used = sum(costs.get(m, 0.0) / (abs(limit) or 1.0) for m, limit in limits.items())
        return used, costs.get("loss", 0.0), costs.get(minimize, 0.0)

    return {g: min(offered, key=lambda c: price(offered[c])) for g, offered in problem.options.items()}


def improve(problem: Problem, choices: Mapping[str, str], minimize: str, limits: Costs) -> dict[str, str]:
    """Changes one group at a time, with those tied to it, as long as a change helps; best ratio of gain to price first.

    A change helps if it brings the plan closer to holding limits, needs and ties; or, without harm to those, lowers
    what is minimized; or, at the same cost, the loss; or, at the same loss, the rest.
    """
    now = dict(choices)
    near: dict[str, list[Relation]] = {g: [] for g in problem.options}
    together = {g: {g} for g in problem.options}
    for item in relations(problem):
        for group in touched(item):
            near[group].append(item)
            together[group] |= item if isinstance(item, frozenset) else set()
    ordered = {g: sorted(groups) for g, groups in together.items()}

    def nearby(groups: Iterable[str], taken: Mapping[str, str]) -> _Nearby:
        costs: dict[str, float] = {}
        broken = 0
        paid = [problem.options[g][taken[g]] for g in groups]
        for item in {id(item): item for g in groups for item in near[g]}.values():
            if isinstance(item, Boundary):
                paid += [item.costs] * crossed(item, taken)
            else:
                broken += not (met(item, taken) if isinstance(item, Need) else tied(problem, item, taken))
        for measure, cost in (entry for entries in paid for entry in entries.items()):
            costs[measure] = costs.get(measure, 0.0) + cost
        return costs, broken

    def gains_of(move: Mapping[str, str], totals: Costs, before: _Nearby) -> tuple[list[float], dict[str, float]]:
        """What a move wins, relative to the totals, in order of importance; and by measure what it adds."""
        (old, broken), (new, breaks) = before, nearby(move, {**now, **move})
        added = {m: new.get(m, 0.0) - old.get(m, 0.0) for m in {**old, **new}}
        saved = {m: -cost / (abs(totals[m]) or 1.0) for m, cost in added.items()}
        after = {m: total + added.get(m, 0.0) for m, total in totals.items()}
        closer = broken - breaks + _excess(totals, limits) - _excess(after, limits)
        rest = sum(share for m, share in saved.items() if m not in (minimize, "loss"))
        return [closer, saved.get(minimize, 0.0), saved.get("loss", 0.0), rest], added

    for _ in range(_SWEEPS):
        totals = cost_of(problem, now)
        ranked = []
        before: dict[tuple[str, ...], _Nearby] = {}
        for group, offered in problem.options.items():
            for choice in offered:
                move = {g: choice for g in ordered[group] if now[g] != choice and choice in problem.options[g]}
                if not move:
                    continue
                if tuple(move) not in before:
                    before[tuple(move)] = nearby(move, now)
                gains, added = gains_of(move, totals, before[tuple(move)])
                if _helps(gains):
                    used = sum(added.get(m, 0.0) / (abs(limit) or 1.0) for m, limit in limits.items())
                    gain, price = (gains[0], -gains[1]) if gains[0] > 0.0 else (gains[1], used)
                    ranked.append((gain / (max(price, 0.0) + 1e-9), move))
        for _, move in sorted(ranked, key=lambda entry: -entry[0]):
            gains, added = gains_of(move, totals, nearby(move, now))
            if _helps(gains):
                now.update(move)
                totals = {m: total + added.get(m, 0.0) for m, total in totals.items()}
        if not ranked:
            break
    return now


def _helps(gains: Sequence[float]) -> bool:
    return gains[0] >= 0.0 and next((gain for gain in gains if abs(gain) > _ROUNDING), 0.0) > 0.0


def _excess(costs: Costs, limits: Costs) -> float:
    return sum(more / (abs(limits[m]) or 1.0) for m, more in over(costs, limits).items())
