"""Which of several searches are built for, in which order, and what is said of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trained_model

from edgeq.errors import DeviceError, GateError
from edgeq.planning import contest
from edgeq.planning.choices import Problem
from edgeq.planning.contest import Contest
from edgeq.planning.outcome import Outcome
from edgeq.planning.plan import Proof
from edgeq.planning.planner import plan
from edgeq.planning.rounds import Start
from edgeq.progress import Clock, Silent
from edgeq.validation.gates import Limits


def measured(latency: float, *, held: bool = True) -> Proof:
    return Proof(
        latency=latency, latency_of={"float32": 10.0}, size=1000, metric="top-1", unit="%", score=90.0,
        float_score=90.0, drop=0.0, drop_low=None, drop_high=None, held=held,
    )  # fmt: skip


def search(name: str, minimize: str = "latency") -> Any:
    return SimpleNamespace(
        runtime=SimpleNamespace(name=name, format=name),
        provable=Limits(),
        precision="float32",
        minimize=minimize,
        problem=Problem({"layer": {"float32": {"latency": 10.0}}}),
        costs=SimpleNamespace(
            latency_from="measured", problems={"float32": Problem({"layer": {"float32": {"latency": 10.0}}})}
        ),
    )


class Made:
    """A contest of searches whose predictions and findings are made up, as many as have a name here."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        hoped: dict[str, float | None],
        found: dict[str, Any],
        exact: dict[str, float | None] | None = None,
    ) -> None:
        self.built: list[str] = []
        self.told: dict[str, str] = {}

        def find(one: Any, _: Start, hopeless: Callable[[dict[str, float]], str]) -> Outcome:
            self.built.append(one.runtime.name)
            result = found[one.runtime.name]
            if isinstance(result, Exception):
                raise result
            self.told[one.runtime.name] = hopeless({"latency": result.latency, "size": result.size})
            return Outcome(one, {"layer": "float32"}, result, result.size)

        def expected(one: Any, *_: Any, solved: bool) -> float | None:
            return (exact if solved and exact else hoped)[one.runtime.name]

        monkeypatch.setattr(contest, "start", lambda *_: Start({}, []))
        monkeypatch.setattr(contest, "expected", expected)
        monkeypatch.setattr(contest, "find", find)
        job: Any = SimpleNamespace(runtimes=list(hoped), clock=Clock(Silent()))
        self.contest = Contest(job, None, dict.fromkeys(hoped, 1.0))

    def run(self, **minimize: str) -> None:
        names = list(self.contest.beside)
        self.contest.carry_out([search(name, minimize.get(name, "latency")) for name in names])


def test_the_most_promising_search_goes_first_and_what_is_far_behind_is_not_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In units of the float model: 0.5 was hoped for and 0.6 measured, so that 0.62 is not yet too far."""
    made = Made(
        monkeypatch,
        {"far": 0.76, "near": 0.62, "first": 0.5},
        {"first": measured(6.0), "near": measured(5.9)},
    )
    made.run()
    assert made.built == ["first", "near"]
    best = made.contest.first()
    assert best is not None and best.search.runtime.name == "near"
    assert made.contest.passed == [
        "far, float32: not built, predicted at 1.29x the latency of the plan in near, float32, or more"
    ]


def test_what_a_bound_leaves_open_is_solved_for_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(
        monkeypatch,
        {"far": 0.6, "first": 0.5},
        {"first": measured(6.0)},
        {"far": 0.75, "first": 0.55},
    )
    made.run()
    assert made.built == ["first"] and "1.25x" in made.contest.passed[0]


@pytest.mark.parametrize("why", ["the best holds nothing", "nothing is predicted", "something else is minimized"])
def test_all_are_built_where_no_prediction_can_tell(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    unknown = why == "nothing is predicted"
    made = Made(
        monkeypatch,
        {"slow": None if unknown else 5.0, "first": None if unknown else 0.5},
        {"first": measured(5.0, held=why != "the best holds nothing"), "slow": measured(50.0)},
    )
    made.run(slow="size" if why == "something else is minimized" else "latency")
    assert sorted(made.built) == ["first", "slow"] and made.contest.passed == []


def test_a_further_round_is_not_built_where_its_plan_is_predicted_far_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second was promising, missed a limit, and what it would build next is slow."""
    made = Made(
        monkeypatch, {"first": 0.5, "second": 0.55}, {"first": measured(6.0), "second": measured(9.0, held=False)}
    )
    made.run()
    assert made.told == {"first": "", "second": "predicted at 1.50x the latency of the plan in first, float32, or more"}
    assert made.contest.passed == [f"second, float32: no further round is built, {made.told['second']}"]


def test_one_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = DeviceError("the runtime crashed", where="here", remedy="none")
    made = Made(monkeypatch, {"broken": 0.1, "sound": 0.9}, {"broken": broken, "sound": measured(9.0)})
    made.run()
    best = made.contest.first()
    assert best is not None and best.search.runtime.name == "sound" and made.contest.errors == [broken]


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
        assert len(built) == 1 and built[0].startswith(f"search in {found.runtime}")
        passed = [note for note in found.planned.notes if "not built" in note]
        assert len(passed) >= 2 and all(f"the {minimize} of the plan in {found.format}" in note for note in passed)
