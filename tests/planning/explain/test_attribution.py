"""What a plan's loss comes from: causes that are planted are found, and every figure is another run of the plan."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import small_models as small
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from planned_model import folder, job, plan_of, trained, written
from torch import nn

from edgeq.calibration.calibrate import calibrate
from edgeq.calibration.calibration import Calibration
from edgeq.cli.app import run
from edgeq.errors import UsageError
from edgeq.frontends.load import load
from edgeq.lowering.assign import FLOAT
from edgeq.lowering.choices import ladder, uniform
from edgeq.methods.bias_correction import bias_shift
from edgeq.methods.method import Wanted
from edgeq.methods.nearest import quantize_weight
from edgeq.methods.quantize import quantize_model
from edgeq.model import execute
from edgeq.model.model import Model
from edgeq.model.ops import MOVEMENT
from edgeq.numerics import QParams, Scheme, dequantize, qparams, quantize
from edgeq.numerics.weights import QuantizedWeight
from edgeq.planning.explain import counterfactual
from edgeq.planning.explain.attribution import Measured, attribute, measure_causes
from edgeq.planning.explain.causes import Place, observe, places, removals, spread, widening
from edgeq.planning.explain.counterfactual import clipped, copies, difference, exact, run_edits, unclipped
from edgeq.planning.explain.explain import Simulated, explain
from edgeq.planning.sensitivity.damages import damage
from edgeq.planning.sensitivity.edits import Edit, rounded
from edgeq.planning.solver.problem import cost_of
from edgeq.planning.solver.restate import restate
from edgeq.plans.explained import CAUSES
from edgeq.quantization.activations import QuantizedTensor, Ranges, quantize_activations
from edgeq.quantization.quantized import Quantized
from edgeq.quantization.simulate import simulate

BY = small.runtime("onnxruntime")
NETS = [
    "residual",
    "two-outputs",
    "two-inputs",
    "activations",
    "pools",
    "split-shuffle",
    "embedded",
    "residual-batch-1",
]


# --- the runs -------------------------------------------------------------------------------------


def loss_of(model: Model, quantized: Quantized, data: small.Arrays) -> float:
    """By the simulation that everything else uses, one sample at a time."""
    count = len(next(iter(data.values())))
    found = []
    for i in range(count):
        batch = [torch.from_numpy(data[spec.name][i : i + 1]) for spec in model.inputs]
        found.append(damage(simulate(model, quantized, batch), model.run([batch])[0]))
    return float(np.mean(found))


def without(quantized: Quantized, place: Place, copied: Collection[str]) -> Quantized:
    """Nothing of this place is rounded, nor what only passes on its values."""
    return replace(
        quantized,
        activations={n: t for n, t in quantized.activations.items() if n not in {*place.tensors, *copied}},
        weights={n: w for n, w in quantized.weights.items() if n != place.name},
    )


@pytest.mark.parametrize("name", NETS)
def test_a_place_without_any_cause_is_that_place_in_float(name: str) -> None:
    model, data = small.model(name), small.arrays(name, 5)
    quantized = small.quantized(name, BY)
    found = places(model, quantized)
    seen = observe(model, quantized, small.calibration(name), data, found)
    edits = [removals(model, quantized, place, seen)["all"] for place in found]
    plan, *outcomes = run_edits(model, quantized, data, edits)
    assert plan.losses.mean() == pytest.approx(loss_of(model, quantized, data), rel=1e-3)
    for place, outcome in zip(found, outcomes, strict=True):
        expected = loss_of(model, without(quantized, place, copies(model, quantized)), data)
        assert outcome.losses.mean() == pytest.approx(expected, rel=1e-3), place.name
        assert len(outcome.losses) == 5


@pytest.mark.parametrize("name", NETS)
def test_every_rounded_thing_is_in_one_place_and_without_all_of_them_nothing_is_lost(name: str) -> None:
    model, data = small.model(name), small.arrays(name, 3)
    quantized = small.quantized(name, BY)
    found = places(model, quantized)
    tensors = [node for place in found for node in place.tensors]
    assert sorted([*tensors, *copies(model, quantized)]) == sorted(quantized.activations)
    assert {p.name for p in found if p.group} >= set(quantized.weights)
    measured = measure_causes(model, quantized, small.calibration(name), data, found, samples=3)
    assert measured.loss > 0
    assert measured.together.share == pytest.approx(1.0, abs=1e-6)
    for place in found:
        causes = measured.causes[place.name]
        parts = [getattr(causes, cause) for cause in CAUSES]
        assert sum(p.share for p in parts if p) + causes.interaction == pytest.approx(causes.all.share)
        assert (causes.weights is None) == (place.name not in quantized.weights)
        assert (causes.clipping is None) == (not place.tensors)


@pytest.mark.parametrize("name", ["pools", "split-shuffle", "concat", "upsample", "pad-stride"])
def test_rounding_a_copy_again_changes_nothing(name: str) -> None:
    model, data, quantized = small.model(name), small.arrays(name, 3), small.quantized(name, BY)
    copied = copies(model, quantized)
    ops = {g.output: g.op for g in model.groups}
    assert copied and {ops[node] for node in copied} <= MOVEMENT
    batch = [torch.from_numpy(column) for column in data.values()]
    once = replace(quantized, activations={n: t for n, t in quantized.activations.items() if n not in copied})
    for found, expected in zip(simulate(model, once, batch), simulate(model, quantized, batch), strict=True):
        torch.testing.assert_close(found, expected)


def test_what_is_filled_in_is_no_copy() -> None:
    """A padding of 0.3 is rounded where it is made."""

    class Filled(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value, self.first, self.second = value, nn.Conv2d(1, 3, 1), nn.Conv2d(3, 2, 3)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.second(nn.functional.pad(self.first(image), (1, 1, 1, 1), value=self.value))

    image = torch.randn((4, 1, 6, 6), generator=torch.Generator().manual_seed(0))
    for value, expected in ((0.0, True), (0.3, False)):
        model = load(Filled(value).eval(), example=(image[:2],))
        quantized = quantize_model(model, BY, calibrate(model, {model.inputs[0].name: image.numpy()}))
        pad = next(g for g in model.groups if g.op == "pad").output
        assert pad in quantized.activations and (pad in copies(model, quantized)) == expected


def test_many_changes_run_in_parts_and_each_gives_what_it_gives_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = small.model("residual"), small.arrays("residual", 6)
    quantized = small.quantized("residual", BY)
    nodes = list(quantized.activations)
    edits = [Edit({node: exact}) for node in nodes] + [Edit(dict.fromkeys(nodes, exact)), Edit()]
    alone = [run_edits(model, quantized, data, [edit])[1].losses for edit in edits]
    for together in (1, 2, len(edits) - 1, 100):
        monkeypatch.setattr(counterfactual, "TOGETHER", together)
        steps: list[tuple[int, int]] = []
        plan, *found = run_edits(model, quantized, data, edits, Steps(steps))
        assert len(plan.losses) == 6
        for one, expected in zip(found, alone, strict=True):
            np.testing.assert_allclose(one.losses, expected, rtol=1e-4)
        np.testing.assert_allclose(plan.losses, alone[-1], rtol=1e-4)
        assert steps[-1][0] == steps[-1][1] == len(steps)


class Steps:
    def __init__(self, seen: list[tuple[int, int]]) -> None:
        self.seen = seen

    def start(self, stage: str) -> None: ...
    def end(self, stage: str, seconds: float) -> None: ...
    def note(self, text: str) -> None: ...
    def step(self, done: int, total: int) -> None:
        self.seen.append((done, total))


def test_a_change_computes_only_what_lies_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = small.model("residual"), small.arrays("residual", 2)
    quantized = small.quantized("residual", BY)
    called: list[str] = []
    real = execute._call
    monkeypatch.setattr(execute, "_call", lambda node, *rest: called.append(node.name) or real(node, *rest))

    def calls(edits: Sequence[Edit]) -> list[str]:
        called.clear()
        run_edits(model, quantized, data, edits)
        return sorted(called)

    groups = {group.name: group for group in model.groups}
    (weight,) = [n for n in model.nodes[groups["head"].root].all_input_nodes if "weight" in n.name]
    before = calls([])
    after = calls([Edit({}, {weight.name: torch.zeros(6, 8)})] * 5)
    # five runs of the last layer, each with a tensor of its own
    assert after == sorted([*before, *[groups["head"].root] * 1])
    many = calls([Edit({}, {weight.name: torch.full((6, 8), float(i))}) for i in range(5)])
    assert many == sorted([*before, *[groups["head"].root] * 5])


def test_what_turns_one_quantization_into_another() -> None:
    model, data = small.model("split-shuffle"), small.arrays("split-shuffle", 4)
    calibration = small.calibration("split-shuffle")
    offered = ladder(model, BY, calibration.histograms)
    plain = uniform(offered)
    quantized = quantize_model(model, BY, calibration, choices=plain)
    for name, choice in (("branch", "w4a8"), ("branch", FLOAT), ("stem", FLOAT), ("head", "w4a8")):
        other = quantize_model(model, BY, calibration, choices={**plain, name: choice})
        edit = difference(model, quantized, other)
        (_, outcome) = run_edits(model, quantized, data, [edit])
        assert outcome.losses.mean() == pytest.approx(loss_of(model, other, data), rel=1e-3)
        back = difference(model, other, quantized)
        assert edit.constants.keys() == back.constants.keys() and edit.tensors.keys() == back.tensors.keys()
    nothing = difference(model, quantized, quantize_model(model, BY, calibration, choices=plain))
    assert not nothing.tensors and not nothing.constants


@given(st.floats(-20, 5), st.floats(0.01, 20), st.sampled_from(["int8", "uint8", "int4"]), st.integers(0, 2**31 - 1))
@settings(max_examples=60, deadline=None)
def test_clipping_and_rounding_take_turns(low: float, width: float, dtype: str, seed: int) -> None:
    """Cut and rounded is rounded; what is only cut lies in the range; what is only rounded lies within half a step."""
    q = qparams(low, low + width, Scheme(dtype))  # type: ignore[arg-type]
    values = torch.randn(500, generator=torch.Generator().manual_seed(seed)) * 10
    cut, steps = clipped(q)(values), unclipped(q)(values)
    slack = float(q.scale) * 1e-3 + values.abs() * 1e-6  # far out, the steps are those of float32
    assert float(cut.min()) >= q.low and float(cut.max()) <= q.high
    assert bool(((steps - values).abs() <= float(q.scale) / 2 + slack).all())
    torch.testing.assert_close(rounded(q)(cut), rounded(q)(values))
    inside = (values >= q.low) & (values <= q.high)
    torch.testing.assert_close(steps[inside], rounded(q)(values)[inside])
    assert torch.equal(cut[inside], values[inside])


# --- planted causes -------------------------------------------------------------------------------


class Straight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.end = nn.Linear(12, 9), nn.Linear(9, 5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.end(self.first(features))


@cache
def straight(mean: float = 0.7, spread: float = 1.0) -> tuple[Model, Calibration, np.ndarray]:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = Straight().eval()
    x = np.random.default_rng(3).normal(mean, spread, (40, 12)).astype(np.float32)
    model = load(net, example=(torch.from_numpy(x[:2]),))
    return model, calibrate(model, {"features": x}), x


def quantized_with(choices: dict[str, str] | None = None, **more: bool) -> Quantized:
    model, calibration, _ = trained()
    return quantize_model(model, BY, calibration, choices=choices, estimator="min-max", **more)


def causes_of(quantized: Quantized, **options: int) -> Measured:
    model, calibration, data = trained()
    return measure_causes(model, quantized, calibration, data, places(model, quantized), **options)  # type: ignore[arg-type]


def largest(quantized: Quantized) -> tuple[str, str | None]:
    """The place that loses most, and by what."""
    found = causes_of(quantized).causes
    name = max(found, key=lambda n: found[n].all.share)
    return name, found[name].largest


def test_a_range_cut_to_half_is_clipping_and_widening_it_brings_the_loss_back() -> None:
    model, _, data = trained()
    sound = quantized_with()
    node = next(g for g in model.groups if g.name == "stem.0").output
    tensor = sound.activations[node]
    half = qparams(tensor.low / 2, tensor.high / 2, tensor.q.scheme)
    cut = replace(sound, activations={**sound.activations, node: replace(tensor, q=half)})
    found = causes_of(cut)
    stem = found.causes["stem.0"]
    assert largest(cut) == ("stem.0", "clipping")
    assert stem.clipping.share > 0.9 and stem.clipping.beyond_chance
    assert max(abs(p.share) for p in (stem.weights, stem.activations, stem.bias)) < 0.1
    # with the range of the calibration it is the sound model again, to the bit
    spread_out = spread(data, 16)
    assert (1 - stem.widened.share) * found.loss == pytest.approx(loss_of(model, sound, spread_out), rel=1e-3)
    assert stem.saturation.high > 0.001 and stem.saturation.low == 0
    others = [c.saturation for name, c in found.causes.items() if name != "stem.0" and c.saturation]
    assert others and all(s.low == s.high == 0 for s in others)


def test_four_bits_for_the_weights_of_one_layer_are_named() -> None:
    model, calibration, _ = trained()
    offered = ladder(model, BY, calibration.histograms)
    coarse = quantized_with({**uniform(offered), "point": "w4a8"})
    assert largest(coarse) == ("point", "weights")
    found = causes_of(coarse)
    assert (1 - found.causes["point"].weights.share) * found.loss < 2 * causes_of(quantized_with()).loss


def test_one_scale_for_a_tensor_with_an_outlier_is_a_loss_of_weights() -> None:
    model, calibration, _ = trained()
    sound = quantized_with()
    group = next(g for g in model.groups if g.name == "point")
    weight, bias = (model.state[n or ""] for n in (group.weight, group.bias))
    scheme = replace(sound.weights["point"].q.scheme, granularity="tensor")
    # as if another channel of the same tensor were 60 times as large
    coarse = quantize_weight(Wanted("layer", weight, bias, scheme, 0, None))
    q = QParams(scheme, coarse.q.scale * 60, coarse.q.zero_point)
    coarse = QuantizedWeight(quantize(weight, q), q)
    shift = bias_shift(group.op, coarse.real - weight, calibration.mean_patches[group.root])
    planted = replace(
        sound,
        weights={**sound.weights, "point": coarse},
        biases={**sound.biases, "point": bias - shift},
    )
    assert largest(planted) == ("point", "weights")


def shifted(correct: bool) -> Measured:
    """A layer whose inputs hardly vary; its weights are rounded down, all of them."""
    model, calibration, x = straight(3.0, 0.2)
    offered = ladder(model, BY, calibration.histograms)
    sound = quantize_model(model, BY, calibration, choices=uniform(offered, "w4a8"), correct_bias=False)
    group = next(g for g in model.groups if g.name == "first")
    weight = model.state[group.weight or ""]
    q = sound.weights["first"].q
    steps = np.floor(weight / q.shaped(2)[0])
    integers = np.clip(steps, q.scheme.quant_min, q.scheme.quant_max).astype(np.int8)
    rounded_down = QuantizedWeight(integers, q)
    biases = dict(sound.biases)
    if correct:
        error, patch = rounded_down.real - weight, calibration.mean_patches[group.root]
        biases["first"] = biases["first"] - bias_shift(group.op, error, patch)
    planted = replace(sound, weights={**sound.weights, "first": rounded_down}, biases=biases)
    return measure_causes(model, planted, calibration, {"features": x}, places(model, planted))


def test_rounding_to_one_side_is_a_shift_of_the_mean() -> None:
    found = shifted(correct=False)
    planted = found.causes["first"]
    assert planted.largest == "bias" and planted.bias is not None and planted.bias.share > 0.9
    assert max(causes.all.share for causes in found.causes.values()) == planted.all.share
    assert planted.bias_corrected is None
    # the shift pushes values over the end of the range, too
    assert max(abs(p.share) for p in (planted.weights, planted.clipping, planted.activations) if p) < 0.3


def test_what_the_correction_has_brought_back_is_told() -> None:
    left, corrected = shifted(correct=False), shifted(correct=True)
    planted = corrected.causes["first"]
    assert corrected.loss < left.loss / 10 and planted.largest != "bias"
    assert planted.bias is not None and planted.bias_corrected is not None
    # without the correction the plan loses what the other one does
    assert corrected.loss * (1 + planted.bias_corrected.share) == pytest.approx(left.loss, rel=1e-3)
    assert abs(planted.bias.share) < planted.bias_corrected.share / 10


def test_noise_is_not_named_as_a_cause() -> None:
    """One sample tells nothing of chance; and what is as good as exact is never named."""
    single = causes_of(quantized_with(), samples=1)
    assert all(c.largest is None and c.all.error is None for c in single.causes.values())
    assert single.error is None


def test_a_model_that_loses_nothing() -> None:
    model, calibration, data = trained()
    offered = ladder(model, BY, calibration.histograms)
    floats = quantize_model(model, BY, calibration, choices=dict.fromkeys(offered, FLOAT))
    found = measure_causes(model, floats, calibration, data, places(model, floats))
    assert found.loss == 0 and found.causes == {} and found.together.share == 0


# --- against matrices -----------------------------------------------------------------------------


@given(st.floats(0.3, 1.2), st.sampled_from(["w8a8", "w4a8"]), st.booleans())
@settings(max_examples=12, deadline=None)
def test_every_part_is_what_matrices_give(cut: float, choice: str, correct: bool) -> None:
    model, calibration, x = straight()
    offered = ladder(model, BY, calibration.histograms)
    quantized = quantize_model(model, BY, calibration, choices=uniform(offered, choice), correct_bias=correct)
    groups = {g.name: g for g in model.groups}
    node = groups["first"].output
    tensor = quantized.activations[node]
    q = qparams(tensor.low * cut, tensor.high * cut, tensor.q.scheme)
    quantized = replace(quantized, activations={**quantized.activations, node: replace(tensor, q=q)})
    found = measure_causes(model, quantized, calibration, {"features": x}, places(model, quantized), samples=40)

    parameters = {n: p.astype(np.float64) for n, p in model.state.items()}
    exact_w = {n: (parameters[groups[n].weight or ""], parameters[groups[n].bias or ""]) for n in groups}
    used_w = {
        n: (dequantize(w.integers, w.q).astype(np.float64), quantized.biases[n].astype(np.float64))
        for n, w in quantized.weights.items()
    }

    def rounds(v: np.ndarray, q: QParams, round_it: bool = True, cut_it: bool = True) -> np.ndarray:
        scale, zero = float(q.scale), int(q.zero_point)
        steps = v / scale + zero
        # between two steps, the last bits of float32 decide: that is no matter of what a part is
        assume(not round_it or np.abs(steps - np.floor(steps) - 0.5).min() > 1e-4)
        steps = np.round(steps) if round_it else steps
        steps = np.clip(steps, q.scheme.quant_min, q.scheme.quant_max) if cut_it else steps
        return np.asarray((steps - zero) * scale)

    def loss(weight: np.ndarray, bias: np.ndarray, round_it: bool = True, cut_it: bool = True) -> np.ndarray:
        inside = rounds(read @ weight.T + bias, q, round_it, cut_it)
        outputs = inside @ used_w["end"][0].T + used_w["end"][1]
        return np.asarray(np.square(outputs - reference).sum(1) / np.square(reference).sum(1))

    read = rounds(x.astype(np.float64), quantized.activations["features"].q)
    (weight, bias), (rounded_weight, used) = exact_w["first"], used_w["first"]
    reference = (x.astype(np.float64) @ weight.T + bias) @ exact_w["end"][0].T + exact_w["end"][1]
    plan = loss(rounded_weight, used)
    shift = (read @ (rounded_weight - weight).T + used - bias).mean(0)
    expected = {
        "clipping": loss(rounded_weight, used, cut_it=False),
        "activations": loss(rounded_weight, used, round_it=False),
        "weights": loss(weight, bias + shift),
        "bias": loss(rounded_weight, used - shift),
        "all": loss(weight, bias, round_it=False, cut_it=False),
    }
    assert found.loss == pytest.approx(plan.mean(), rel=2e-3)
    for cause, losses in expected.items():
        part = getattr(found.causes["first"], cause)
        assert part.share == pytest.approx((plan - losses).mean() / plan.mean(), abs=4e-3), cause
        error = np.std(plan - losses, ddof=1) / np.sqrt(40) / plan.mean()
        assert part.error == pytest.approx(error, abs=2e-3)
    corrected = found.causes["first"].bias_corrected
    assert (corrected is None) == (not correct)
    if corrected is not None:
        assert corrected.share == pytest.approx((loss(rounded_weight, bias) - plan).mean() / plan.mean(), abs=4e-3)


def test_the_ends_and_the_means_are_counted_over_all_samples() -> None:
    model, calibration, x = straight()
    quantized = quantize_model(model, BY, calibration)
    node = next(g for g in model.groups if g.name == "first").output
    tensor = quantized.activations[node]
    q = qparams(tensor.low / 3, tensor.high / 4, tensor.q.scheme)
    quantized = replace(quantized, activations={**quantized.activations, node: replace(tensor, q=q)})
    seen = observe(model, quantized, calibration, {"features": x}, places(model, quantized))
    values: list[np.ndarray] = []
    means: list[np.ndarray] = []
    for row in torch.from_numpy(x):
        simulate(
            model,
            quantized,
            [row[None]],
            lambda n, v: (values.append(v[0].numpy()) if n.name == node else None) or v,  # type: ignore[func-returns-value]
        )
        means.append(rounded(quantized.activations["features"].q)(row[None]).numpy())
    found = np.stack(values)
    low, high = seen.at_ends[node]
    assert low == pytest.approx(np.isclose(found, q.low).mean()) and low > 0.01
    assert high == pytest.approx(np.isclose(found, q.high).mean()) and high > 0.01
    root = next(g for g in model.groups if g.name == "first").root
    np.testing.assert_allclose(seen.mean_patches[root][0], np.mean(means, 0), atol=1e-6)


@given(st.integers(1, 200), st.integers(1, 60))
def test_samples_are_spread_over_all_of_them(available: int, count: int) -> None:
    (kept,) = spread({"x": np.arange(available)}, count).values()
    assert len(kept) == min(available, count) and len(set(kept.tolist())) == len(kept)
    assert kept[0] == 0 and (count == 1 or kept[-1] == available - 1)
    assert np.ptp(np.diff(kept)) <= 1 if len(kept) > 1 else True


def test_a_widened_range_is_widened_for_all_that_share_it() -> None:
    name = "concat"
    model, calibration = small.model(name), small.calibration(name)
    quantized = small.quantized(name, BY)
    shares: dict[str, list[str]] = {}
    for node, tensor in quantized.activations.items():
        shares.setdefault(tensor.share, []).append(node)
    nodes = max(shares.values(), key=len)
    assert len(nodes) > 1
    cut: dict[str, QuantizedTensor] = {}
    for node in nodes:
        t = quantized.activations[node]
        cut[node] = replace(t, q=qparams(t.low / 2, t.high / 2, t.q.scheme))
    planted = replace(quantized, activations={**quantized.activations, **cut})
    widest = quantize_activations(model, BY, quantized.assignment, calibration, estimator="min-max").tensors
    place = next(p for p in places(model, planted) if set(p.tensors) & set(nodes))
    edit = widening(model, planted, widest, place)
    assert edit is not None and set(edit.tensors) >= set(nodes)
    assert widening(model, replace(quantized, activations=widest), widest, place) is None


# --- a whole plan ---------------------------------------------------------------------------------


def test_a_plan_is_taken_apart() -> None:
    plan = plan_of(point="w4a8")
    found = attribute(job(), plan, most=None)
    model, calibration, data = trained()
    kept = spread(data, found.samples)
    choices = {layer.name: layer.choice for layer in plan.layers}
    of = job()

    ranges: Ranges = {}

    def lost(choices: dict[str, str]) -> float:
        quantized = quantize_model(model, of.runtimes[0], calibration, of.impact, choices=choices, ranges=ranges)
        return loss_of(model, quantized, kept)

    assert found.how == "simulated" and found.samples == 16
    assert found.loss == pytest.approx(lost(choices), rel=1e-3)
    assert found.together.share == pytest.approx(1.0, abs=1e-6)
    assert found.places == len(found.layers)
    assert found.added == pytest.approx(sum(layer.causes.all.share for layer in found.layers))
    assert sum(layer.expected for layer in found.layers) == pytest.approx(1.0)
    names = [layer.name for layer in found.layers]
    assert names[0] == "input image" and names[1:] == [g.name for g in model.groups if g.name in names]
    by_name = {layer.name: layer for layer in found.layers}
    assert by_name["point"].choice == "w4a8" and by_name["point"].causes.largest == "weights"
    seen = 0
    for layer in found.layers:
        for other in layer.instead:
            seen += 1
            expected = lost({**choices, layer.name: other.choice})
            assert (1 - other.recovered.share) * found.loss == pytest.approx(expected, rel=1e-3, abs=1e-9)
    assert seen > 4


def test_the_guiltiest_are_looked_into_first_and_a_pattern_picks_others() -> None:
    plan = plan_of(point="w4a8")
    every = attribute(job(), plan, most=None, samples=2)
    expected = {layer.name: layer.expected for layer in every.layers}
    few = attribute(job(), plan, most=2, samples=2)
    assert {layer.name for layer in few.layers} == set(sorted(expected, key=lambda n: -expected[n])[:2])
    assert "--all" in few.notes[-1] and few.places == every.places
    assert [layer.name for layer in attribute(job(), plan, pattern="*p*t*", samples=2).layers] == [
        name for name in expected if "input" in name or "point" in name or "depthwise" in name
    ]
    with pytest.raises(UsageError, match="matches 'none'"):
        attribute(job(), plan, pattern="none")


def test_a_plan_without_costs_is_ranked_by_a_pass_of_its_own() -> None:
    plan = plan_of(point="w4a8").model_copy(update={"planned": None})
    found = attribute(job(), plan, most=1, samples=4)
    assert [layer.name for layer in found.layers] == ["point"]
    assert found.predicted_loss is None and all(x.latency is None for x in found.lost_fusion)


def test_a_layer_left_in_float_is_told_what_its_conversions_cost() -> None:
    plan = plan_of(point=FLOAT)
    found = attribute(job(), plan, pattern="point", samples=2)
    assert {(x.what, x.latency) for x in found.lost_fusion if x.layer == "point"} == {
        ("dequantize", 3e-6),
        ("quantize", 2e-6),
    }
    assert {x.layer for x in found.lost_fusion} == {"point"}
    fix = next(x for x in found.lost_fusion if x.layer == "point").instead
    own = cost_of(restate(plan), {layer.name: layer.choice for layer in plan.layers})
    fixed = cost_of(restate(plan), {la.name: la.choice if la.name != "point" else "w8a8" for la in plan.layers})
    assert fix is not None and fix.latency == pytest.approx(fixed["latency"] - own["latency"]) and fix.latency < -5e-6
    sound = attribute(job(), plan_of(), pattern="point", samples=2)
    assert not sound.lost_fusion


def test_what_was_simulated_takes_the_place_of_what_was_predicted_unless_it_may_be_chance() -> None:
    plan = plan_of(point="w4a8")
    before = {(c.layer, c.choice): c.loss for layer in explain(plan).layers for c in layer.alternatives}
    sure, unsure, other = ("point", "w8a8"), ("point", FLOAT), ("head", "w4a8")
    simulated = {
        sure: Simulated(-0.125, 0.01),
        unsure: Simulated(before[unsure] / 2, abs(before[unsure])),
        other: Simulated(0.0, before[other] / 10),
    }
    found = explain(plan, simulated=simulated)
    after = {(c.layer, c.choice): c for layer in found.layers for c in layer.alternatives}
    assert (after[sure].loss, after[sure].loss_from) == (-0.125, "simulated")
    assert (after[unsure].loss, after[unsure].loss_from) == (before[unsure], "predicted")
    assert (after[other].loss, after[other].loss_from) == (0.0, "simulated")
    assert all(c.loss_from == "predicted" for key, c in after.items() if key not in simulated)


def test_the_command_line_explains_with_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    path = written(plan_of(point="w4a8"), tmp_path / "plan.json")
    assert run(["explain", str(path), "--model", str(folder() / "model.pt2"), "--samples", "20"]) == 0
    told = capsys.readouterr()
    assert "simulated on 20 samples" in told.out and "point: rounded weights" in told.out
    assert "to gain accuracy" in told.out and "causes (simulated)" in told.err
    table = told.out.split("simulated on")[0].splitlines()
    assert max(map(len, table)) <= 100 and any("point" in line and "w4a8" in line for line in table)
    asked = ["explain", str(path), "--model", str(folder() / "model.pt2"), "--all", "--samples", "3", "--json"]
    assert run(asked) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["attribution"]["schema_version"] == 1 and document["attribution"]["how"] == "simulated"
    assert {layer["name"] for layer in document["layers"]} == {layer.name for layer in plan_of().layers}
    assert run(["explain", str(path), "--json"]) == 0
    assert "attribution" not in json.loads(capsys.readouterr().out)


def test_wrong_use_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, model = plan_of(point="w4a8"), str(folder() / "model.pt2")
    path = written(plan, tmp_path / "plan.json")

    def refused(*arguments: str) -> str:
        assert run(["explain", str(path), *arguments]) == 2
        return capsys.readouterr().err

    assert "give --model" in refused("--samples", "4") and "give --model" in refused("--all")
    assert "no layer" in refused("--layer", "none")
    assert "nothing is rounded" in refused("--layer", "none", "--model", model, "--samples", "2")
    assert "not for arm-neon" in refused("--model", model, "--target", "arm-neon")
    written(plan.model_copy(update={"given": None}), path)
    assert "--calib is missing" in refused("--model", model)
    program = torch.export.export(Straight().eval(), (torch.zeros(2, 12),))
    torch.export.save(program, tmp_path / "other.pt2")
    written(plan, path)
    told = refused("--model", str(tmp_path / "other.pt2"))
    assert "another model" in told and "layers are not the same" in told


def test_a_plan_of_floats_has_nothing_to_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {layer.name.replace(".", "__"): FLOAT for layer in plan_of().layers}
    path = written(plan_of(**names), tmp_path / "plan.json")
    assert run(["explain", str(path), "--model", str(folder() / "model.pt2")]) == 0
    assert "nothing is rounded" in capsys.readouterr().out
