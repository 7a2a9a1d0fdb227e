"""Which plans are built, in which order, and what comes of it: searches whose costs and measurements are made up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeq.errors import DeviceError, GateError
from edgeq.limits import Drop, Limits
from edgeq.planning.proof import loop
from edgeq.planning.proof.loop import KNOWN_TO_HOLD, Book, look
from edgeq.planning.proof.outcome import LOSES_LEAST, Outcome
from edgeq.planning.proof.proving import held
from edgeq.planning.proof.search import Search
from edgeq.planning.solver.problem import Problem
from edgeq.plans.plan import Proof
from edgeq.progress import Clock, Silent

COSTS = {
    "w8a8": {"latency": 2.0, "loss": 0.05, "size": 10.0},
    "w4a8": {"latency": 1.0, "loss": 0.5, "size": 5.0},
    "float32": {"latency": 9.0, "loss": 0.0, "size": 40.0},
}
DROPS = {"w8a8": 0.5, "w4a8": 5.0, "float32": 0.0}


class Made:
    """Searches of one layer each.

    Attributes:
        judged: what was built, in this order.
        whole: what was run to its end after it was given up.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limits: Limits, allowed: float | None = 0.1) -> None:
        self.judged: list[str] = []
        self.whole: list[str] = []
        self.took: dict[str, dict[str, float]] = {}
        self.drops: dict[str, dict[str, float]] = {}
        self.sizes: dict[str, int] = {}
        self.searches: list[Search] = []
        self.broken: dict[str, Exception] = {}
        device = SimpleNamespace(emulated=False)
        job: Any = SimpleNamespace(limits=limits, clock=Clock(Silent()), runtimes=[], device=device, timed=device)
        self.book = Book(job, allowed)
        monkeypatch.setattr(loop, "judge", self._judge)
        monkeypatch.setattr(loop, "prove", self._prove)
        monkeypatch.setattr(loop, "size_of", lambda s, c: self.sizes.get(c["layer"], COSTS[c["layer"]]["size"]))

    def search(
        self, name: str = "a", times: float = 1.0, *, by: str = "measured", minimize: str = "latency", **given: Any
    ) -> Search:
        """One of a runtime, whose integers take so many times as long.

        Args:
            given: `took` and `drops` by choice, where something else is measured than predicted.
        """
        scaled = {c: cost["latency"] * (1 if c == "float32" else times) for c, cost in COSTS.items()}
        costs = {c: {**cost, "latency": scaled[c]} for c, cost in COSTS.items()}
        problem = Problem({"layer": costs})
        table: Any = SimpleNamespace(latency_from=by, latency_by=None, problems={"float32": problem})
        runtime: Any = SimpleNamespace(name=name, format=name)
        self.took[name] = scaled | given.get("took", {})
        self.drops[name] = DROPS | given.get("drops", {})
        exporter: Any = None
        found = Search(self.book.job, runtime, exporter, Path(), table, problem, "float32", "", minimize)
        self.book.job.runtimes.append(runtime)
        self.book.beside = {**self.book.beside, name: 1.0}  # type: ignore[dict-item]
        self.searches.append(found)
        return found

    def _proof(self, search: Search, choice: str) -> Proof:
        name = search.runtime.name
        drop, took = self.drops[name][choice], self.took[name]
        proof = Proof(
            latency=took[choice], latency_of={"float32": took["float32"], "preferred": took["w8a8"]},
            size=int(self.sizes.get(choice, COSTS[choice]["size"])), metric="top-1", unit="%", score=90 - drop,
            float_score=90.0, drop=drop, drop_low=None, drop_high=None, held=False,
        )  # fmt: skip
        return proof.model_copy(update={"held": held(search.provable, proof)})

    def _judge(self, search: Search, choices: Mapping[str, str]) -> Proof:
        """Given up, and not timed, where it loses too much."""
        name, choice = search.runtime.name, choices["layer"]
        if name in self.broken:
            raise self.broken[name]
        self.judged.append(f"{name} {choice}")
        proof = self._proof(search, choice)
        if not held(replace(search.provable, max_latency=None, max_size=None), proof):
            proof = proof.model_copy(update={"latency": None, "latency_of": {}, "at_least": True})
        search.proofs[choice,] = proof
        return proof

    def _prove(self, search: Search, choices: Mapping[str, str], answered: Proof | None) -> Proof:
        self.whole.append(f"{search.runtime.name} {choices['layer']}")
        return self._proof(search, choices["layer"])

    def run(self) -> Outcome:
        look(self.book, self.searches)
        best = self.book.best()
        assert best is not None
        return best


def one(monkeypatch: pytest.MonkeyPatch, limits: Limits, allowed: float | None = 0.1, **given: Any) -> Made:
    made = Made(monkeypatch, limits, allowed)
    made.search(**given)
    return made


DROP = Limits.parse(max_drop="1%")


def test_a_plan_that_holds_is_the_only_one_that_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    made = one(monkeypatch, DROP)
    found = made.run()
    assert made.judged == ["a w8a8"] and found.held and found.choices == {"layer": "w8a8"}


def test_a_plan_says_that_it_was_measured_to_hold_what_it_was_predicted_to_miss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Float is all that is predicted to hold the drop; the preferred kernels are faster, and are tried."""
    made = one(monkeypatch, DROP, allowed=0.01)
    found = made.run()
    assert made.judged == ["a w8a8"] and found.held and found.remark == KNOWN_TO_HOLD


def test_what_was_faster_in_the_same_turns_is_tried_whatever_was_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    made = one(monkeypatch, DROP, took={"w8a8": 9.5})
    found = made.run()
    assert made.judged == ["a w8a8", "a float32"] and found.choices == {"layer": "float32"}


def test_where_the_preferred_kernels_lose_too_much_the_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    made = one(monkeypatch, DROP, drops={"w8a8": 1.5})
    found = made.run()
    assert made.judged == ["a w8a8", "a float32"] and found.held and found.choices == {"layer": "float32"}
    assert made.whole == [], "nobody wants the times of plans that lose too much"


def test_after_a_plan_that_lost_too_much_half_of_its_loss_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = one(monkeypatch, DROP, allowed=0.6)
    found = made.run()
    assert made.judged[:2] == ["a w4a8", "a w8a8"] and found.held and found.choices == {"layer": "w8a8"}
    assert [attempt.loss_limit for attempt in found.attempts][:1] == [0.6]


def test_a_file_that_is_larger_than_predicted_is_solved_for_again_before_it_is_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = one(monkeypatch, Limits(max_size=10), allowed=0.6, minimize="loss")
    made.sizes = {"w8a8": 11}
    made.searches[0].problem.options["layer"]["w8a8"]["size"] = 9.5  # type: ignore[index]
    found = made.run()
    assert made.judged == ["a w4a8"] and found.held and found.size == 5


def test_where_no_plan_holds_the_latency_the_fastest_that_holds_the_drop_comes_nearest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = one(monkeypatch, Limits.parse(max_drop="1%", max_latency="500ms"))
    found = made.run()
    assert made.judged == ["a w8a8"] and found.choices == {"layer": "w8a8"} and not found.held
    assert any("this is the plan that comes nearest" in note for note in found.search.notes)


def test_what_is_fast_enough_and_loses_too_much_ranks_behind_what_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """4-bit weights are fast enough and turn out as bad as predicted."""
    made = one(monkeypatch, Limits.parse(max_drop="1%", max_latency="1500ms"))
    found = made.run()
    assert found.choices == {"layer": "w8a8"} and not found.held and "a float32" not in made.judged


def test_in_the_end_float_holds_the_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    made = one(monkeypatch, Limits.parse(max_drop="1%", max_latency="1500ms"), drops={"w8a8": 1.5})
    found = made.run()
    assert found.choices == {"layer": "float32"} and not found.held


def test_a_plan_that_is_too_large_is_no_answer_to_a_limit_on_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(max_drop=Drop(1.0, percent=True), max_size=6)
    made = one(monkeypatch, limits)
    found = made.run()
    assert made.judged == ["a w4a8"] and found.choices == {"layer": "w4a8"} and not found.held
    assert found.remark == LOSES_LEAST
    assert made.whole == ["a w4a8"], "it is what comes nearest: all of it is measured"


def test_a_latency_that_is_modelled_is_not_traded_for_the_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    """No device would say that it is exceeded."""
    made = one(monkeypatch, Limits.parse(max_drop="1%", max_latency="500ms"), by="modelled")
    look(made.book, made.searches)
    assert made.book.best() is None and "modelled, not measured" in made.book.errors[0].cause


def test_limits_give_way_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for caps, eased in (
        ({"loss": 0.1, "latency": 3.0}, {"loss": 0.1, "latency": 3.0}),
        ({"loss": 0.1, "latency": 1.5}, {"loss": 0.1, "latency": pytest.approx(2.02)}),
        ({"loss": 0.1, "latency": 0.5, "size": 5.0}, {"loss": 0.1, "latency": pytest.approx(1.01), "size": 5.0}),
        ({"loss": 0.1, "latency": 1.5, "size": 1.0}, {"loss": 0.1, "latency": 1.5, "size": pytest.approx(5.05)}),
    ):
        line: Any = SimpleNamespace(search=SimpleNamespace(problem=Problem({"layer": COSTS})), caps=caps)
        assert loop._eased(line) == eased


# ---------------------------------------------------------------- several searches


def test_the_most_promising_one_goes_first_and_what_is_no_better_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch, DROP)
    made.search("far", 1.09)
    made.search("first", 1.0)
    found = made.run()
    assert made.judged == ["first w8a8"] and found.search.runtime.name == "first"
    assert made.book.passed == [
        "far, float32: not built, predicted at 1.09x the latency of the plan in first, float32, or more"
    ]


def test_what_is_much_slower_than_predicted_is_held_against_what_was_predicted_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One reading of the clock is off by as much as predictions are; 16 % are more than that."""
    for took, built in ((2.2, ["first w8a8"]), (2.32, ["first w8a8", "second w8a8"])):
        made = Made(monkeypatch, DROP)
        made.search("first", took={"w8a8": took})
        made.search("second", 1.05, took={"w8a8": 2.6})
        assert made.run().search.runtime.name == "first" and made.judged == built


def test_once_one_holds_what_would_be_slower_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """The faster runtime misses the drop, and all else that it has is float."""
    made = Made(monkeypatch, DROP)
    made.search("fast", 0.5, drops={"w8a8": 2.0})
    made.search("slow", 1.0)
    found = made.run()
    assert made.judged == ["fast w8a8", "slow w8a8"] and found.search.runtime.name == "slow" and found.held


def test_where_nothing_is_predicted_every_search_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch, DROP)
    made.search("a", by="modelled")
    made.search("b", 2.0, by="modelled")
    made.run()
    assert sorted(made.judged) == ["a w8a8", "b w8a8"]


def test_of_plans_that_lose_too_much_the_one_that_loses_least_is_measured_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Made(monkeypatch, Limits(max_drop=Drop(0.1, percent=True), max_size=15))
    made.search("a", drops={"w8a8": 3.0})
    made.search("b", drops={"w8a8": 2.0})
    found = made.run()
    assert found.search.runtime.name == "b" and made.whole == ["b w8a8"]
    assert found.proof is not None and not found.proof.at_least


def test_one_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch, DROP)
    made.search("broken", 0.1)
    made.search("sound")
    broken = DeviceError("the runtime crashed", where="here", remedy="none")
    made.broken["broken"] = broken
    assert made.run().search.runtime.name == "sound" and made.book.errors == [broken]


def test_alone_a_runtime_that_crashes_is_an_error_and_a_limit_that_is_too_tight_is_not_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = one(monkeypatch, DROP)
    made.broken["a"] = GateError("too tight", remedy="loosen it")
    look(made.book, made.searches)
    assert made.book.best() is None and len(made.book.errors) == 1
    made = one(monkeypatch, DROP)
    made.broken["a"] = DeviceError("it crashed", remedy="none")
    with pytest.raises(DeviceError, match="it crashed"):
        made.run()
