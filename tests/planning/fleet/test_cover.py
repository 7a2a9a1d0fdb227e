"""The smallest set of candidates that serves all targets, against every set there is."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.planning.fleet.cover import cover

COSTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 40).map(lambda n: n / 8), min_size=1)
SERVING = st.dictionaries(st.sampled_from(["t1", "t2", "t3", "t4", "t5"]), COSTS, min_size=1)


def best_by_trying(serving: dict[str, dict[str, float]]) -> tuple[int, float]:
    """Fewest candidates, and the least total of any set of so many."""
    names = sorted({name for costs in serving.values() for name in costs})
    for size in range(1, len(names) + 1):
        totals = [
            sum(min(costs[name] for name in chosen if name in costs) for costs in serving.values())
            for chosen in combinations(names, size)
            if all(costs.keys() & set(chosen) for costs in serving.values())
        ]
        if totals:
            return size, min(totals)
    raise AssertionError("nothing covers")


@settings(max_examples=150, deadline=None)
@given(SERVING)
def test_the_cover_is_the_smallest_and_of_those_the_cheapest(serving: dict[str, dict[str, float]]) -> None:
    found = cover(serving)
    assert found.keys() == serving.keys()
    assert all(name in serving[target] for target, name in found.items())
    total = sum(serving[target][name] for target, name in found.items())
    assert (len(set(found.values())), total) == (best_by_trying(serving)[0], pytest.approx(best_by_trying(serving)[1]))


def test_greedy_would_take_three_here() -> None:
    """The largest candidate is no part of the best cover."""
    serving = {"1": "xa", "2": "xa", "3": "xb", "4": "xb", "5": "a", "6": "b"}
    found = cover({target: dict.fromkeys(names, 1.0) for target, names in serving.items()})
    assert set(found.values()) == {"a", "b"}


def test_a_cheaper_cover_of_the_same_size_is_taken_and_a_larger_one_is_not() -> None:
    assert cover({"p": {"one": 9.0, "own": 1.0}, "q": {"one": 9.0}}) == {"p": "one", "q": "one"}
    assert cover({"p": {"a": 2.0, "b": 1.0}, "q": {"a": 2.0, "b": 2.5}}) == {"p": "b", "q": "b"}


@pytest.mark.parametrize("scale", [1e-12, 1e9])
def test_tiny_and_large_costs_count_alike(scale: float) -> None:
    assert cover({"p": {"a": 3.0 * scale, "b": 2.9999 * scale}}) == {"p": "b"}


def test_what_cannot_be_covered_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing serves q"):
        cover({"p": {"a": 1.0}, "q": {}})
    with pytest.raises(ValueError, match="negative"):
        cover({"p": {"a": -1.0}})
    with pytest.raises(ValueError, match="finite"):
        cover({"p": {"a": float("nan")}})
    assert cover({}) == {}
