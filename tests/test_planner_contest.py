"""Which of several searches are built for, in which order, and what is said of the others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trained_model

from edgeq.errors import DeviceError, EdgeqError, GateError
from edgeq.limits import Drop, Limits
from edgeq.planning.planner import plan
from edgeq.planning.proof import contest
from edgeq.planning.proof.contest import Contest
from edgeq.planning.proof.outcome import Outcome
from edgeq.planning.proof.rounds import Rounds, Start
from edgeq.planning.solver.problem import Problem
from edgeq.planning.solver.solve import Infeasible
from edgeq.plans.plan import Proof
from edgeq.progress import Clock, Silent


def measured(latency: float, *, held: bool = True, drop: float = 0.0) -> Proof:
    return Proof(
        latency=latency, latency_of={"float32": 10.0}, size=1000, metric="top-1", unit="%", score=90.0,
        float_score=90.0, drop=drop, drop_low=None, drop_high=None, held=held,
    )  # fmt: skip


def search(name: str, minimize: str = "latency", by: str = "measured", limits: Limits | None = None) -> Any:
    problem = Problem({"layer": {"float32": {"latency": 10.0}}})
    return SimpleNamespace(
        runtime=SimpleNamespace(name=name, format=name),
        provable=limits or Limits(),
        job=SimpleNamespace(limits=Limits()),
        precision="float32",
        minimize=minimize,
        problem=problem,
        proofs={},
        costs=SimpleNamespace(latency_from=by, problems={"float32": problem}),
    )


class Made:
    """A contest of searches whose predictions and findings are made up.

    Args:
        bounds: by search, in units of the float model, what none of its plans can beat.
        plans: by search, what it builds one after the other, each with what it is predicted at; or how it fails.
        whole: by search, its last plan when all its samples were run.

    Attributes:
        finished: the searches that know all of their last plan, though it misses a limit.
        expected: by search, the latency that is predicted of what it finds, if the clock says another one.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        bounds: dict[str, float],
        plans: dict[str, list[tuple[float, Proof]] | EdgeqError],
        whole: dict[str, Proof] | None = None,
    ) -> None:
        whole = whole or {}
        self.built: list[str] = []
        self.accounted: list[str] = []
        self.finished: set[str] = set()
        self.expected: dict[str, float] = {}

        def rounds(one: Any, _: Start) -> Rounds:
            name, found = one.runtime.name, plans[one.runtime.name]
            if isinstance(found, EdgeqError):
                raise found
            for predicted, proof in found:
                yield {"latency": 10 * predicted, "size": 100.0}
                self.built.append(name)
                one.proofs["float32",] = proof
                expected = self.expected.get(name, proof.latency or 0.0)
                one.problem = Problem({"layer": {"float32": {"latency": expected}}})
                if proof.held:
                    return Outcome(one, {"layer": "float32"}, proof, proof.size)
            if name not in self.finished:
                yield None
            self.accounted.append(name)
            proof = whole.get(name, proof)
            return Outcome(one, {"layer": "float32"}, proof, proof.size)

        monkeypatch.setattr(contest, "start", lambda *_: Start({}, []))
        monkeypatch.setattr(contest, "at_best", lambda one, *_: bounds[one.runtime.name])
        monkeypatch.setattr(contest, "rounds", rounds)
        job: Any = SimpleNamespace(runtimes=list(bounds), clock=Clock(Silent()))
        self.contest = Contest(job, None, dict.fromkeys(bounds, 1.0))

    def run(self, by: str = "measured", **minimize: str) -> None:
        names = list(self.contest.beside)
        self.contest.carry_out([search(name, minimize.get(name, "latency"), by) for name in names])

    @property
    def best(self) -> str:
        found = self.contest.first()
        assert found is not None
        return str(found.search.runtime.name)


def test_the_most_promising_search_goes_first_and_what_is_no_better_is_not_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In units of the float model: 0.5 was predicted and 0.6 measured, so that 0.58 may be better, and 0.6 may not."""
    made = Made(
        monkeypatch,
        {"far": 0.6, "near": 0.57, "first": 0.4},
        {"far": [], "near": [(0.58, measured(5.5))], "first": [(0.5, measured(6.0))]},
    )
    made.run()
    assert made.built == ["first", "near"] and made.best == "near"
    assert made.contest.passed == [
        "far, float32: not built, predicted at 1.09x the latency of the plan in near, float32, or more"
    ]


def test_one_slow_reading_of_the_clock_is_held_against_what_was_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """6.6 s were read and 5.5 predicted, which are 6 for all that is known: 5.9 is hardly faster, and 5.7 may be."""
    for bound, built in ((0.59, ["first"]), (0.57, ["first", "second"])):
        made = Made(
            monkeypatch,
            {"second": bound, "first": 0.4},
            {"second": [(bound, measured(7.0))], "first": [(0.5, measured(6.6))]},
        )
        made.expected = {"first": 5.5}
        made.run()
        assert made.built == built and made.best == "first"


def test_what_is_faster_by_less_than_predictions_are_off_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(
        monkeypatch, {"second": 0.5, "first": 0.4}, {"second": [(0.59, measured(5.0))], "first": [(0.5, measured(6.0))]}
    )
    made.run()
    assert made.built == ["first"]
    assert made.contest.passed == [
        "second, float32: not built, predicted at 0.98x the latency of the plan in first, float32, or more: "
        "predictions are off by more than that"
    ]


def test_what_a_bound_leaves_open_is_solved_for_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one with the lower bound turns out to be the slower one: it waits, and is not built."""
    made = Made(
        monkeypatch, {"far": 0.4, "first": 0.5}, {"far": [(0.75, measured(7.0))], "first": [(0.55, measured(6.0))]}
    )
    made.run()
    assert made.built == ["first"] and "far, float32: not built, predicted at 1.25x" in made.contest.passed[0]


@pytest.mark.parametrize("why", ["the best holds nothing", "nothing is predicted", "something else is minimized"])
def test_all_are_built_where_no_prediction_can_tell(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    made = Made(
        monkeypatch,
        {"slow": 5.0, "first": 0.5},
        {"first": [(0.5, measured(5.0, held=why != "the best holds nothing"))], "slow": [(5.0, measured(50.0))]},
    )
    made.run("modelled" if why == "nothing is predicted" else "measured", slow=(
        "size" if why == "something else is minimized" else "latency"
    ))  # fmt: skip
    assert sorted(made.built) == ["first", "slow"]
    told = ["first, float32: no plan that was built holds every limit"] if why == "the best holds nothing" else []
    assert made.contest.passed == told


def test_the_next_build_is_always_the_one_that_is_predicted_to_be_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """One misses a limit and would try something slower: the others that are faster come first, and once one of them
    holds, a further round is only made where it is not far behind."""
    slow, missed = measured(9.0), measured(5.0, held=False)
    made = Made(
        monkeypatch,
        {"a": 0.4, "b": 0.4, "c": 0.4},
        {
            "a": [(0.5, missed), (0.57, missed), (0.7, slow)],
            "b": [(0.55, missed), (0.9, slow)],
            "c": [(0.6, measured(6.0))],
        },
    )
    made.run()
    assert made.built == ["a", "b", "a", "c"] and made.best == "c" and made.accounted == []
    assert made.contest.passed == [
        "a, float32: no further plan is built, predicted at 1.17x the latency of the plan in c, float32, or more",
        "b, float32: no further plan is built, predicted at 1.50x the latency of the plan in c, float32, or more",
    ]


def test_where_no_plan_holds_the_limits_every_search_says_what_came_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    missed = {"a": [(0.5, measured(5.0, held=False))], "b": [(9.0, measured(90.0, held=False))]}
    made = Made(monkeypatch, {"a": 0.4, "b": 0.4}, {**missed})
    made.run()
    assert made.accounted == ["a", "b"] and made.contest.passed == [] and made.best in ("a", "b")
    made = Made(monkeypatch, {"a": 0.4, "b": 0.4, "c": 0.4}, {**missed, "c": [(9.0, measured(95.0))]})
    made.run()
    assert made.accounted == [] and made.best == "c", "nobody wants the times of plans that lose too much"


def test_plans_that_lose_more_than_one_that_was_run_to_the_end_are_not_run_to_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is known of a plan that misses is the least that it loses: 0.8 may still be less than 0.9, and 1 is not."""
    lost = {"a": 0.6, "b": 0.8, "c": 1.0}
    made = Made(
        monkeypatch,
        dict.fromkeys("cba", 0.4),
        {name: [(0.5, measured(5.0, held=False, drop=drop))] for name, drop in lost.items()},
        {"a": measured(5.0, held=False, drop=0.9), "b": measured(5.0, held=False, drop=0.8)},
    )
    made.run()
    assert made.accounted == ["a", "b"] and made.best == "b"
    assert made.contest.passed == [
        "c, float32: its plans are further from the limits, or no nearer than predictions are off"
    ]


@pytest.mark.parametrize(("predicted", "accounted"), [(5.9, ["b"]), (5.8, ["b", "a"])])
def test_what_may_be_nearer_to_a_limit_by_less_than_predictions_are_off_is_not_run_to_the_end(
    monkeypatch: pytest.MonkeyPatch, predicted: float, accounted: list[str]
) -> None:
    """The limit is 5 s, and the plan that seemed to be nearest to it takes 6."""
    missed = {"a": measured(predicted, held=False), "b": measured(5.5, held=False)}
    made = Made(
        monkeypatch, dict.fromkeys("ab", 0.4), {name: [(0.5, proof)] for name, proof in missed.items()},
        {"b": measured(6.0, held=False)},
    )  # fmt: skip
    made.contest.carry_out([search(name, limits=Limits(max_latency=5.0)) for name in "ab"])
    assert made.accounted == accounted


@pytest.mark.parametrize(
    ("limit", "over", "built"),
    [
        (5.0, 2.0, ["first"]),  # 2 s is nothing that predictions could be off
        (5.9, 0.6, ["first", "near"]),  # 0.6 of float, 6.0 s, against 5.9
        (5.9, 0.64, ["first"]),  # 6.4 s against 5.9
    ],
)
def test_beside_a_plan_that_is_only_too_slow_what_is_no_faster_is_built_if_it_may_be_fast_enough(
    monkeypatch: pytest.MonkeyPatch, limit: float, over: float, built: list[str]
) -> None:
    made = Made(
        monkeypatch, {"near": 0.4, "first": 0.4},
        {"first": [(0.5, measured(6.0, held=False))], "near": [(over, measured(6.1, held=False))]},
    )  # fmt: skip
    limits = Limits(max_latency=limit, max_drop=Drop(1.0, percent=True))
    made.finished = {"first"}
    made.contest.carry_out([search(name, limits=limits) for name in ("near", "first")])
    assert made.built == built and made.best == "first"


def test_what_loses_too_much_is_not_run_to_the_end_for_being_faster_than_one_that_holds_the_drop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half as slow as the other one, and 2 points worse than it may be."""
    slow, wrong = measured(8.0, held=False, drop=0.5), measured(4.0, held=False, drop=3.0)
    made = Made(monkeypatch, {"slow": 0.4, "wrong": 0.4}, {"slow": [(0.7, slow)], "wrong": [(0.5, wrong)]})
    made.finished = {"slow"}
    limits = Limits(max_latency=3.0, max_drop=Drop(1.0, percent=True))
    made.contest.carry_out([search(name, limits=limits) for name in ("slow", "wrong")])
    assert made.built == ["wrong", "slow"] and made.accounted == ["slow"] and made.best == "slow"
    assert made.contest.passed == [
        "wrong, float32: its plans are further from the limits, or no nearer than predictions are off"
    ]


def test_plans_that_come_near_limits_are_built_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plan is predicted to hold the limits; the one that is predicted to come nearest does when it is measured."""
    bounds = {"far": 0.9, "near": 0.6}
    made = Made(monkeypatch, bounds, {"far": [(0.9, measured(9.0))], "near": [(0.6, measured(6.0))]})
    eased = Start({"latency": 1.0}, [])

    def at_best(one: Any, caps: dict[str, float], _: float | None) -> float:
        if caps != eased.caps:
            raise Infeasible("too tight", "loosen it", {}, ("size",))
        return bounds[one.runtime.name]

    monkeypatch.setattr(contest, "at_best", at_best)
    monkeypatch.setattr(contest, "nearest", lambda *_: eased)
    made.run()
    assert made.contest.first() is None and made.built == []
    made.contest.come_near()
    assert made.built == ["near"] and made.best == "near"
    assert made.contest.passed == [
        "far, float32: not built, predicted at 1.50x the latency of the plan in near, float32, or more"
    ]


@pytest.mark.parametrize(
    ("found", "measure", "built"),
    [
        (
            measured(9.0, held=False),
            "latency",
            ["first", "refused"],
        ),  # only too slow, and slower than the other would be
        (measured(6.0, held=False), "latency", ["first"]),  # the other is predicted to be slower
        (measured(9.0, held=False), "size", ["first"]),  # the other would be too large
        (measured(9.0), "latency", ["first"]),
    ],
)
def test_what_is_refused_comes_near_limits_that_no_plan_holds(
    monkeypatch: pytest.MonkeyPatch, found: Proof, measure: str, built: list[str]
) -> None:
    made = Made(
        monkeypatch, {"refused": 0.7, "first": 0.6},
        {"refused": [(0.7, measured(7.0, held=False))], "first": [(0.6, found)]},
    )  # fmt: skip
    bounds = iter([Infeasible("too tight", "loosen it", {}, (measure,)), 0.6, 0.7])

    def at_best(*_: object) -> float:
        bound = next(bounds)
        if isinstance(bound, Infeasible):
            raise bound
        return bound

    monkeypatch.setattr(contest, "at_best", at_best)
    monkeypatch.setattr(contest, "within_error", lambda *_: None)
    monkeypatch.setattr(contest, "nearest", lambda *_: Start({measure: 1.0}, []))
    limits = Limits(max_latency=3.0, max_drop=Drop(1.0, percent=True))
    made.finished = {"first"}
    made.contest.carry_out([search(name, limits=limits) for name in ("refused", "first")])
    made.contest.come_near()
    assert made.built == built


def test_one_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = DeviceError("the runtime crashed", where="here", remedy="none")
    made = Made(monkeypatch, {"broken": 0.1, "sound": 0.9}, {"broken": broken, "sound": [(0.9, measured(9.0))]})
    made.run()
    assert made.best == "sound" and made.contest.errors == [broken]


def test_alone_a_runtime_that_crashes_is_an_error_and_a_limit_that_is_too_tight_is_not_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Made(monkeypatch, {"a": 0.1}, {"a": GateError("too tight", remedy="loosen it")})
    made.run()
    assert made.contest.first() is None and len(made.contest.errors) == 1
    made = Made(monkeypatch, {"a": 0.1}, {"a": DeviceError("it crashed", remedy="none")})
    with pytest.raises(DeviceError, match="it crashed"):
        made.run()


def test_of_all_formats_only_the_promising_ones_are_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no tolerance at all, one: the others are predicted at more than nothing."""
    for module in ("openvino", "ai_edge_litert"):
        pytest.importorskip(module)
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(contest, "FAR", {"latency": 0.0, "size": 0.0})
    files, seen = trained_model.make(tmp_path), []

    class Stages(Silent):
        def start(self, stage: str) -> None:
            seen.append(stage)

    for minimize in ("latency", "size"):
        seen.clear()
        found = plan(
            files / "model.pt2", target="x86-avx512", calibration=files / "calib.npz", evaluation=files / "eval.npz",
            minimize=minimize, limits=Limits.parse(max_drop="2%"), progress=Stages(),
        )  # fmt: skip
        assert found.planned is not None and found.planned.held and found.planned.proof is not None
        built = [stage for stage in seen if stage.startswith("search in")]
        assert built and all(stage.startswith(f"search in {found.runtime}") for stage in built)
        passed = [note for note in found.planned.notes if "not built" in note]
        assert len(passed) >= 2 and all(f"the {minimize} of the plan in {found.format}" in note for note in passed)
