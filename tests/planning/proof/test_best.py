"""Plans of several runtimes beside one another: their latencies come from different minutes of one machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import device_models as models
import numpy as np
import pytest
import trained_model

from edgeq.devices import Candidate, Device, open_device
from edgeq.errors import DeviceError
from edgeq.evaluation.alternating import TURNS, alternating
from edgeq.limits import Drop, Limits
from edgeq.planning.planner import plan
from edgeq.planning.proof import loop
from edgeq.planning.proof.outcome import Outcome, Rank, proof_rank, rank
from edgeq.planning.solver.problem import Problem
from edgeq.plans.plan import Plan, Proof
from edgeq.progress import Silent

pytest.importorskip("openvino")

SAMPLE = {"x": models.images(1)}


def with_proof(
    latency: float,
    float32: float,
    *,
    held: bool = True,
    drop: float = 0.0,
    limits: Limits | None = None,
) -> Outcome:
    proof = Proof(
        latency=latency, latency_of={"float32": float32}, size=1, metric="top-1", unit="%", score=90.0,
        float_score=90.0 + drop, drop=drop, drop_low=None, drop_high=None, held=held,
    )  # fmt: skip
    problem = Problem({"layer": {"float32": {"latency": 1.0}}})
    costs = SimpleNamespace(latency_from="measured", problems={"float32": problem})
    search: Any = SimpleNamespace(minimize="latency", problem=problem, provable=limits or Limits(), costs=costs)
    return Outcome(search, {"layer": "float32"}, proof, proof.size)


def test_a_latency_counts_beside_what_the_float_models_took_in_turns() -> None:
    """The first was measured while the machine was slow; its float model is as fast as the other's."""
    slow_minute, fast_minute = with_proof(5e-3, 10e-3), with_proof(4e-3, 5e-3)
    assert rank(slow_minute, 6e-3) < rank(fast_minute, 6e-3)
    assert rank(slow_minute, 6e-3)[1] == pytest.approx((3e-3, 0.0))
    assert rank(slow_minute, 6e-3) > rank(fast_minute, 3e-3), "the other runtime is twice as fast in float"
    assert rank(slow_minute, None) > rank(fast_minute, None), "nothing but seconds is known"
    missed = with_proof(1e-3, 10e-3, held=False, drop=2.0)
    assert rank(missed, 6e-3) > rank(fast_minute, 6e-3)
    assert rank(missed, 6e-3) == rank(missed, 1e-3), "a drop is no time"


def test_of_plans_that_miss_a_limit_size_goes_before_drop_and_drop_before_latency() -> None:
    """Float everywhere loses nothing, and is no answer to a limit on the size; nor is what loses 3 % more than it may
    one to a limit on the latency."""
    limits = Limits(max_size=1000, max_latency=1e-3, max_drop=Drop(2.0, percent=True))

    def ranked(size: int, latency: float | None, drop: float) -> Rank:
        proof = with_proof(1.0, 1.0, held=False, drop=drop).proof
        assert proof is not None
        return proof_rank(
            proof.model_copy(update={"size": size, "latency": latency}), "latency", {"latency": 2e-3}, limits
        )

    fits, near, far = ranked(900, 0.9e-3, 5.0), ranked(1100, 0.9e-3, 3.0), ranked(4000, 0.9e-3, 0.0)
    assert fits < ranked(900, 0.9e-3, 6.0) < near < far
    slow, slower, wrong = ranked(900, 1.1e-3, 2.0), ranked(900, 9e-3, 1.0), ranked(900, 0.9e-3, 2.5)
    assert slow < slower < wrong < ranked(900, 1e-3, 3.0) < ranked(900, 1.1e-3, 3.0) < near
    assert ranked(900, 1.1e-3, 1.0) < slow < ranked(900, 1.2e-3, 0.0), "within the limit the faster, then the better"
    assert ranked(900, None, 3.0) == ranked(900, 2e-3, 3.0), "nobody timed what loses too much: the prediction counts"


def test_of_plans_that_are_too_slow_the_fastest_goes_first_whenever_it_was_measured() -> None:
    """The slower one was measured in a minute in which the machine was twice as fast."""
    limits = Limits(max_latency=1e-9)
    fast = with_proof(5e-3, 10e-3, held=False, drop=2.0, limits=limits)
    slow = with_proof(4e-3, 5e-3, held=False, limits=limits)
    assert rank(fast) < rank(slow)


@pytest.mark.parametrize("drift", [1.0, 1.3, 0.8])
def test_a_machine_that_drifts_changes_no_ratio(drift: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Seconds are made up: 2, 3 and 1 ms on a machine that changes its speed by up to a third with every process, and
    once stands still for a moment."""
    true, calls = {"a": 2e-3, "b": 3e-3, "c": 1e-3}, [0]

    def latency(_: Device, artifacts: Mapping[str, Candidate], *__: object, **___: object) -> dict[str, Any]:
        (name,) = artifacts
        calls[0] += 1
        pause = 10.0 if calls[0] == 8 else 1.0
        return {name: np.full(9, pause * true[name] * drift ** calls[0])}

    monkeypatch.setattr(Device, "latency", latency)
    given = {name: (Candidate(tmp_path / name, "onnxruntime"), SAMPLE) for name in true}
    found = alternating(open_device("local"), given, Silent(), threads=1)
    assert calls[0] == TURNS * len(true)
    assert found["b"] / found["a"] == pytest.approx(1.5)
    assert found["c"] / found["a"] == pytest.approx(0.5)


def test_runtimes_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeq.evaluation.alternating.TURNS", 2)
    path = models.write_quantized_onnx(tmp_path / "q.onnx")
    given = {str(name): (Candidate(path, name), SAMPLE) for name in ("onnxruntime", "openvino")}  # type: ignore[arg-type]
    found = alternating(open_device("local"), given, Silent(), threads=1)
    assert list(found) == list(given) and all(0 < seconds < 1 for seconds in found.values())


def test_an_emulated_device_has_no_speed(tmp_path: Path) -> None:
    path = models.write_quantized_onnx(tmp_path / "q.onnx")
    emulated = Device(
        name="slow", emulated=True, link=lambda *_: pytest.fail("it ran"), missing=lambda _: DeviceError("")
    )  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="emulated"):
        alternating(emulated, {"a": (Candidate(path, "onnxruntime"), SAMPLE)}, Silent(), threads=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_model.make(tmp_path_factory.mktemp("model"))


@pytest.fixture
def in_all_formats(files: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Plan, list[str]]]:
    """Plans for all formats of a target, and says which stages that took; all tests share what it measured."""
    pytest.importorskip("ai_edge_litert")
    monkeypatch.setenv("EDGEQ_CACHE", str(files / "cache"))
    monkeypatch.setattr("edgeq.evaluation.alternating.TURNS", 2)

    def planned(max_drop: str, **given: Any) -> tuple[Plan, list[str]]:
        seen: list[str] = []

        class Stages(Silent):
            def start(self, stage: str) -> None:
                seen.append(stage)

        found = plan(
            files / "model.pt2", target="x86-avx512", calibration=files / "calib.npz", evaluation=files / "eval.npz",
            limits=Limits.parse(max_drop=max_drop), progress=Stages(), **given,
        )  # fmt: skip
        return found, seen

    return planned


def test_of_all_formats_the_fastest_plan_is_kept(
    files: Path, in_all_formats: Callable[..., tuple[Plan, list[str]]]
) -> None:
    shutil.rmtree(files / "cache" / "floats", ignore_errors=True)
    found, seen = in_all_formats("1%")
    assert found.planned is not None and found.planned.held
    assert seen.count("float model in every runtime") == 1
    again, seen = in_all_formats("1%")
    assert again.runtime == found.runtime
    assert "float model in every runtime" not in seen


@pytest.mark.parametrize("minimize", ["latency", "size"])
def test_of_all_formats_only_the_promising_ones_are_built(
    in_all_formats: Callable[..., tuple[Plan, list[str]]], minimize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no tolerance at all, one: the others are predicted at more than nothing."""
    monkeypatch.setattr(loop, "BETTER", 0.0)
    found, seen = in_all_formats("2%", minimize=minimize)
    assert found.planned is not None and found.planned.held and found.planned.proof is not None
    built = [stage for stage in seen if stage.startswith("search in")]
    assert built and all(stage.startswith(f"search in {found.runtime}") for stage in built)
    passed = [note for note in found.planned.notes if "not built" in note]
    assert len(passed) >= 2 and all(f"the {minimize} of the plan in {found.format}" in note for note in passed)


def unproved(loss: float, latency: float, size: int = 100, most: float = 0.5) -> Outcome:
    """A plan for a device that nothing can run, of which 1000 bytes are the most."""
    costs = {"latency": latency, "loss": loss}
    search: Any = SimpleNamespace(
        minimize="latency",
        problem=Problem({"layer": {"float32": costs}}),
        job=SimpleNamespace(limits=Limits(max_size=1000)),
    )
    return Outcome(search, {"layer": "float32"}, None, size, caps={"loss": most})


def test_a_plan_that_is_predicted_to_lose_too_much_ranks_behind_a_slower_one_that_is_not() -> None:
    fast, slow, worse, large = unproved(0.6, 1.0), unproved(0.4, 2.0), unproved(0.7, 0.5), unproved(0.1, 0.1, 2000)
    assert [one.loses_too_much for one in (fast, slow, worse, large)] == [True, False, True, False]
    assert [one.held for one in (fast, slow, worse, large)] == [True, True, True, False]
    assert sorted((large, worse, fast, slow), key=rank) == [slow, fast, worse, large]
    assert rank(unproved(0.4, 1.0)) < rank(slow)
