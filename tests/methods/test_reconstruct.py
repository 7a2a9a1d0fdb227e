"""Block reconstruction: nearer to the float model than rounding to nearest, and undone where it is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
import torch
import trained_model

import edgeq
from edgeq.lowering.choices import ladder, uniform, with_preferred
from edgeq.methods import DISTIL, METHODS, RECONSTRUCT
from edgeq.methods.effort import EFFORTS, Effort
from edgeq.methods.kept import content_of
from edgeq.methods.method import Change, Seen, Wanted
from edgeq.methods.nearest import nearest
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.numerics.weights import BIAS_HEADROOM
from edgeq.plans.plan import LayerPlan, Plan, read_plan
from edgeq.quantization.quantized import Quantized
from edgeq.quantization.simulate import sqnr_of
from edgeq.registry.load import load_target
from edgeq.registry.schema import Runtime

CPU = small_models.runtime("onnxruntime")


def rounded(name: str, choice: str, method: str, steps: int = 60, by: Runtime = CPU) -> Quantized:
    net, seen = small_models.model(name), small_models.calibration(name)
    inputs = small_models.arrays(name, 128, seed=5)
    choices = uniform(ladder(net, by, seen.histograms), choice)
    methods = {group.name: method for group in net.groups}
    return quantize_model(net, by, seen, choices=choices, methods=methods, inputs=inputs, steps=steps)


NAMES = ["residual", "grouped", "conv1d", "two-inputs", "two-outputs", "mlp", "residual-batch-1"]


def test_outputs_come_nearer_on_samples_that_were_not_learned_from() -> None:
    gains = []
    for name in NAMES:
        held, net = small_models.arrays(name, 32, seed=77), small_models.model(name)
        old, new = (sqnr_of(net, rounded(name, "w4a8", by), held) for by in ("nearest", RECONSTRUCT))
        gains.append(new - old)
    assert np.mean(gains) > 1
    assert min(gains) > -2, "of networks of random weights that are given noise"


@pytest.mark.parametrize("choice", ["w8a8", "w4a8"])
def test_integers_stay_near_the_weights_and_biases_fit(choice: str) -> None:
    net = small_models.model("residual")
    before, after = (rounded("residual", choice, by) for by in ("nearest", RECONSTRUCT))
    groups = {group.name: group for group in net.groups}
    for name, weight in after.weights.items():
        scale, _ = before.weights[name].q.shaped(weight.integers.ndim)
        steps = net.state[groups[name].weight or ""] / scale
        far = np.abs(weight.integers - steps)
        assert far.max() <= 1.5 + 1e-3
        fits = np.abs(after.biases[name]) / (after.input_scale(groups[name]) * weight.q.scale)
        assert fits.max() <= 2 * BIAS_HEADROOM


def test_the_same_comes_of_any_number_of_threads() -> None:
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(rounded("residual", "w4a8", RECONSTRUCT, steps=10))
    torch.set_num_threads(1)
    first, second = found
    for name, weight in first.weights.items():
        assert np.array_equal(weight.integers, second.weights[name].integers)
        assert np.array_equal(first.biases[name], second.biases[name])


def test_layers_that_are_not_wanted_stay_as_they_are() -> None:
    net, seen = small_models.model("residual"), small_models.calibration("residual")
    plain = quantize_model(net, CPU, seen)
    one = next(iter(plain.weights))
    found = quantize_model(
        net, CPU, seen, methods={one: RECONSTRUCT}, inputs=small_models.arrays("residual", 16), steps=5
    )
    assert found.methods == {name: RECONSTRUCT if name == one else "nearest" for name in plain.weights}
    for name, weight in plain.weights.items():
        assert name == one or np.array_equal(weight.integers, found.weights[name].integers)


def hashes(plan: Plan) -> list[str]:
    return [layer.weight.sha256 for layer in plan.layers if layer.weight]


def by(layer: LayerPlan, method: str) -> LayerPlan:
    weight = layer.weight
    return (
        layer if weight is None else layer.model_copy(update={"weight": weight.model_copy(update={"method": method})})
    )


def build(folder: Path, out: str, **how: Any) -> Plan:
    files = trained_model.make(folder)
    common = {"target": "x86-avx512", "format": "onnx", "calibration": files / "calib.npz"}
    edgeq.deploy(files / "model.pt2", **{**common, **how}, out=folder / out)
    return read_plan(folder / out / "plan.json")


def test_a_plan_says_by_which_methods_and_is_followed(tmp_path: Path) -> None:
    first = build(tmp_path, "first", effort="fast")
    assert set(first.methods.values()) == {"nearest"}
    four = [
        one.model_copy(update={"choice": "w4a8"}) if one.choice == "w8a8" and one.weight else one
        for one in first.layers
    ]
    edited = first.model_copy(update={"layers": four})
    nearest = build(tmp_path, "nearest", plan=edited)
    learned = build(tmp_path, "learned", plan=edited, effort="balanced")
    assert set(nearest.methods.values()) == {"nearest"}
    assert set(learned.methods.values()) <= {"gptq", RECONSTRUCT, DISTIL}
    together = build(
        tmp_path, "together", plan=edited.model_copy(update={"layers": [by(one, RECONSTRUCT) for one in four]})
    )
    assert set(together.methods.values()) == {RECONSTRUCT}
    assert hashes(together) != hashes(nearest)
    for plan in (learned, together):
        assert hashes(build(tmp_path, "again", plan=plan, overwrite=True)) == hashes(plan)
    report = json.loads((tmp_path / "learned" / "report.json").read_text(encoding="utf-8"))
    assert any(text.startswith("reconstruct") and "not seen" in text for text in report["warnings"])


def coarse(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    """Rounds to every fourth integer."""
    found = nearest(model, wanted, seen).weights
    return Change({name: replace(one, integers=(one.integers / 4).astype(np.int8) * 4) for name, one in found.items()})


def test_what_held_out_samples_speak_against_is_undone_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "coarse", coarse)
    monkeypatch.setitem(EFFORTS, "balanced", Effort("nearest", ("coarse",), 1, ()))
    plan = build(tmp_path, "out", effort="balanced")
    assert set(plan.methods.values()) == {"nearest"}
    warnings = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["warnings"]
    assert any(text.startswith("coarse was undone: ") for text in warnings)
    assert hashes(plan) == hashes(build(tmp_path, "fast", effort="fast"))


def test_what_is_kept_hangs_on_the_kernels_that_layers_have_and_on_no_others() -> None:
    (every,) = load_target("mcu-cortex-m").runtimes
    found = {
        (choice, len(runtime.kernels)): content_of(rounded("residual", choice, "nearest", by=runtime))
        for runtime in (every, with_preferred(every))
        for choice in ("w8a8", "float32")
    }
    assert len(found) == 4, "one of the runtimes has more kernels"
    eight, none = ({hashed for (of, _), hashed in found.items() if of == choice} for choice in ("w8a8", "float32"))
    assert len(eight) == len(none) == 1 and eight != none


class Answer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).argmax(1)


@pytest.mark.parametrize(
    ("network", "samples", "says"), [(Answer, 32, "no real numbers"), (lambda: torch.nn.Linear(6, 4), 15, "too few")]
)
def test_what_could_not_be_judged_is_not_learned_and_the_report_says_so(
    tmp_path: Path, network: Callable[[], torch.nn.Module], samples: int, says: str
) -> None:
    program = torch.export.export(network(), (torch.ones(2, 6),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "model.pt2")
    np.save(tmp_path / "calib.npy", np.random.default_rng(0).normal(size=(samples, 6)).astype(np.float32))
    how = {"calibration": tmp_path / "calib.npy", "target": "x86-avx512", "format": "onnx"}
    report = edgeq.deploy(tmp_path / "model.pt2", out=tmp_path / "out", **how)  # type: ignore[arg-type]
    assert [text for text in report.warnings if text.startswith("nothing is learned") and says in text]
    assert set(read_plan(tmp_path / "out" / "plan.json").methods.values()) == {"nearest"}


def test_a_method_that_was_changed_is_not_answered_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "cache"))
    found = []
    for number, method in enumerate((lambda *given: nearest(*given), coarse)):  # both of this module
        monkeypatch.setitem(METHODS, "own", method)
        found.append(hashes(build(tmp_path, str(number), method="own")))
    assert all(one != other for one, other in zip(*found, strict=True))
