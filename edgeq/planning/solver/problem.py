"""What a planner chooses from, what a plan costs, and whether it may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum, isfinite
from typing import NamedTuple

Costs = Mapping[str, float]
"""By measure: `latency` in seconds, `size` in bytes, `loss`, `energy`, or any other name. An absent measure costs 0."""


@dataclass(frozen=True)
class Boundary:
    """A cost between groups, such as that of dequantizing a tensor: paid once, if the producer's choice is among
    `leaves` and the choice of any reader is among those that `readers` gives for it. An input of the model has None
    as its producer and always leaves. No cost may be negative. Choices that a group does not offer are ignored."""

    producer: str | None
    leaves: frozenset[str]
    readers: Mapping[str, frozenset[str]]
    costs: Costs


@dataclass(frozen=True)
class Need:
    """`group` may take one of `choices` only if at least one of the other groups takes one of the choices beside it."""

    group: str
    choices: frozenset[str]
    any_of: tuple[tuple[str, frozenset[str]], ...]


@dataclass(frozen=True)
class Problem:
    """What there is to choose from.

    Attributes:
        options: by group in the model's order, what each of its choices costs.
        fixed: what every plan costs on top.
    """

    options: Mapping[str, Mapping[str, Costs]]
    boundaries: Sequence[Boundary] = ()
    needs: Sequence[Need] = ()
    fixed: Costs = field(default_factory=dict)


def cost_of(problem: Problem, choices: Mapping[str, str]) -> dict[str, float]:
    """What a plan costs, by measure. Adds up without the program, so that it also judges that, and edited plans."""
    paid = [problem.fixed, *(offered[choices[group]] for group, offered in problem.options.items())]
    paid += [b.costs for b in problem.boundaries if crossed(b, choices)]
    return {m: fsum(costs.get(m, 0.0) for costs in paid) for m in measures(problem)}


class Change(NamedTuple):
    """A plan with another choice of one group.

    Attributes:
        added: by measure, what it costs more.
        allowed: whether no need is broken by it that holds now.
    """

    added: dict[str, float]
    allowed: bool


def changes_of(problem: Problem, choices: Mapping[str, str]) -> dict[str, dict[str, Change]]:
    """By group and each of its other choices, what that alone would change: worked out from what the group touches,
    so that a network of a thousand layers takes a moment.

    Args:
        choices: a whole plan.
    """
    near: dict[str, list[Boundary | Need]] = {group: [] for group in problem.options}
    for item in relations(problem):
        for group in touched(item):
            near[group].append(item)

    def nearby(group: str, taken: Mapping[str, str]) -> tuple[list[Costs], set[int]]:
        """What a group and all that touches it cost, and which needs of those are broken."""
        paid, broken = [problem.options[group][taken[group]]], set()
        for number, item in enumerate(near[group]):
            if isinstance(item, Boundary):
                paid += [item.costs] * crossed(item, taken)
            elif not met(item, taken):
                broken.add(number)
        return paid, broken

    found: dict[str, dict[str, Change]] = {}
    kinds, taken = measures(problem), dict(choices)
    for group, offered in problem.options.items():
        before, broken = nearby(group, taken)
        for other in (choice for choice in offered if choice != choices[group]):
            taken[group] = other
            after, breaks = nearby(group, taken)
            added = {m: fsum([*(c.get(m, 0.0) for c in after), *(-c.get(m, 0.0) for c in before)]) for m in kinds}
            found.setdefault(group, {})[other] = Change(added, breaks <= broken)
        taken[group] = choices[group]
    return found


def check(problem: Problem, choices: Mapping[str, str]) -> list[str]:
    """What is wrong with an edited plan, a sentence for each fault; empty if nothing is. Limits are not looked at."""
    faults = [f"there is no group {group}" for group in choices if group not in problem.options]
    for group, offered in problem.options.items():
        if group not in choices:
            faults.append(f"{group} has no choice")
        elif choices[group] not in offered:
            faults.append(f"{group} does not offer {choices[group]}, only {', '.join(offered)}")
    if faults:  # what follows from choices can be told only of complete ones
        return faults
    for need in problem.needs:
        if not met(need, choices):
            ways = [f"{other} is {' or '.join(sorted(wanted))}" for other, wanted in need.any_of if wanted]
            condition = f"only if {' or '.join(ways)}" if ways else "never"
            faults.append(f"{need.group} can be {choices[need.group]} {condition}")
    return faults


def validate(problem: Problem) -> None:
    named = {g for item in relations(problem) for g in touched(item)}
    unknown = sorted(named - problem.options.keys())
    if unknown:
        raise ValueError(f"there is no group {', '.join(unknown)}")
    empty = [group for group, offered in problem.options.items() if not offered]
    if empty:
        raise ValueError(f"no choices for {', '.join(empty)}")
    if not all(isfinite(cost) for costs in _entries(problem) for cost in costs.values()):
        raise ValueError("a cost is not finite")
    if any(cost < 0 for b in problem.boundaries for cost in b.costs.values()):
        # The program holds a boundary's column from below alone.
        raise ValueError("a boundary has a negative cost: count what it saves as a cost of doing without it")


def _entries(problem: Problem) -> list[Costs]:
    options = (costs for offered in problem.options.values() for costs in offered.values())
    return [problem.fixed, *options, *(b.costs for b in problem.boundaries)]


def measures(problem: Problem) -> list[str]:
    return list(dict.fromkeys(measure for costs in _entries(problem) for measure in costs))


def relations(problem: Problem) -> list[Boundary | Need]:
    return [*problem.boundaries, *problem.needs]


def touched(item: Boundary | Need) -> set[str]:
    if isinstance(item, Boundary):
        return {*item.readers, *([item.producer] if item.producer is not None else [])}
    return {item.group, *(group for group, _ in item.any_of)}


def crossed(boundary: Boundary, choices: Mapping[str, str]) -> bool:
    leaves = boundary.producer is None or choices[boundary.producer] in boundary.leaves
    return leaves and any(choices[reader] in enters for reader, enters in boundary.readers.items())


def met(need: Need, choices: Mapping[str, str]) -> bool:
    return choices[need.group] not in need.choices or any(choices[g] in wanted for g, wanted in need.any_of)


def over(costs: Costs, limits: Costs) -> dict[str, float]:
    """By measure, how far a limit is exceeded."""
    return {m: costs.get(m, 0.0) - limit for m, limit in limits.items() if costs.get(m, 0.0) > limit}
