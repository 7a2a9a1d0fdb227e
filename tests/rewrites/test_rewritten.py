"""The door: what is tried, kept, undone and told; what a plan says is followed to the bit."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import badly_scaled as bad
import numpy as np
import pytest
import small_models as small

from edgeq.api.deploy import deploy
from edgeq.cache import Cache
from edgeq.errors import UsageError
from edgeq.model.model import Model
from edgeq.plans.plan import Plan, read_plan
from edgeq.progress import Clock, Silent
from edgeq.registry.schema import Runtime
from edgeq.rewrites import REWRITES
from edgeq.rewrites.rewrite import Asked, Chosen, Observed, Parameters, Rewrite
from edgeq.rewrites.rewritten import Given, as_planned, rewritten

GUIDE = Path(__file__).parents[2] / "docs" / "rewrites.md"
FILES = {"onnx": "model.onnx", "openvino": "model.bin", "tflite": "model.tflite"}


def given(model: Model, count: int = 32, cache: Cache | None = None) -> Given:
    runtimes = [small.runtime("onnxruntime"), small.runtime("openvino")]
    return Given(bad.data(model, count), runtimes, Clock(Silent()), cache or Cache(None))


def of_its_own(before: float, after: float, times: float = 2.0) -> Rewrite:
    """Doubles what the stem's channels are, and halves what reads them."""
    from edgeq.rewrites.links import find_links, scaled

    def places(model: Model, runtimes: Sequence[Runtime]) -> dict[str, int]:
        return {find_links(model)[0].value: 1}

    def choose(asked: Asked) -> Chosen:
        return Chosen(dict.fromkeys(asked.observed, times), [before], [after])

    def apply(model: Model, observed: Observed, parameters: Parameters) -> Model:
        return scaled(model, {p: np.full(len(observed[p].low), 1 / by) for p, by in parameters.items()})

    return Rewrite("doubling", "times", (0, 4), version=0, places=places, choose=choose, apply=apply)


def test_a_rewrite_comes_in_by_its_functions_and_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bad.model(scale=30.0)
    monkeypatch.setitem(REWRITES, "double", of_its_own(10, 12))
    changed, remarks = rewritten(model, given(model), ["double"])
    (place,) = changed.rewrites["double"]
    assert changed.rewrites == {"double": {place: 2.0}} and model.rewrites == {}
    assert remarks == [
        "doubling of 1 values, times 2: 10.0 to 12.0 dB, simulated on calibration samples that were held out"
    ]
    np.testing.assert_allclose(changed.state["stem.weight"], 2 * model.state["stem.weight"], rtol=1e-6)
    again = as_planned(model, given(model), changed.rewrites)
    assert again.fingerprint == changed.fingerprint


def test_the_one_of_the_guide_is_judged_and_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bad.model(scale=1.0)
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    monkeypatch.setitem(REWRITES, "double", REWRITES["equalize"])  # taken out again after the test
    exec(code, {})
    found, remarks = rewritten(model, given(model), ["double"])
    assert found is model and all("doubling was undone" in remark for remark in remarks), "powers of two change nothing"
    planned = as_planned(model, given(model), {"double": {"conv2d": 2.0}})
    np.testing.assert_array_equal(planned.state["stem.weight"], 2 * model.state["stem.weight"])


def test_what_gains_too_little_is_undone_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bad.model(scale=30.0)
    for after in (10.2, 9.0):
        monkeypatch.setitem(REWRITES, "double", of_its_own(10, after))
        found, remarks = rewritten(model, given(model), ["double"])
        assert found is model and remarks[0].startswith(f"doubling was undone: 10.0 to {after:.1f} dB")


def test_one_way_of_rounding_may_not_pay_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bad.model(scale=30.0)
    rewrite = of_its_own(0, 0)
    unfair = replace(rewrite, choose=lambda asked: Chosen(dict.fromkeys(asked.observed, 2.0), [10, 10], [19, 8]))
    monkeypatch.setitem(REWRITES, "double", unfair)
    assert rewritten(model, given(model), ["double"])[0] is model


def test_nothing_is_computed_for_few_samples_or_a_model_that_was_rewritten() -> None:
    model = bad.model(scale=30.0)
    few = given(model, count=7)
    assert rewritten(model, few, ["equalize"])[0] is model and not few.clock.seconds
    before = replace(model, rewrites={"equalize": {"conv2d": 1.0}})
    assert rewritten(before, given(model), ["equalize"])[0] is before
    with pytest.raises(UsageError, match="was rewritten before"):
        as_planned(before, given(model), {"equalize": {"conv2d": 1.0}})


def test_what_was_found_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, cache = bad.model(scale=30.0), Cache(tmp_path / "cache")
    first, told = rewritten(model, given(model, cache=cache), ["equalize"])
    assert first.rewrites["equalize"]

    def never(asked: Asked) -> Chosen:
        raise AssertionError

    monkeypatch.setitem(REWRITES, "equalize", replace(REWRITES["equalize"], choose=never))
    second, again = rewritten(model, given(model, cache=cache), ["equalize"])
    assert second.fingerprint == first.fingerprint and again == told


@pytest.mark.parametrize(
    ("wanted", "cause"),
    [
        ({"equalise": {}}, "there is no rewrite 'equalise'"),
        ({"equalize": {"elsewhere": 1.0}}, "elsewhere is no value of this model that equalization can change"),
        ({"equalize": {"conv2d": 1.5}}, "power 1.5"),
        ({"equalize": {"conv2d": float("nan")}}, "power nan"),
    ],
)
def test_what_cannot_be_done_is_refused(wanted: dict[str, Any], cause: str) -> None:
    model = bad.model(scale=30.0)
    with pytest.raises(UsageError, match=cause) as caught:
        as_planned(model, given(model), wanted)
    assert caught.value.remedy


@pytest.mark.parametrize("form", ["onnx", "openvino", "tflite"])
def test_an_artefact_gains_in_its_runtime_and_its_plan_gives_it_again_to_the_bit(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "cache"))
    model = bad.model(scale=30.0)
    data = {"calibration": bad.data(model, 64), "evaluation": bad.data(model, 64, seed=9)}
    how = {"target": small.HERE, **data, "format": form, "device": "local"}
    plain = deploy(model, **how, out=tmp_path / "plain", rewrites={}, method="nearest")
    auto = deploy(model, **how, out=tmp_path / "auto", method="nearest", effort="max")
    lost = [report.builds[0].accuracy.sqnr_db for report in (plain, auto)]
    assert lost[1] > lost[0] + 5, lost
    made = read_plan(tmp_path / "auto" / "plan.json")
    assert made.rewrites["equalize"] and any(text.startswith("equalization of ") for text in auto.warnings)
    layer = next(layer for layer in made.layers if layer.name == "deep")
    assert layer.weight is not None and layer.weight.granularity == "channel"
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "another"))
    deploy(model, **{**how, "format": "auto"}, out=tmp_path / "again", plan=made)
    followed = read_plan(tmp_path / "again" / "plan.json")
    assert followed.rewrites == made.rewrites and followed.stored == made.stored
    one, other = ((tmp_path / name / FILES[form]).read_bytes() for name in ("auto", "again"))
    assert one == other


def test_effort_says_what_is_tried_and_a_plan_takes_none_beside_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "cache"))
    model = bad.model(scale=30.0)
    how = {"target": "x86-avx512", "calibration": bad.data(model, 32), "format": "onnx"}
    report = deploy(model, **how, out=tmp_path / "fast", effort="fast")
    made = read_plan(tmp_path / "fast" / "plan.json")
    assert made.rewrites == {} and not any("dB" in text for text in report.warnings)
    with pytest.raises(UsageError, match="a plan says itself what is rewritten"):
        deploy(model, **how, out=tmp_path / "wrong", plan=made, rewrites={})


def test_a_plan_of_the_version_before_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "cache"))
    model = bad.model(scale=1.0)
    deploy(model, target="x86-avx512", calibration=bad.data(model, 8), format="onnx", out=tmp_path / "b", effort="fast")
    content = json.loads((tmp_path / "b" / "plan.json").read_text())
    made = Plan.model_validate(content)
    del content["rewrites"]
    old = tmp_path / "old.json"
    old.write_text(json.dumps(content | {"schema_version": 3, "smooth_quant": {"layer_norm": 0.5}}))
    assert read_plan(old) == made.model_copy(update={"rewrites": {"smooth_quant": {"layer_norm": 0.5}}})
