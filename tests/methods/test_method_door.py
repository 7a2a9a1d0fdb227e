"""A method that edgeq does not know comes in by one function and one entry: those that the guide shows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_models as small
import trained_model

from edgeq.cli.app import run
from edgeq.errors import UnsupportedError
from edgeq.methods import METHODS
from edgeq.methods.method import Change, Seen, Wanted
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.numerics import Scheme
from edgeq.numerics.weights import QuantizedWeight

GUIDE = Path(__file__).parents[2] / "docs" / "methods.md"
SCHEMES = [Scheme("int8", "symmetric", g, n) for g in ("channel", "tensor") for n in (True, False)]


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    assert len(code.splitlines()) <= 60
    monkeypatch.setitem(METHODS, "carry", METHODS["nearest"])  # taken out again after the test
    exec(code, {})


def wanted(scheme: Scheme, axis: int = 0) -> Wanted:
    weight = np.random.default_rng(0).normal(size=(6, 4, 3, 3)).astype(np.float32)
    return Wanted("layer", weight, np.zeros(weight.shape[axis], np.float32), scheme, axis, None)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_errors_of_a_channel_add_up_to_no_more_than_a_step(scheme: Scheme, axis: int) -> None:
    one = wanted(scheme, axis)
    change: Change = METHODS["carry"](None, [one], None)  # type: ignore[arg-type]
    found = change.weights["layer"]
    errors = np.moveaxis(found.real - one.weight, axis, 0)
    scale = found.q.scale.reshape(-1, 1)
    sums = np.cumsum(errors.reshape(len(errors), -1), axis=1)
    assert np.all(np.abs(sums) <= 1.51 * scale), "but for one step that is cut off at an end of the range"
    assert np.all(np.abs(errors.reshape(len(errors), -1)) <= 1.01 * scale)


def test_a_method_comes_in_by_a_function_and_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "cache"))
    files = trained_model.make(tmp_path)
    data = ["--calib", str(files / "calib.npz"), "--eval", str(files / "eval.npz"), "--allow-slower", "--quiet"]
    (command,) = re.findall(r"```bash\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    chosen = command.split()[-2:]
    hashes = {}
    for name, more in (("nearest", ["--effort", "fast"]), ("carry", chosen)):
        out = tmp_path / name
        common = ["deploy", str(files / "model.pt2"), "--target", "x86-avx512", "--format", "onnx", "--out", str(out)]
        assert run([*common, *data, *more]) == 0
        plan = json.loads((out / "plan.json").read_text())
        weights = [layer["weight"] for layer in plan["layers"] if layer["weight"]]
        assert {weight["method"] for weight in weights} == {name}
        hashes[name] = [weight["sha256"] for weight in weights]
    assert all(a != b for a, b in zip(hashes["nearest"], hashes["carry"], strict=True))
    again = tmp_path / "again"
    plan_of = ["--plan", str(tmp_path / "carry" / "plan.json"), "--out", str(again)]
    assert run(["deploy", str(files / "model.pt2"), *data, *plan_of]) == 0
    assert [
        layer["weight"]["sha256"]
        for layer in json.loads((again / "plan.json").read_text())["layers"]
        if layer["weight"]
    ] == hashes["carry"]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda w: None, "no weights"),
        (lambda w: QuantizedWeight(w.integers[:1], w.q), "weights of the shape"),
        (lambda w: QuantizedWeight(w.integers.astype(np.float32), w.q), "no integers from -127 to 127"),
        (lambda w: QuantizedWeight(np.full_like(w.integers, -128), w.q), "no integers from -127 to 127"),
        (lambda w: QuantizedWeight(w.integers, replace(w.q, scale=0 * w.q.scale)), "not finite and positive"),
        (lambda w: QuantizedWeight(w.integers, replace(w.q, scale=np.nan * w.q.scale)), "not finite and positive"),
        (lambda w: QuantizedWeight(w.integers, replace(w.q, scale=w.q.scale[:1])), "1 scales"),
        (lambda w: QuantizedWeight(w.integers, replace(w.q, zero_point=w.q.zero_point + 1)), "other zero points"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_with_the_method_and_the_layer(
    spoil: Callable[[QuantizedWeight], QuantizedWeight | None], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
        weights = METHODS["nearest"](model, wanted, seen).weights
        return Change({name: w for name, one in weights.items() if (w := spoil(one)) is not None})

    monkeypatch.setitem(METHODS, "broken", broken)
    model = small.model("residual")
    by, methods = small.runtime("litert"), dict.fromkeys((group.name for group in model.groups), "broken")
    with pytest.raises(UnsupportedError, match=told) as error:
        quantize_model(model, by, small.calibration("residual"), methods=methods)
    assert "'broken'" in error.value.cause and error.value.where.startswith("layer ")


def test_a_name_that_is_none_is_told_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["deploy", "model.pt2", "--target", "x86-avx512", "--calib", "x.npz", "--out", str(tmp_path / "b")]
    assert run([*words, "--method", "best"]) == 2
    assert "nearest" in capsys.readouterr().err
