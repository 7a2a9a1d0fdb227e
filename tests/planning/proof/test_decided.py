"""A plan that loses too much is given up as soon as that is certain, and never otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trained_model
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.devices import Device
from edgeq.evaluation.accuracy import quick_drop
from edgeq.evaluation.decided import decisive
from edgeq.limits import Limits
from edgeq.planning.planner import plan
from edgeq.planning.proof import allowed, proving
from edgeq.planning.proof.proving import held
from edgeq.plans.plan import Plan


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    samples=st.integers(1, 60),
    noise=st.floats(0, 3),
    limit=st.sampled_from([0.0, 0.5, 1.0, 1.6666666666666667, 2.0, 10.0, 33.3, 100.0]),
    labelled=st.booleans(),
    tail=st.sampled_from([(), (1, 1)]),
)
def test_it_is_certain_where_the_drop_is_over_the_limit_and_there_alone(
    seed: int, samples: int, noise: float, limit: float, labelled: bool, tail: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.standard_normal((samples, 4, *tail)).astype(np.float32)
    measured = (reference + noise * rng.standard_normal(reference.shape)).astype(np.float32)
    labels = rng.integers(0, 4, samples) if labelled else None
    drop = quick_drop([reference], [measured], labels, None)
    found = decisive([reference], labels, limit)
    assert found is not None and drop is not None and sorted(found.order) == list(range(samples))
    wrong = int((measured.reshape(samples, 4).argmax(1) != found.wanted).sum())
    assert (wrong > found.most) == (drop > limit + 1e-9)
    if wrong > found.most:
        assert limit < found.drop <= drop + 1e-9, "at least so much"


def test_those_come_first_that_are_likeliest_to_be_wrong() -> None:
    reference = np.array([[9.0, 0.0], [1.0, 0.9], [0.0, 1.0], [5.0, 4.0]], np.float32)
    found = decisive([reference], np.array([0, 0, 0, 0]), 0.0)
    assert found is not None and (found.before, found.most) == (1, 1)
    assert found.order.tolist() == [2, 1, 3, 0]


@pytest.mark.parametrize(
    "output",
    [np.zeros((5, 3), np.int64), np.zeros((5, 1), np.float32), np.zeros((5, 3, 7), np.float32)],
    ids=["integers", "one number", "positions"],
)
def test_other_outputs_are_run_to_the_end(output: np.ndarray) -> None:
    assert decisive([output], None, 1.0) is None


# ---------------------------------------------------------------- in a search


def planned(files: Path, max_drop: str, samples: int = 128) -> Plan:
    with np.load(files / "eval.npz") as whole:
        np.savez(files / f"{samples}.npz", **{name: array[:samples] for name, array in whole.items()})
    return plan(
        files / "model.pt2",
        target="x86-avx512",
        calibration=files / "calib.npz",
        evaluation=files / f"{samples}.npz",
        format="onnx",
        limits=Limits.parse(max_drop=max_drop),
    )


class Ran:
    """The samples that jobs ran; a share of the answers of the first ones is spoilt."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, spoilt: int) -> None:
        self.whole: list[bool] = []
        self.left = spoilt
        within = Device.outputs_within

        def noted(device: Device, artifact: Any, inputs: Any, wanted: Any, most: int, order: Any, *given: Any) -> Any:
            self.left -= 1
            if self.left >= 0:
                wanted = np.roll(wanted, 1)  # most answers are wrong by that
            found = within(device, artifact, inputs, wanted, most, order, *given)
            self.whole.append(found is not None)
            return found

        monkeypatch.setattr(Device, "outputs_within", noted)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_model.make(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _cache(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(files / "kept"))
    monkeypatch.setattr(allowed, "trial_errors", lambda _: [])


def test_what_misses_is_given_up_and_what_holds_is_run_to_the_end(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = Ran(monkeypatch, spoilt=1)
    found = planned(files, "1.5%").planned
    assert found is not None and found.proof is not None and found.held and not found.proof.at_least
    assert ran.whole == [False, True]
    one = found.attempts[0].proof
    assert one is not None and one.at_least and not one.held and one.drop is not None
    assert one.drop > 1.5 and one.latency is None and one.score is None
    monkeypatch.setattr(Device, "outputs_within", lambda *_: pytest.fail("both are known"))
    again = planned(files, "1.5%").planned
    assert again is not None and again.attempts == found.attempts and again.proof == found.proof


def test_what_was_given_up_under_one_limit_is_run_to_the_end_under_another(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ran(monkeypatch, spoilt=1)
    tight = planned(files, "2.5%", samples=110).planned
    ran = Ran(monkeypatch, spoilt=0)
    loose = planned(files, "4%", samples=110).planned
    assert tight is not None and loose is not None
    assert tight.attempts[0].proof is not None and tight.attempts[0].proof.at_least
    assert loose.attempts[0].predicted == tight.attempts[0].predicted, "the same plan"
    assert ran.whole == [True] and loose.proof is not None and not loose.proof.at_least and loose.held


def test_where_nothing_holds_all_samples_tell_the_plans_apart(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(limits: Limits, proof: Any) -> bool:
        return False if limits.max_drop is not None else held(limits, proof)

    ran = Ran(monkeypatch, spoilt=1000)
    monkeypatch.setattr(proving, "held", never)
    found = planned(files, "3.5%", samples=90).planned
    assert found is not None and found.proof is not None and not found.held
    assert len(ran.whole) > 1 and not any(ran.whole)
    best = found.proof
    assert not best.at_least and best.score is not None and best.drop_low is not None and best.latency is not None
    for attempt in found.attempts:  # the others may stay as they are where they lose more in any case
        proof = attempt.proof
        assert proof is not None and proof.drop is not None and best.drop is not None and proof.drop >= best.drop
        assert proof.at_least == (proof.score is None)
