"""What a plan says of its tensors, held against what following it gives. Types, scales, zero points and hashes in a
plan tell what was found; only choices, rules and the float precision are settings."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from pydantic import BaseModel

from edgeq.plans.plan import LayerPlan, Plan

_SETTINGS = {"choice", "reason", "alternatives"}
_CHOSEN = {"dtype", "symmetry", "granularity", "levels", "bias"}
_TOLD = {"reason", "estimator", "algorithm"}
_NEAR = 1e-5
"""Relative: another processor may sum in another order."""


def contradictions(plan: Plan, built: Plan, without: Collection[str] = ()) -> list[str]:
    """A sentence for each kind of thing that a plan says and that its build does not have.

    Args:
        plan: as it was given.
        built: what became of it, as `describe` tells.
        without: fields that were to become something else.
    """
    there = {layer.name: layer for layer in built.layers}
    found: dict[str, list[tuple[str, str]]] = {}
    for name, tensor in plan.inputs.items():
        for field, text in _between(tensor, built.inputs.get(name), ""):
            found.setdefault(field, []).append((f"input {name}", text))
    for layer in plan.layers:
        now = there.get(layer.name)
        if now is not None:
            for field, text in _between(layer, now, ""):
                found.setdefault(field, []).append((f"layer {layer.name} ({now.choice})", text))
    return [_sentence(field, places) for field, places in found.items() if field not in without]


def _sentence(field: str, places: list[tuple[str, str]]) -> str:
    (where, text), more = places[0], len(places) - 1
    others = f", and {more} more like it" if more else ""
    if field in _CHOSEN:
        why = "it follows from the choices; edit a layer's choice"
    else:
        why = "it is worked out anew, and not taken from a plan"
    return f"{where}: {text}{others}: {why}"


def _between(said: BaseModel, now: BaseModel | None, place: str) -> Iterator[tuple[str, str]]:
    """The fields that differ, with what is said and what is. A tensor that is there on one side alone follows from an
    edited choice."""
    if now is None:
        return
    skipped = _SETTINGS if isinstance(said, LayerPlan) else _TOLD
    for field in (field for field in type(said).model_fields if field not in skipped):
        one, other = getattr(said, field), getattr(now, field)
        at = f"{place}{field}"
        if isinstance(one, BaseModel):
            yield from _between(one, other, f"{at} ")
        elif isinstance(one, dict):
            for key in one.keys() & other.keys():
                yield from _between(one[key], other[key], f"{at} ")
        elif one != other and not _close(one, other):
            yield field, f"{at} is {_short(other)}, where the plan says {_short(one)}"


def _close(one: object, other: object) -> bool:
    if not isinstance(one, float) or not isinstance(other, float):
        return False
    return math.isclose(one, other, rel_tol=_NEAR)


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:40]
