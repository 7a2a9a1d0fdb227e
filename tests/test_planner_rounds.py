"""The rounds of one search whose limits contradict one another, on plans whose measurements are made up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeq.limits import Drop, Limits
from edgeq.planning.proof import rounds
from edgeq.planning.proof.outcome import LOSES_LEAST, Outcome
from edgeq.planning.proof.proving import held
from edgeq.planning.proof.rounds import DROP_FIRST, KNOWN_TO_HOLD, Start
from edgeq.planning.proof.search import Search
from edgeq.planning.solver.problem import Problem
from edgeq.plans.plan import Proof
from edgeq.progress import Clock, Silent

COSTS = {
    "w8a8": {"latency": 2.0, "loss": 0.05, "size": 10.0},
    "w4a8": {"latency": 1.0, "loss": 0.5, "size": 5.0},
    "float32": {"latency": 9.0, "loss": 0.0, "size": 40.0},
}


class Rounds:
    """A search for one layer.

    Args:
        drops: by choice, what it is measured to lose.
        latencies: likewise, where that is not what is predicted.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        limits: Limits,
        drops: Mapping[str, float],
        latencies: Mapping[str, float] | None = None,
        by: str = "measured",
    ) -> None:
        self.judged: list[str] = []
        self.asked: list[tuple[Mapping[str, float] | None, int]] = []
        took = {choice: costs["latency"] for choice, costs in COSTS.items()} | dict(latencies or {})
        problem = Problem({"layer": COSTS})
        job: Any = SimpleNamespace(limits=limits, clock=Clock(Silent()))
        costs: Any = SimpleNamespace(latency_from=by, problems={"float32": problem})
        runtime: Any = SimpleNamespace(name="runtime")
        device: Any = object()
        ladder = {"layer": tuple(COSTS)}
        none: Any = None
        self.search = Search(
            job, runtime, device, None, none, none, Path(), ladder, ladder, costs, problem, "float32", "", "latency"
        )

        def judge(search: Search, choices: Mapping[str, str]) -> Proof:
            name = choices["layer"]
            self.judged.append(name)
            proof = Proof(
                latency=took[name], latency_of={"float32": took["float32"]}, size=int(COSTS[name]["size"]),
                metric="top-1", unit="%", score=90 - drops[name], float_score=90.0, drop=drops[name], drop_low=None,
                drop_high=None, held=False,
            )  # fmt: skip
            search.proofs[name,] = proof.model_copy(update={"held": held(search.provable, proof)})
            return search.proofs[name,]

        monkeypatch.setattr(rounds, "judge", judge)
        monkeypatch.setattr(rounds, "prove", lambda search, choices: search.proofs[choices["layer"],])
        monkeypatch.setattr(rounds, "complete", lambda search: None)
        monkeypatch.setattr(rounds, "size_of", lambda search, choices: COSTS[choices["layer"]]["size"])

    def run(self, allowed: float = 0.1) -> Outcome:
        going = rounds.rounds(self.search, rounds.start(self.search, allowed))
        while True:
            try:
                predicted = next(going)
            except StopIteration as ended:
                outcome: Outcome = ended.value
                return outcome
            self.asked.append((predicted, len(self.judged)))


def test_where_the_latency_leaves_only_plans_that_lose_too_much_a_slower_one_follows_when_nobody_has_better(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """4-bit weights are fast enough and turn out as bad as predicted; 8-bit ones are the fastest that hold the drop."""
    limits = Limits.parse(max_drop="1%", max_latency="1500ms")
    made = Rounds(monkeypatch, limits, {"w4a8": 5.0, "w8a8": 0.5, "float32": 0.0})
    found = made.run()
    assert made.judged == ["w4a8", "w8a8"] and found.choices == {"layer": "w8a8"} and not found.held
    assert made.asked == [(COSTS["w4a8"], 0), (None, 1)], "what cannot hold the latency waits for all that may"
    assert DROP_FIRST in found.notes and LOSES_LEAST not in found.notes
    assert [attempt.predicted for attempt in found.attempts] == [COSTS["w4a8"], COSTS["w8a8"]]


def test_in_the_end_float_holds_the_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits.parse(max_drop="1%", max_latency="1500ms")
    made = Rounds(monkeypatch, limits, {"w4a8": 5.0, "w8a8": 1.5, "float32": 0.0})
    found = made.run()
    assert made.judged == ["w4a8", "w8a8", "float32"] and found.choices == {"layer": "float32"} and not found.held


def test_where_the_size_leaves_one_plan_nothing_slower_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(max_drop=Drop(1.0, percent=True), max_latency=1.5, max_size=6)
    made = Rounds(monkeypatch, limits, {"w4a8": 5.0, "w8a8": 0.5, "float32": 0.0})
    found = made.run()
    assert made.judged == ["w4a8"] and found.choices == {"layer": "w4a8"} and DROP_FIRST not in found.notes


def test_a_bold_plan_that_holds_the_limits_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits.parse(max_drop="1%", max_latency="1500ms")
    made = Rounds(monkeypatch, limits, {"w4a8": 0.9, "w8a8": 0.5, "float32": 0.0})
    found = made.run()
    assert made.judged == ["w4a8"] and found.held and found.notes == [LOSES_LEAST]


def test_a_plan_says_that_it_was_measured_to_hold_what_it_was_predicted_to_miss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Rounds(monkeypatch, Limits.parse(max_drop="1%"), {"w4a8": 5.0, "w8a8": 0.5, "float32": 0.0})
    made.search.holding = {"layer": "w8a8"}
    found = made.run(allowed=0.01)
    assert made.judged == ["w8a8"] and found.held and found.notes == [KNOWN_TO_HOLD]


def test_a_plan_that_is_only_too_slow_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that could still be run would change what is known of it."""
    limits = Limits.parse(max_drop="1%", max_latency="2100ms")
    made = Rounds(monkeypatch, limits, {"w4a8": 5.0, "w8a8": 0.5, "float32": 0.0}, {"w8a8": 2.2})
    found = made.run()
    assert found.choices == {"layer": "w8a8"} and not found.held and DROP_FIRST not in found.notes
    assert all(predicted is not None for predicted, _ in made.asked)
    assert made.judged == ["w8a8", "w4a8"], "one that is fast enough was tried, whatever it is predicted to lose"


def test_a_latency_that_is_modelled_is_not_traded_for_the_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    """No device would say that it is exceeded."""
    limits = Limits.parse(max_drop="1%", max_latency="1500ms")
    made = Rounds(monkeypatch, limits, {"w4a8": 5.0, "w8a8": 0.5, "float32": 0.0}, by="modelled")
    found = made.run()
    assert made.judged == ["w4a8"] and found.choices == {"layer": "w4a8"} and not found.held


@pytest.mark.parametrize(
    ("caps", "eased"),
    [
        ({"loss": 0.1}, {"loss": 0.1}),
        ({"loss": 0.1, "latency": 3.0}, {"loss": 0.1, "latency": 3.0}),
        ({"loss": 0.1, "latency": 1.5}, {"loss": 0.1, "latency": pytest.approx(2.02)}),
        ({"loss": 0.1, "latency": 0.5, "size": 5.0}, {"loss": 0.1, "latency": pytest.approx(1.01), "size": 5.0}),
        ({"loss": 0.1, "latency": 1.5, "size": 1.0}, {"loss": 0.1, "latency": 1.5, "size": pytest.approx(5.05)}),
    ],
)
def test_limits_give_way_in_their_order(caps: dict[str, float], eased: dict[str, float]) -> None:
    assert rounds._eased(Problem({"layer": COSTS}), caps) == eased


def test_where_no_plan_reaches_the_latency_the_fastest_that_holds_the_drop_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = Limits.parse(max_drop="1%", max_latency="500ms")
    made = Rounds(monkeypatch, limits, {"w4a8": 5.0, "w8a8": 0.5, "float32": 0.0})
    with pytest.raises(rounds.Infeasible) as refused:
        made.run()
    begun = rounds.nearest(made.search, Start({"loss": 0.1, "latency": 0.5}, []), refused.value)
    assert begun.caps == {"loss": 0.1, "latency": pytest.approx(2.02)}
    found = rounds.find(made.search, begun)
    assert made.judged == ["w8a8"] and found.choices == {"layer": "w8a8"} and not found.held
