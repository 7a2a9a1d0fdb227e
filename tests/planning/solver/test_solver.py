"""The program that picks a choice for each group, held against every plan there is."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from math import fsum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgeq.errors import GateError
from edgeq.limits import parse_bytes, parse_seconds
from edgeq.planning.proof.search import SAME, cheapest
from edgeq.planning.solver import program
from edgeq.planning.solver import solve as solver
from edgeq.planning.solver.highs import Answer
from edgeq.planning.solver.problem import changes_of
from edgeq.planning.solver.solve import (
    Boundary,
    Costs,
    Infeasible,
    Need,
    Problem,
    Solution,
    _show,
    check,
    cost_of,
    solve,
)

MEASURES = ("latency", "size", "loss", "energy")
TICK = 2.0**-20
"""A microsecond, nearly; sums of its multiples are exact, so that a plan can cost precisely what a limit allows."""


def plans(problem: Problem) -> list[dict[str, str]]:
    """Every plan that breaks no need."""
    every = itertools.product(*problem.options.values())
    found = [dict(zip(problem.options, taken, strict=True)) for taken in every]
    return [choices for choices in found if not check(problem, choices)]


def held(costs: Costs, limits: Costs) -> bool:
    return all(costs.get(m, 0.0) <= limit for m, limit in limits.items())


def least(problem: Problem, measure: str, limits: Costs | None = None) -> float | None:
    costs = [c for c in (cost_of(problem, p) for p in plans(problem)) if held(c, limits or {})]
    return min((c.get(measure, 0.0) for c in costs), default=None)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    scale = {"latency": TICK, "size": 4096.0, "loss": 2.0**-30, "energy": 1.0}
    names = [f"g{i}" for i in range(draw(st.integers(1, 5)))]
    amount = st.integers(0, 40)

    def costs(measures: tuple[str, ...] = MEASURES) -> dict[str, float]:
        return {m: draw(amount) * scale[m] for m in draw(st.sets(st.sampled_from(measures)).map(sorted))}

    def some(of: str) -> frozenset[str]:
        return draw(st.frozensets(st.sampled_from([*options[of], "elsewhere"])))

    options = {g: {c: costs() for c in "abcd"[: draw(st.integers(1, 4))]} for g in names}
    group = st.sampled_from(names)
    boundaries = []
    for _ in range(draw(st.integers(0, 5))):
        producer = draw(st.none() | group)
        readers = {r: some(r) for r in draw(st.sets(group, max_size=3).map(sorted))}
        boundaries.append(Boundary(producer, some(producer) if producer else frozenset(), readers, costs()))
    needs = []
    for _ in range(draw(st.integers(0, 2))):
        about, others = draw(group), draw(st.lists(group, max_size=2))
        needs.append(Need(about, some(about), tuple((g, some(g)) for g in others)))
    return Problem(options, boundaries, needs, fixed=costs())


@st.composite
def limited(draw: st.DrawFn) -> tuple[Problem, str, dict[str, float]]:
    problem = draw(problems())
    everything = [dict(zip(problem.options, p, strict=True)) for p in itertools.product(*problem.options.values())]
    limits = {}
    for measure in draw(st.sets(st.sampled_from(MEASURES), max_size=3).map(sorted)):
        reference = cost_of(problem, draw(st.sampled_from(everything))).get(measure, 0.0)
        limits[measure] = reference * draw(st.sampled_from([1.0, 1.0, 0.75, 1.25]))
    return problem, draw(st.sampled_from(MEASURES)), limits


@settings(deadline=None, max_examples=160)
@given(limited(), st.sampled_from([1e-4, 0.1]))
def test_no_plan_within_the_limits_is_better(case: tuple[Problem, str, dict[str, float]], gap: float) -> None:
    problem, minimize, limits = case
    best = least(problem, minimize, limits)
    if best is None:
        with pytest.raises(Infeasible) as caught:
            solve(problem, minimize=minimize, limits=limits)
        explained(problem, limits, caught.value)
        return
    found = solve(problem, minimize=minimize, limits=limits, gap=gap)
    assert found.costs == cost_of(problem, found.choices)
    assert check(problem, found.choices) == []
    assert held(found.costs, limits)
    assert found.method == "optimal"
    assert found.costs.get(minimize, 0.0) <= best / (1 - gap)
    assert found.bound <= best * (1 + 1e-9)
    assert found.gap <= gap


def explained(problem: Problem, limits: Costs, error: Infeasible) -> None:
    assert error.exit_code == 3
    if not plans(problem):
        assert "contradict" in error.cause
        return
    for measure, limit in limits.items():
        assert f"{measure} {_show(measure, limit)}" in error.cause
        alone = least(problem, measure) or 0.0
        if alone > limit:
            assert f"{measure} to at least" in error.remedy
        beside = least(problem, measure, {other: most for other, most in limits.items() if other != measure})
        if "at least" not in error.remedy:
            assert alone <= limit and (f"{measure} to " in error.remedy) == (beside is not None)


INTEGERS = frozenset({"int8", "int4", "int16"})
FLOAT = frozenset({"float"})


def network(length: int, seed: int = 0) -> Problem:
    """A chain with some shortcuts; smaller is mostly faster and less accurate, over many orders of magnitude."""
    draw = random.Random(seed)
    options: dict[str, dict[str, dict[str, float]]] = {}
    for i in range(length):
        seconds, size, loss = 10 ** draw.uniform(-5, -2), 10 ** draw.uniform(2, 7), 10 ** draw.uniform(-9, -2)
        options[f"g{i}"] = {
            "float": {"latency": seconds, "size": 4 * size},
            "int8": {"latency": seconds * draw.uniform(0.3, 0.6), "size": size, "loss": loss},
            "int4": {"latency": seconds * draw.uniform(0.3, 1.1), "size": size / 2, "loss": loss * draw.uniform(3, 30)},
            "int16": {"latency": seconds * draw.uniform(1, 3), "size": size, "loss": loss * draw.uniform(0.01, 0.2)},
        }
    jumps = [(i, i + draw.randint(2, 5)) for i in draw.sample(range(length - 6), length // 10)]
    boundaries = [
        Boundary(f"g{i}", INTEGERS, {f"g{j}": FLOAT}, {"latency": draw.uniform(1e-6, 3e-5)})
        for i, j in [*itertools.pairwise(range(length)), *jumps]
    ]
    return Problem(options, boundaries, fixed={"latency": 1e-3})


def floats(problem: Problem) -> dict[str, float]:
    return cost_of(problem, dict.fromkeys(problem.options, "float"))


def test_a_thousand_groups_are_solved_within_a_thousandth() -> None:
    problem = network(1000)
    limits = {"loss": 0.05, "size": floats(problem)["size"] * 0.3}
    found = solve(problem, minimize="latency", limits=limits, gap=1e-3, time_limit=120)
    assert found.method == "optimal" and found.gap <= 1e-3
    assert held(found.costs, limits) and check(problem, found.choices) == []
    assert found.bound <= found.costs["latency"] < 0.75 * floats(problem)["latency"]


def test_if_neither_finds_a_plan_in_time_the_error_says_so() -> None:
    """Two groups that need each other's integers: no single change leads there, though it alone is small enough."""
    options = {g: {"float": {"size": 4.0}, "int8": {"size": 2.0}, "int4": {"size": 1.9}} for g in "ab"}
    int4 = frozenset({"int4"})
    needs = [Need("a", int4, ()), Need("b", int4, ()), Need("a", frozenset({"int8"}), (("b", frozenset({"int8"})),))]
    needs.append(Need("b", frozenset({"int8"}), (("a", frozenset({"int8"})),)))
    problem = Problem(options, needs=needs)
    assert solve(problem, minimize="size", limits={"size": 4.0}).choices == {"a": "int8", "b": "int8"}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(GateError, match="within 5 s") as caught:
        patch.setattr(program, "minimized", lambda *_, **__: Answer("time limit", None, -float("inf")))
        solve(problem, minimize="size", limits={"size": 4.0}, time_limit=5)
    assert not isinstance(caught.value, Infeasible)


def test_a_plan_that_highs_has_when_time_is_up_is_used_with_its_gap() -> None:
    problem, limits = network(40), {"loss": 1e-3}
    best = solve(problem, minimize="latency", limits=limits)
    real = program.minimized

    def interrupted(*given: Any, **how: Any) -> Answer:
        answer = real(*given, **how)
        return answer._replace(state="time limit", proved=answer.proved * 0.9)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "minimized", interrupted)
        found = solve(problem, minimize="latency", limits=limits)
    assert found.method == "time limit"
    assert found.costs["latency"] == pytest.approx(best.costs["latency"], rel=1e-4)
    assert found.gap == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("tiny", [1e-9, 1e-12, 1e-15])
def test_tiny_losses_count_beside_huge_sizes_and_ruinous_choices(tiny: float) -> None:
    """What decides is far below HiGHS's tolerances, if it is not made larger once the ruinous choices are out."""
    draw = random.Random(1)
    options = {
        f"g{i}": {
            "ruin": {"loss": 1.0, "size": 1e5},
            "good": {"loss": tiny * draw.uniform(1, 9), "size": 1e7 * draw.uniform(1, 2)},
            "best": {"loss": 0.0, "size": 1e7 * draw.uniform(2, 5)},
        }
        for i in range(12)
    }
    problem = Problem(options)
    limits = {"size": 2.8e8}
    found = solve(problem, minimize="loss", limits=limits)
    everything = (dict(zip(options, p, strict=True)) for p in itertools.product(("good", "best"), repeat=12))
    best = min(c["loss"] for c in (cost_of(problem, p) for p in everything) if held(c, limits))
    assert best > 0.0 and best * (1 - 1e-6) <= found.costs["loss"] <= best * (1 + 1e-4)
    assert found.gap <= 1e-4 and found.bound <= best * (1 + 1e-6)


@pytest.mark.parametrize("tiny", [1.0, 1e-6, 1e-12])
def test_plans_just_within_a_limit_are_told_from_those_just_beyond(tiny: float) -> None:
    draw = random.Random(0)
    problem = Problem(
        {
            f"g{i}": {"float": {"size": draw.uniform(1e6, 9e6)}, "int4": {"loss": draw.uniform(1, 9) * tiny}}
            for i in range(8)
        }
    )
    limit = fsum(problem.options[f"g{i}"]["int4"]["loss"] for i in (0, 2, 3, 6))
    best = least(problem, "size", {"loss": limit})
    assert solve(problem, minimize="size", limits={"loss": limit}).costs["size"] == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_a_limit_holds_to_the_last_digit(unit: float) -> None:
    """The better plan exceeds the limit by less than HiGHS can see."""
    options = {
        "a": {"tempting": {"size": unit, "loss": 1.0}, "heavy": {"size": unit * (1 + 2e-11), "loss": 0.0}},
        "b": {"tempting": {"size": 0.0, "loss": 0.5}, "heavy": {"size": unit, "loss": 0.0}},
    }
    problem = Problem(options)
    limits = {"size": 2 * unit}
    found = solve(problem, minimize="loss", limits=limits)
    assert found.choices == {"a": "heavy", "b": "tempting"}
    assert held(found.costs, limits)


def test_the_search_goes_on_if_a_limit_is_exceeded_by_a_hair() -> None:
    """From the plan a hair too large no single change leads to the best one: b and c go together."""
    y, big = frozenset({"y"}), frozenset({"big"})
    options = {
        "a": {"big": {"size": 0.5 * (1 + 4e-11)}, "small": {"loss": 0.7}},
        "b": {"big": {"size": 0.4}, "small": {"loss": 0.5}},
        "c": {"x": {}, "y": {}},
        "d": {"big": {"size": 0.5}, "small": {"loss": 2.0}},
    }
    problem = Problem(options, needs=[Need("b", big, (("c", y),)), Need("c", y, (("b", big),))])
    found = solve(problem, minimize="loss", limits={"size": 1.0})
    assert found.choices == {"a": "small", "b": "big", "c": "y", "d": "big"}


def test_sums_are_exact() -> None:
    problem = Problem({f"g{i}": {"only": {"size": 0.1}} for i in range(10)})
    assert cost_of(problem, dict.fromkeys(problem.options, "only")) == {"size": 1.0}
    assert solve(problem, minimize="size", limits={"size": 1.0}).costs == {"size": 1.0}


def test_among_equal_plans_the_more_accurate_one_is_taken() -> None:
    options = {
        "alone": {"a": {"latency": 1.0, "loss": 0.2, "size": 1.0}, "b": {"latency": 1.0, "loss": 0.1, "size": 9.0}},
        "same loss": {"a": {"latency": 1.0, "size": 2.0}, "b": {"latency": 1.0, "size": 1.0}},
    }
    found = solve(Problem(options), minimize="latency")
    assert found.choices == {"alone": "b", "same loss": "b"}


def test_accuracy_never_costs_more_than_the_gap() -> None:
    options = {f"g{i}": {"a": {"latency": 1.0, "loss": 1.0}, "b": {"latency": 1.001, "loss": 0.0}} for i in range(20)}
    found = solve(Problem(options), minimize="latency")
    assert set(found.choices.values()) == {"a"}


ONE_OF_TWO_EQUALS = Problem(
    {"g0": {"a": {}}, "g1": {"a": {"latency": 2.0**-20}, "b": {"latency": 2.0**-20}, "c": {}, "d": {}}},
    [Boundary("g0", frozenset("a"), {"g0": frozenset(), "g1": frozenset("abcd")}, {"latency": 2.0**-20})],
)

LIMIT_WITHIN_ROUNDING = Problem(
    {"g0": {"a": {}, "b": {}, "c": {"latency": 2.0**-20}}, "g1": {"a": {}}, "g2": {"a": {}}},
    fixed={"latency": 0.0, "loss": 2.7939677238464355e-09, "size": 0.0},
)


@settings(deadline=None, max_examples=80)
@given(problems(), st.lists(st.integers(0, 60), min_size=2, max_size=4))
@example(ONE_OF_TWO_EQUALS, [0])
@example(LIMIT_WITHIN_ROUNDING, [0, 0])
def test_within_a_limit_on_the_loss_no_plan_is_faster_than_noise(problem: Problem, amounts: list[int]) -> None:
    found: dict[float, Solution] = {}
    for most in sorted(amount * 2.0**-30 for amount in amounts):
        if not plans(problem):
            with pytest.raises(Infeasible):
                cheapest(problem, "latency", {"loss": most})
            return
        found[most] = cheapest(problem, "latency", {"loss": most})
        best = least(problem, "latency", {"loss": most})
        if best is None:  # no plan loses so little: the one that loses least
            assert found[most].costs.get("loss", 0.0) <= (least(problem, "loss") or 0.0) * (1 + 1e-4)
            continue
        assert found[most].costs.get("loss", 0.0) <= most
        assert found[most].costs.get("latency", 0.0) <= best * (1 + SAME) * (1 + 1e-4)
        assert found[most].bound <= best * (1 + 1e-9)


def two_layers() -> Problem:
    options = {
        "conv": {"float": {"latency": 4.0, "size": 40.0}, "int8": {"latency": 1.0, "size": 10.0, "loss": 0.5}},
        "head": {"float": {"latency": 2.0, "size": 20.0}, "int8": {"latency": 1.0, "size": 5.0, "loss": 0.25}},
        "tail": {"float": {"latency": 2.0, "size": 20.0}},
    }
    int8, single = frozenset({"int8"}), frozenset({"float"})
    boundaries = [
        Boundary(None, frozenset(), {"conv": int8}, {"latency": 0.5}),
        Boundary("conv", int8, {"head": single, "tail": single}, {"latency": 0.25}),
    ]
    return Problem(options, boundaries, [Need("head", int8, (("conv", int8),))], fixed={"latency": 8.0})


@settings(deadline=None)
@given(problems(), st.integers(0, 2**32))
def test_every_change_of_one_group_is_what_the_whole_plan_would_cost(problem: Problem, seed: int) -> None:
    possible = plans(problem)
    if not possible:
        return
    choices = random.Random(seed).choice(possible)
    own, found = cost_of(problem, choices), changes_of(problem, choices)
    expected = {(g, c): {**choices, g: c} for g, offered in problem.options.items() for c in offered if c != choices[g]}
    assert [(g, c) for g, others in found.items() for c in others] == list(expected)
    for (group, choice), edited in expected.items():
        there, change = cost_of(problem, edited), found[group][choice]
        assert change.added == pytest.approx({m: there[m] - own[m] for m in own}, abs=1e-12)
        assert change.allowed == (not check(problem, edited))


def test_a_boundary_is_paid_once_and_only_if_both_sides_differ() -> None:
    problem = two_layers()
    single = dict.fromkeys(problem.options, "float")
    assert cost_of(problem, single) == {"latency": 16.0, "size": 80.0, "loss": 0.0}
    assert cost_of(problem, {**single, "conv": "int8"})["latency"] == 13.0 + 0.5 + 0.25
    assert cost_of(problem, {**single, "head": "int8"})["latency"] == 15.0
    assert cost_of(problem, {**single, "conv": "int8", "head": "int8"})["latency"] == 12.0 + 0.5 + 0.25


def test_check_says_what_an_edited_plan_breaks() -> None:
    problem = two_layers()
    single = dict.fromkeys(problem.options, "float")
    assert check(problem, single) == []
    assert check(problem, {**single, "head": "int8"}) == ["head can be int8 only if conv is int8"]
    assert check(problem, {"conv": "int2", "head": "float", "neck": "float"}) == [
        "there is no group neck",
        "conv does not offer int2, only float, int8",
        "tail has no choice",
    ]
    never = Problem(problem.options, needs=[Need("conv", frozenset({"int8"}), ())])
    assert check(never, {**single, "conv": "int8"}) == ["conv can be int8 never"]


def test_a_limit_that_no_plan_reaches_is_named_with_the_least_there_is() -> None:
    with pytest.raises(Infeasible) as caught:
        solve(two_layers(), minimize="loss", limits={"latency": 12.5, "size": 50.0})
    error = caught.value
    assert error.cause == (
        "no plan keeps within the limits: latency 12.5 s (least of any plan 12.75 s), "
        "size 50 B (least of any plan 35 B)"
    )
    assert (error.exit_code, error.remedy) == (3, "raise latency to at least 12.75 s")


@given(st.floats(1e-9, 1e4), st.integers(1, 10**12))
def test_a_limit_that_is_set_to_what_is_shown_holds(seconds: float, size: int) -> None:
    assert seconds <= parse_seconds(_show("latency", seconds)) <= seconds * 1.0001
    assert size <= parse_bytes(_show("size", size)) <= size * 1.0001 + 1


def test_limits_that_contradict_one_another_are_told_from_those_that_do_not() -> None:
    with pytest.raises(Infeasible) as caught:
        solve(two_layers(), minimize="energy", limits={"latency": 13.0, "size": 50.0, "loss": 0.6})
    assert caught.value.remedy == "raise latency to 13.75 s or loss to 0.75"


def test_needs_that_leave_no_plan_are_no_matter_of_limits() -> None:
    never = [Need("tail", frozenset({"float"}), (("conv", frozenset({"int2"})),))]
    with pytest.raises(Infeasible, match="needs contradict"):
        solve(Problem(two_layers().options, needs=never), minimize="loss", limits={"size": 100.0})


@pytest.mark.parametrize("value", [1 / 3, 2 / 3, 1.0, 123456.7, 1234567.8, 1e-9 / 7])
def test_a_limit_set_to_the_number_shown_can_be_held(value: float) -> None:
    shown = float(solver._show("loss", value))
    assert value <= shown <= value * (1 + 2e-5)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (Problem({"a": {}}), "no choices for a"),
        (Problem({"a": {"x": {}}}, needs=[Need("a", frozenset("x"), (("b", frozenset("x")),))]), "there is no group b"),
        (Problem({"a": {"x": {"loss": float("nan")}}}), "not finite"),
        (Problem({"a": {"x": {}}}, [Boundary("a", frozenset("x"), {"a": frozenset("x")}, {"loss": -1.0})]), "negative"),
    ],
)
def test_a_problem_that_makes_no_sense_is_refused(problem: Problem, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(problem, minimize="loss")


def test_a_limit_that_is_no_number_is_refused_and_an_infinite_one_is_none() -> None:
    with pytest.raises(ValueError, match="not a number"):
        solve(two_layers(), minimize="loss", limits={"size": float("nan")})
    assert solve(two_layers(), minimize="loss", limits={"size": float("inf")}).costs["loss"] == 0.0


def test_without_groups_a_plan_costs_what_is_fixed() -> None:
    found = solve(Problem({}, fixed={"latency": 2.0}), minimize="latency", limits={"latency": 2.0})
    assert (found.choices, found.costs, found.method) == ({}, {"latency": 2.0}, "optimal")


PRINT_A_PLAN = """
from test_solver import floats, network, solve
from edgeq.planning.solver.solve import Need, Problem
n = network(150)
needs = [Need("g50", frozenset({"int8", "int4"}), (("g51", frozenset({"int8", "int4"})),))]
problem = Problem(n.options, n.boundaries, needs)
limits = {"loss": 0.01, "size": 0.5 * floats(problem)["size"]}
print(solve(problem, minimize="latency", limits=limits, time_limit=60).choices)
"""


def test_the_same_problem_gives_the_same_plan_in_every_process() -> None:
    def run(seed: str) -> str:
        paths = f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parents[3]}"
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths}
        return subprocess.run(
            [sys.executable, "-c", PRINT_A_PLAN], env=environment, capture_output=True, text=True, check=True
        ).stdout

    first = run("1")
    assert "int8" in first
    assert first == run("2")


def test_nothing_is_written_to_the_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    """HiGHS 1.12 and 1.16 do, in searches such as this one."""
    solve(network(40, seed=3), minimize="latency", limits={"loss": 1e-3}, gap=1e-6)
    assert capfd.readouterr().out == ""
