"""What a person edits in a plan beside its choices is not passed over in silence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import trained_model

from edgeq.api.deploy import deploy
from edgeq.errors import UsageError
from edgeq.methods.effort import EffortName
from edgeq.plans.edited import contradictions
from edgeq.plans.plan import Plan, read_plan


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = trained_model.make(tmp_path_factory.mktemp("model"))
    follow(folder, None, folder / "build")
    return folder


def follow(folder: Path, plan: Plan | None, out: Path, effort: EffortName | None = None) -> list[str]:
    files = {"calibration": folder / "calib.npz", "target": "x86-avx512", "format": "onnx"}
    return deploy(folder / "model.pt2", out=out, plan=plan, effort=effort, **files).warnings  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("output", "scale"), 0.5, ("output scale", "the plan says 0.5")),
        (("output", "low"), -math.inf, ("output low", "the plan says -inf")),
        (("output", "zero_point"), 7, ("output zero_point", "the plan says 7")),
        (("output", "dtype"), "int16", ("output dtype", "the plan says int16", "edit a layer's choice")),
        (("weight", "dtype"), "int4", ("weight dtype", "the plan says int4", "edit a layer's choice")),
        (("weight", "bias"), "float32", ("weight bias", "the plan says float32", "edit a layer's choice")),
        (("weight", "sha256"), "0" * 64, ("weight sha256", "the plan says 0000")),
        (("macs",), 1, ("macs", "the plan says 1")),
    ],
)
def test_an_edit_of_what_was_found_is_told_with_layer_and_values(
    built: Path, place: tuple[str, ...], value: object, says: tuple[str, ...]
) -> None:
    plan = read_plan(built / "build/plan.json")
    assert contradictions(plan, plan) == []
    content: Any = plan.model_dump(mode="json")
    layer = next(one for one in content["layers"] if one["weight"] and one["output"])
    spot = layer
    for key in place[:-1]:
        spot = spot[key]
    spot[place[-1]] = value
    (told,) = contradictions(Plan.model_validate(content), plan)
    assert told.startswith(f"layer {layer['name']}") and all(text in told for text in says)


def test_the_report_warns_of_an_edited_scale_and_an_honest_plan_is_followed_without_a_word(
    built: Path, tmp_path: Path
) -> None:
    plan = read_plan(built / "build/plan.json")
    honest = follow(built, plan, tmp_path / "honest")
    assert not any("the plan says" in text for text in honest)
    name, tensor = next(iter(plan.inputs.items()))
    edited = plan.model_copy(update={"inputs": {name: tensor.model_copy(update={"scale": 2 * tensor.scale})}})
    (told,) = set(follow(built, edited, tmp_path / "edited")) - set(honest)
    assert f"input {name}: scale is {tensor.scale:.6g}, where the plan says {2 * tensor.scale:.6g}" in told
    assert (tmp_path / "honest/model.onnx").read_bytes() == (tmp_path / "edited/model.onnx").read_bytes()


def test_of_what_methods_find_nothing_is_told_where_they_are_chosen_anew(built: Path, tmp_path: Path) -> None:
    content: Any = read_plan(built / "build/plan.json").model_dump(mode="json")
    inner = next(one for one in content["layers"] if one["output"])
    inner["output"]["scale"] *= 1.1  # as a method would that learns
    assert not any("the plan says" in text for text in follow(built, Plan(**content), tmp_path / "anew", "fast"))


def test_a_plan_for_a_runtime_that_does_not_run_its_format_is_refused(built: Path, tmp_path: Path) -> None:
    plan = read_plan(built / "build/plan.json").model_copy(update={"runtime": "openvino"})
    with pytest.raises(UsageError, match="none that runs onnx"):
        follow(built, plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()
