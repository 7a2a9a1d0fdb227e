"""What plans are offered: what the shipped evidence proves of a target's table."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import small_models as small

from edgeq.lowering.assign import FLOAT
from edgeq.lowering.choices import ladder
from edgeq.planning.proof.proven import proven_choices, rounded_by
from edgeq.probing.evidence import Evidence, shipped
from edgeq.registry.load import load_target
from edgeq.registry.schema import Runtime, Target

LEVELS = ("w4codebook", "w2codebook")
HISTOGRAMS = small.calibration("residual").histograms


def given(name: str = "x86-avx512", runtime: str = "onnxruntime") -> tuple[Target, Runtime]:
    target = load_target(name)
    return target, next(r for r in target.runtimes if r.name == runtime)


def forget(monkeypatch: pytest.MonkeyPatch, cells: Sequence[tuple[str, str]]) -> None:
    """Takes cells out of the evidence."""
    from edgeq.probing import evidence

    def without(target: Target, runtime: Runtime) -> Evidence | None:
        found = shipped(target, runtime)
        assert found is not None
        return found.model_copy(update={"cells": [c for c in found.cells if (c.op, c.kernel) not in cells]})

    monkeypatch.setattr(evidence, "shipped", without)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "litert"])
@pytest.mark.parametrize("target", ["x86-avx512", "arm-neon"])
def test_everything_that_a_plan_could_take_is_proven(target: str, runtime: str) -> None:
    if (target, runtime) == ("arm-neon", "openvino"):
        return
    aim, by = given(target, runtime)
    model = small.model("residual")
    options, notes = proven_choices(aim, by, model, HISTOGRAMS)
    assert options == ladder(model, by, HISTOGRAMS) and notes == []


def test_what_is_not_proven_is_left_out_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, [("conv2d", "w4a8"), ("conv2d", "w8"), ("conv1d", "w8a8")])
    options, notes = proven_choices(*given(), small.model("residual"), HISTOGRAMS)
    assert options["stem"] == ("w8a8", "w2a8", "w4", "w4asym", "w2", *LEVELS, FLOAT)
    assert options["head"] == (
        *("w8a8", "w4a8", "w2a8", "w8", "w4", "w4asym", "w2", "w8a8dyn", "w4a8dyn"),
        *LEVELS,
        FLOAT,
    )
    (note,) = notes
    assert "conv2d w4a8, conv2d w8" in note and "conv1d" not in note  # the model has none


def test_the_preferred_kernel_too(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, [("conv2d", "w8a8")])
    options, _ = proven_choices(*given(), small.model("residual"), HISTOGRAMS)
    assert options["stem"] == ("w4a8", "w2a8", "w8", "w4", "w4asym", "w2", *LEVELS, FLOAT)


def test_a_table_without_evidence_is_taken_at_its_word() -> None:
    aim, by = given()
    board = aim.model_copy(update={"name": "my-board"})
    options, (note,) = proven_choices(board, by, small.model("residual"), HISTOGRAMS)
    assert options == ladder(small.model("residual"), by, HISTOGRAMS)
    assert "edgeq probe --target my-board" in note


def test_a_method_that_is_asked_for_leaves_what_it_rounds_to() -> None:
    by, model = given()[1], small.model("residual")
    options = ladder(model, by, HISTOGRAMS)
    assert rounded_by(options, by, model, None) == options

    def stem(name: str) -> tuple[str, ...]:
        found = rounded_by(options, by, model, dict.fromkeys(options, name))
        assert {n: c for n, c in found.items() if n not in ("stem", "inner", "head")} == {
            n: c for n, c in options.items() if n not in ("stem", "inner", "head")
        }
        return found["stem"]

    assert stem("nearest") == stem("gptq") == options["stem"]
    assert stem("hqq") == stem("reconstruct") == tuple(c for c in options["stem"] if c not in LEVELS)
    assert stem("squeezellm") == (*LEVELS, FLOAT)
    assert stem("twn") == ("w2a8", "w2", FLOAT)
