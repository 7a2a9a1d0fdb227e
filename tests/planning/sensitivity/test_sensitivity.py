"""Predicted damage against the closed form of linear models and against simulation; what a drop allows of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import small_models as small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm, spearmanr
from torch import nn

from edgeq.calibration.calibrate import calibrate
from edgeq.evaluation.accuracy import quick_drop
from edgeq.evaluation.metric import Metric
from edgeq.frontends.load import load
from edgeq.lowering.assign import writes_integers
from edgeq.lowering.choices import ladder, uniform
from edgeq.lowering.form import on_integers
from edgeq.lowering.space import Space
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.model.ops import MOVEMENT
from edgeq.numerics.fake import fake_quantize
from edgeq.planning.costs.size import Sizes
from edgeq.planning.costs.state import state
from edgeq.planning.sensitivity import damages
from edgeq.planning.sensitivity.budget import LARGEST, LINEAR, SLOW_STEPS, SMALLEST, STEPS, allowed_damage, relative
from edgeq.planning.sensitivity.damages import damage, measure_alone, measure_sensitivity
from edgeq.planning.sensitivity.value import Sensitivity, contenders
from edgeq.planning.solver.problem import cost_of
from edgeq.quantization.quantized import Quantized
from edgeq.quantization.simulate import simulate

BY = small.runtime("onnxruntime")
CHOICES = ("w8a8", "w4a8")


class Straight(nn.Module):
    """Nothing but linear layers: the first-order damage is the damage."""

    def __init__(self, *ends: int) -> None:
        super().__init__()
        self.first = nn.Linear(12, 9)
        self.ends = nn.ModuleList(nn.Linear(9, size) for size in ends)

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.first(features)
        return {f"out{i}": end(x) for i, end in enumerate(self.ends)}


def features(count: int, shift: float = 0.0) -> np.ndarray:
    generator = torch.Generator().manual_seed(3)
    return (torch.randn((count, 12), generator=generator) + shift).numpy()


@cache
def straight(*ends: int, shift: float = 0.0) -> tuple[Model, dict[str, Quantized], np.ndarray]:
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = Straight(*ends).eval()
    x = features(damages.SAMPLES + 16, shift)
    model = load(net, example=(torch.from_numpy(x[:2]),))
    return model, alternatives(model, {"features": x}), x


def alternatives(model: Model, data: small.Arrays, correct_bias: bool = True) -> dict[str, Quantized]:
    calibration = calibrate(model, data)
    offered = ladder(model, BY, calibration.histograms)
    return {
        choice: quantize_model(model, BY, calibration, choices=uniform(offered, choice), correct_bias=correct_bias)
        for choice in CHOICES
    }


def movements(model: Model, found: Quantized, x: np.ndarray) -> dict[str, np.ndarray]:
    """By layer and tensor, how its own rounding alone moves the outputs: [N, all outputs], each in units of its
    output's power. Worked out with matrices."""
    state = {n: p.astype(np.float64) for n, p in model.state.items()}
    groups = {g.name: g for g in model.groups}
    ends = [name for name in groups if name != "first"]

    def parameters(name: str, rounded: bool = False) -> tuple[np.ndarray, np.ndarray]:
        if rounded:
            return found.weights[name].real.astype(np.float64), found.biases[name].astype(np.float64)
        return state[groups[name].weight or ""], state[groups[name].bias or ""]

    def apply(name: str, value: np.ndarray, rounded: bool = False) -> np.ndarray:
        weight, bias = parameters(name, rounded)
        return np.asarray(value @ weight.T + bias)

    def rounding(node: str, value: np.ndarray) -> np.ndarray:
        single = torch.from_numpy(value.astype(np.float32))
        return np.asarray((fake_quantize(single, found.activations[node].q) - single).double().numpy())

    def outputs(first: np.ndarray, rounded: str = "") -> list[np.ndarray]:
        return [apply(end, first, end == rounded) for end in ends]

    inside = apply("first", x)
    exact = outputs(inside)
    power = [np.linalg.norm(o, axis=1, keepdims=True) for o in exact]
    moved = {
        "first": outputs(apply("first", x, rounded=True)),
        **{end: outputs(inside, end) for end in ends},
        "features": outputs(apply("first", x + rounding("features", x))),
        groups["first"].output: outputs(inside + rounding(groups["first"].output, inside)),
    }
    return {
        name: np.hstack([(o - e) / p for o, e, p in zip(found_outputs, exact, power, strict=True)])
        for name, found_outputs in moved.items()
    }


def measured(found: Sensitivity, choice: str) -> dict[str, float]:
    tensors = {node: moved for (node, form), moved in found.tensors.items() if form == "a8"}
    return {layer: costs[choice] for layer, costs in found.weights.items()} | tensors


@pytest.mark.parametrize("choice", CHOICES)
def test_for_one_linear_output_the_damage_is_exact(choice: str) -> None:
    """(v u)^2 = u^2 for any sign v: no probe is off."""
    model, given_alternatives, x = straight(1)
    found = measured(measure_sensitivity(model, {"features": x}, given_alternatives), choice)
    expected = movements(model, given_alternatives[choice], x[: damages.SAMPLES])
    assert set(expected) <= set(found)
    for name, moved in expected.items():
        assert found[name] == pytest.approx(float(np.square(moved).mean()), rel=2e-3), name


def test_what_layers_in_float_read_as_it_is_moves_the_outputs_through_the_others_alone() -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 1)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            x = features.cumsum(1)
            return self.layer(x) + x.sum(1, keepdim=True)

    torch.manual_seed(4)
    x = features(damages.SAMPLES + 16)
    model = load(Summed().eval(), example=(torch.from_numpy(x[:2]),))
    given_alternatives = alternatives(model, {"features": x})
    quantized = given_alternatives["w8a8"]
    (name,) = quantized.assignment.also_float
    sums = torch.from_numpy(x[: damages.SAMPLES]).cumsum(1)
    rounding = (fake_quantize(sums, quantized.activations[name].q) - sums).numpy()
    weight = next(model.state[g.weight] for g in model.groups if g.weight)
    (exact,) = model.run([[torch.from_numpy(x[: damages.SAMPLES])]])[0]
    wanted = float(np.square(rounding @ weight.T / exact.numpy()).mean())
    found = measure_sensitivity(model, {"features": x}, given_alternatives)
    assert found.tensors[name, "a8"] == pytest.approx(wanted, rel=2e-3)


@pytest.mark.parametrize("ends", [(6,), (6, 4)])
def test_for_several_linear_outputs_it_is_exact_up_to_the_probes(
    ends: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of random signs, E (v u)^2 = |u|^2 and Var (v u)^2 = 2 (|u|^4 - sum u_i^4). Damages of several outputs add up."""
    probes = 80
    monkeypatch.setattr(damages, "PROBES", probes)
    model, given_alternatives, x = straight(*ends)
    found = measure_sensitivity(model, {"features": x}, given_alternatives)
    for choice in CHOICES:
        for name, moved in movements(model, given_alternatives[choice], x[: damages.SAMPLES]).items():
            square = np.square(moved).sum(1)
            variance = 2 * (np.square(square) - np.power(moved, 4).sum(1))
            deviation = np.sqrt(variance.sum() / probes) / len(moved)
            wanted = float(square.mean())
            assert deviation < 0.1 * wanted
            assert abs(measured(found, choice)[name] - wanted) < 4.5 * deviation + 2e-3 * wanted, (choice, name)


def test_two_runs_are_equal_whatever_the_threads() -> None:
    model, given_alternatives, x = straight(6)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            found.append(measure_sensitivity(model, {"features": x}, given_alternatives))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


def test_samples_beyond_the_first_ones_do_not_count() -> None:
    model, given_alternatives, x = straight(6)
    other = x.copy()
    other[damages.SAMPLES :] *= 100
    assert measure_sensitivity(model, {"features": x}, given_alternatives) == measure_sensitivity(
        model, {"features": other}, given_alternatives
    )


def test_corrected_biases_lower_the_damage() -> None:
    """With inputs around 3, rounded weights move the mean of an output more than they move it about its mean."""
    model, corrected, x = straight(6, shift=3.0)
    plain = alternatives(model, {"features": x}, correct_bias=False)
    found, without = (measure_sensitivity(model, {"features": x}, given) for given in (corrected, plain))
    for choice in CHOICES:
        assert found.weights["first"][choice] < 0.5 * without.weights["first"][choice]
        assert sum(w[choice] for w in found.weights.values()) < sum(w[choice] for w in without.weights.values())
    assert found.tensors == without.tensors


def test_only_layers_that_have_a_choice_are_priced_for_it() -> None:
    model, given_alternatives, x = straight(6)
    found = measure_sensitivity(model, {"features": x}, {"w4a8": given_alternatives["w4a8"]})
    assert {layer: list(costs) for layer, costs in found.weights.items()} == {"first": ["w4a8"], "ends.0": ["w4a8"]}
    assert measure_sensitivity(model, {"features": x}, {"w8a8": given_alternatives["w4a8"]}).weights == {}


@pytest.mark.parametrize("name", ["residual", "depthwise", "layer-twice", "two-outputs"])
def test_predictions_rank_layers_and_tensors_as_simulation_does(name: str) -> None:
    """Each layer's weights, and each tensor, rounded alone on the samples that the prediction saw."""
    model, data = small.model(name), small.arrays(name, damages.SAMPLES, seed=1)
    given_alternatives = alternatives(model, data)
    found = measure_sensitivity(model, data, given_alternatives)
    pairs = [
        (found.weights[layer][choice], simulated(model, quantized, layer, (), data))
        for choice, quantized in given_alternatives.items()
        for layer in quantized.weights
    ]
    pairs += [
        (moved, simulated(model, given_alternatives["w8a8"], "", (node,), data))
        for (node, _), moved in found.tensors.items()
    ]
    assert len(pairs) > 8
    predicted, real = np.array(pairs).T
    assert spearmanr(predicted, real).statistic > 0.9
    assert np.all((predicted > 0.4 * real) & (predicted < 2.5 * real))
    for choice, quantized in given_alternatives.items():
        together = sum(found.tensors.values()) + sum(costs[choice] for costs in found.weights.values())
        batch = [torch.from_numpy(column) for column in data.values()]
        everything = damage(simulate(model, quantized, batch), model.run([batch])[0])
        assert 0.6 < together / everything < 1.7


@pytest.mark.parametrize("name", ["split-shuffle", "pools"])
def test_integers_that_only_move_are_paid_for_once(name: str) -> None:
    """The program's loss of all layers on integers is that of rounding each value once."""
    model, data, by = small.model(name), small.arrays(name, damages.SAMPLES, seed=1), small.runtime("litert")
    calibration = calibrate(model, data)
    offered = ladder(model, by, calibration.histograms)
    names = {c for choices in offered.values() for c in choices if on_integers(c)}
    given_alternatives = {c: quantize_model(model, by, calibration, choices=uniform(offered, c)) for c in names}
    found = measure_sensitivity(model, data, given_alternatives)
    nothing = Sizes({g: dict.fromkeys(choices, 0.0) for g, choices in offered.items()}, 0.0, 0.0)
    problem = state(Space(model, by, offered), found, {}, nothing, {})
    predicted = cost_of(problem, uniform(offered))["loss"]
    batch = [torch.from_numpy(column) for column in data.values()]
    quantized = quantize_model(model, by, calibration, choices=uniform(offered))
    real = damage(simulate(model, quantized, batch), model.run([batch])[0])
    moved = [g for g in model.groups if g.op in MOVEMENT and on_integers(offered[g.name][0])]
    assert moved and all(problem.options[g.name][offered[g.name][0]]["loss"] == 0 for g in moved)
    assert 0.6 < predicted / real < 1.7
    again = sum(found.tensors[g.output, "a8"] for g in moved)
    assert again > 0.05 * real, "it would have been charged"


def simulated(model: Model, quantized: Quantized, layer: str, tensors: Collection[str], data: small.Arrays) -> float:
    """The damage of one layer's weights and of some rounded tensors, nothing else rounded."""
    batch = [torch.from_numpy(column) for column in data.values()]
    chosen = replace(
        quantized,
        activations={n: t for n, t in quantized.activations.items() if n in tensors},
        weights={n: w for n, w in quantized.weights.items() if n == layer},
    )
    return damage(simulate(model, chosen, batch), model.run([batch])[0])


@pytest.mark.parametrize("name", ["residual", "two-outputs", "activations"])
def test_a_layer_measured_alone_is_that_layer_simulated_alone(name: str) -> None:
    """Its weights and what it leaves behind: what the program charges to the layer, and not to a conversion."""
    model, data = small.model(name), small.arrays(name, damages.ALONE_SAMPLES, seed=1)
    given_alternatives = alternatives(model, data)
    kernels = {choice: quantized.assignment.kernels for choice, quantized in given_alternatives.items()}
    wanted = [(g.name, choice) for g in model.groups for choice in CHOICES if g.name in kernels[choice]]
    found = measure_alone(model, data, given_alternatives, wanted)
    assert list(found) == wanted and len(wanted) > 5
    groups = {g.name: g for g in model.groups}
    for layer, choice in wanted:
        group = groups[layer]
        own = {n for n in group.members if n != group.output or writes_integers(model, BY, group)}
        expected = simulated(model, given_alternatives[choice], layer, own, data)
        assert found[layer, choice] == pytest.approx(expected, rel=1e-3), (layer, choice)


def test_few_samples_count_alike() -> None:
    """Six are four and two: each is a sixth of the mean."""
    model, data = small.model("residual"), small.arrays("residual", 6, seed=1)
    given_alternatives = alternatives(model, data)
    found = measure_alone(model, data, given_alternatives, [("inner", "w4a8")])
    inner = next(g for g in model.groups if g.name == "inner")
    expected = simulated(model, given_alternatives["w4a8"], "inner", inner.members, data)
    assert found == {("inner", "w4a8"): pytest.approx(expected, rel=1e-3)}


@given(st.dictionaries(st.tuples(st.text(max_size=3), st.text(max_size=3)), st.floats(0, 1)), st.integers(0, 20))
def test_the_contenders_are_the_worst_of_the_worst_layers_and_a_spread_of_the_rest(
    predicted: dict[tuple[str, str], float], count: int
) -> None:
    found = contenders(predicted, count)
    harmful = {key for key, value in predicted.items() if value > 0}
    assert len(set(found)) == len(found) <= count and set(found) <= harmful
    if len(harmful) <= count:
        assert set(found) == harmful
    worst_of: dict[str, float] = {}
    for name, choice in harmful:
        worst_of[name] = max(worst_of.get(name, 0.0), predicted[name, choice])
    worst = found[: min(count // 2, len(worst_of))]
    # a layer each, at its worst, and no other layer is worse
    assert len({name for name, _ in worst}) == len(worst)
    assert [predicted[key] for key in worst] == sorted(worst_of.values(), reverse=True)[: len(worst)]
    assert all(predicted[key] == worst_of[key[0]] for key in worst)
    others = [predicted[key] for key in harmful if key not in worst]
    if len(harmful) > count > 1:
        # from the next one to the one that does least
        assert {predicted[key] for key in found} >= {max(others)} | ({min(others)} if count > 2 else set())


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31))
def test_damage_is_the_squared_movement_over_the_power_of_each_sample(samples: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    outputs = [rng.normal(size=(samples, size)), rng.normal(size=(samples, 2, size))]
    moved = [o + rng.normal(scale=0.1, size=o.shape) for o in outputs]
    expected = sum(
        np.mean([np.sum((m - o) ** 2) / np.sum(o**2) for m, o in zip(ms, os, strict=True)])
        for ms, os in zip(moved, outputs, strict=True)
    )
    classes = torch.arange(samples)

    def tensors(arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
        return [*map(torch.from_numpy, arrays), classes]

    assert damage(tensors(moved), tensors(outputs)) == pytest.approx(float(expected))
    assert damage(tensors(outputs), tensors(outputs)) == 0


# --- what a drop allows ---------------------------------------------------------------------------

STEP = np.log(LARGEST / SMALLEST) / 2**STEPS
"""How finely the logarithm is searched."""


def two_classes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two classes with margins of all sizes, and the labels, all of them right."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, count)
    outputs = rng.normal(size=(count, 1)) + np.zeros((1, 2))
    outputs[np.arange(count), labels] += rng.uniform(0.2, 3, count)
    return outputs.astype(np.float32), labels


SECOND_OF_16 = norm.ppf((15 - 3 / 8) / (16 + 1 / 4))
"""What the second largest of 16 normal numbers is on average (Blom, 1958): fifteen draws in sixteen are no larger."""


def on_average(outputs: np.ndarray, labels: np.ndarray, limit: float, errors: Sequence[Sequence[np.ndarray]]) -> float:
    """The logarithm of the allowed damage, over many sets of draws: the second largest of one set is known to a third
    of a standard deviation."""
    judged = lambda o: quick_drop([outputs], o, labels, None) or 0.0  # noqa: E731
    found = [allowed_damage([outputs], judged, limit, errors=errors, seed=seed) for seed in range(24)]
    return float(np.log(found).mean())


@pytest.mark.parametrize("limit", [1.0, 2.0, 8.0])
def test_the_allowed_damage_is_that_of_the_analytic_probability(limit: float) -> None:
    """Two scores, m apart, both get noise of variance d p: the lower one wins with Phi(-m / sqrt(2 d p)). The number of
    wrong answers is nearly normal, and fifteen draws in sixteen have to be within the limit."""
    outputs, labels = two_classes(2_000)
    margin = np.abs(outputs[:, 0] - outputs[:, 1]).astype(np.float64)
    power = np.square(outputs.astype(np.float64)).mean(1)

    def drop(found: float) -> float:
        wrong = norm.cdf(-margin / np.sqrt(2 * found * power))
        spread = np.sqrt((wrong * (1 - wrong)).sum()) / len(wrong)
        return float(100 * (wrong.mean() + SECOND_OF_16 * spread))

    exact = brentq(lambda d: drop(d) - limit, 1e-7, 1)
    allowed = on_average(outputs, labels, limit, [])
    assert np.log(exact) - STEP - 0.05 < allowed < np.log(exact) + 0.05


@pytest.mark.parametrize("unkind", [-0.4, 0.0, 0.4, 1.5])
@pytest.mark.parametrize("damage_of_it", [1e-4, 0.05])
def test_half_of_the_errors_are_those_of_an_artefact(unkind: float, damage_of_it: float) -> None:
    """The difference of the two scores gets d p times a normal number of variance 1 and half of the known errors, which
    take from the right class or give to it."""
    outputs, labels = two_classes(2_000)
    power = np.square(outputs.astype(np.float64)).mean(1)
    errors = np.random.default_rng(4).standard_normal(outputs.shape)
    errors[np.arange(len(labels)), labels] -= unkind
    errors *= np.sqrt(damage_of_it / np.square(errors).mean())
    artefact = outputs + errors * np.sqrt(power)[:, None]
    margin = np.abs(outputs[:, 0] - outputs[:, 1]).astype(np.float64)
    taken = (errors[np.arange(len(labels)), 1 - labels] - errors[np.arange(len(labels)), labels]) / np.sqrt(
        damage_of_it
    )

    def drop(found: float) -> float:
        wrong = norm.cdf((np.sqrt(found / 2) * taken - margin / np.sqrt(power)) / np.sqrt(found))
        spread = np.sqrt((wrong * (1 - wrong)).sum()) / len(wrong)
        return float(100 * (wrong.mean() + SECOND_OF_16 * spread))

    exact = brentq(lambda d: drop(d) - 2.0, 1e-7, 1)
    known = [[relative(artefact, outputs)]]
    allowed = on_average(outputs, labels, 2.0, known)
    assert np.log(exact) - STEP - 0.05 < allowed < np.log(exact) + 0.05
    if abs(unkind) > 1:
        assert allowed < np.log(0.7) + on_average(outputs, labels, 2.0, [])
    # of artefacts that miss alike, every mixture is the same
    assert on_average(outputs, labels, 2.0, known * 3) == pytest.approx(allowed, abs=0.05)


def test_errors_that_are_none_or_too_large_to_be_scaled_tell_nothing() -> None:
    outputs, labels = two_classes(500)
    judged = lambda o: quick_drop([outputs], o, labels, None) or 0.0  # noqa: E731
    white = allowed_damage([outputs], judged, 2.0)
    wild = np.random.default_rng(0).standard_normal(outputs.shape).astype(np.float32)
    for size in (0.0, 1.1 * np.sqrt(LINEAR)):
        assert allowed_damage([outputs], judged, 2.0, errors=[[size * wild]]) == white


def test_errors_are_told_in_units_of_each_sample() -> None:
    wanted = np.array([[3.0, -3.0], [0.3, 0.3], [0.0, 0.0]], np.float32)
    found = wanted + np.array([[0.3, 0.0], [0.0, -0.03], [0.0, 1e-6]], np.float32)
    np.testing.assert_allclose(relative(found, wanted)[:2], [[0.1, 0], [0, -0.1]], atol=1e-4)
    assert np.isfinite(relative(found, wanted)).all()
    assert relative(np.arange(3), np.arange(3)).size == 0
    whole = relative(found[:2], wanted[:2]).astype(np.float64)
    assert np.square(whole).mean() == pytest.approx(
        damage([torch.from_numpy(found[:2])], [torch.from_numpy(wanted[:2])]), rel=1e-3
    )


def test_few_samples_allow_less_than_many_of_the_same_kind() -> None:
    """Labels that have nothing to do with the answers: no noise lowers the score on average, and on few samples it does
    every second time."""
    outputs, _ = two_classes(500)
    labels = np.random.default_rng(2).integers(0, 2, 500)
    few, many = (
        allowed_damage([some], lambda o, some=some, of=of: quick_drop([some], o, of, None) or 0.0, 0.5)  # type: ignore[misc]
        for some, of in ((outputs, labels), (np.tile(outputs, (40, 1)), np.tile(labels, 40)))
    )
    assert few < 0.5 * many


def test_for_a_metric_where_lower_is_better_more_of_it_is_a_drop() -> None:
    """Noise of variance d p adds d p to the mean squared error, whatever the outputs."""
    rng = np.random.default_rng(1)
    outputs = rng.normal(size=(400, 50)).astype(np.float32)
    outputs *= 3 / np.sqrt(np.square(outputs).mean(1, keepdims=True))  # power 9 in each sample
    metric = Metric("error", lambda found, labels: np.mean(np.square(np.stack(found) - labels)), False)

    def drop(found: Sequence[np.ndarray]) -> float:
        change = quick_drop([outputs], found, outputs, metric)
        assert change is not None and change >= 0
        return change

    for limit in (0.01, 0.5):
        allowed = allowed_damage([outputs], drop, limit)
        assert limit / 9 * np.exp(-STEP - 0.02) < allowed < limit / 9 * np.exp(0.02)


OUTPUTS, LABELS = two_classes(60)


def top1(found: Sequence[np.ndarray]) -> float:
    return quick_drop([OUTPUTS], found, LABELS, None) or 0.0


@given(st.floats(0, 60), st.floats(0, 60), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_looser_limit_never_allows_less(one: float, other: float, seed: int) -> None:
    low, high = sorted((one, other))
    tight, loose = (allowed_damage([OUTPUTS], top1, limit, seed=seed) for limit in (low, high))
    assert SMALLEST <= tight <= loose <= LARGEST
    assert allowed_damage([OUTPUTS], top1, low, seed=seed) == tight


def test_a_slow_metric_is_asked_rarely_and_the_answer_is_only_coarser() -> None:
    asked: list[float] = []

    def drop(found: Sequence[np.ndarray]) -> float:
        asked.append(damage([torch.from_numpy(found[0])], [torch.from_numpy(OUTPUTS)]))
        return asked[-1]

    for limit in (1e-4, 0.03):
        asked.clear()
        slow = allowed_damage([OUTPUTS], drop, limit, slow=True)
        assert len(asked) == 1 + SLOW_STEPS
        coarse = np.log(LARGEST / SMALLEST) / 2**SLOW_STEPS
        assert limit * np.exp(-coarse - 0.2) < slow < limit * np.exp(0.2)


def test_the_ends_of_the_range() -> None:
    assert allowed_damage([OUTPUTS], lambda outputs: 0.0, 1.0) == LARGEST
    assert allowed_damage([OUTPUTS], lambda outputs: 5.0, 1.0) == pytest.approx(SMALLEST)


@given(st.integers(0, 3), st.floats(0.1, 10), st.integers(0, 2))
@settings(max_examples=20, deadline=None)
def test_the_errors_have_the_damage_that_is_asked_for_and_spare_integers(seed: int, scale: float, known: int) -> None:
    """White ones in equal parts of both outputs; those of artefacts are in the first alone."""
    rng = np.random.default_rng(seed)
    reference = [
        (rng.normal(size=(3, 4000)) * np.array([[1.0], [scale], [100.0]])).astype(np.float32),
        rng.normal(size=(3, 2, 30, 40)).astype(np.float32),
        rng.integers(0, 9, (3, 5)),
    ]
    errors = [[0.1 * rng.normal(size=(3, 4000)), np.zeros((3, 2, 30, 40)), np.zeros(0)] for _ in range(known)]
    seen: list[float] = []

    def drop(found: Sequence[np.ndarray]) -> float:
        assert np.array_equal(found[2], reference[2])
        parts = [[damage([torch.from_numpy(f[i : i + 1])], [torch.from_numpy(r[i : i + 1])]) for i in range(3)]
                 for f, r in zip(found[:2], reference[:2], strict=True)]  # fmt: skip
        assert all(max(part) < 1.25 * min(part) for part in parts)
        assert np.mean(parts[0]) == pytest.approx((3 if known else 1) * np.mean(parts[1]), rel=0.2)
        seen.append(float(np.mean(parts[0]) + np.mean(parts[1])))
        return 0.0 if seen[-1] < 0.01 else 1.0

    allowed = allowed_damage(reference, drop, 0.5, errors=errors, seed=seed)
    assert max(seen) == pytest.approx(LARGEST, rel=0.1)
    assert allowed == pytest.approx(0.01, rel=0.15)


def test_what_is_rounded_in_every_call_counts_with_the_weights() -> None:
    """Of one layer with one output the damage is exact: of its weights and of its input at once, by numpy."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = nn.Sequential(nn.Linear(12, 1)).eval()
    x = features(damages.SAMPLES, 1.0)
    model = load(net, example=(torch.from_numpy(x[:2]),))
    data = {model.inputs[0].name: x}
    (layer,) = (group.name for group in model.groups)
    given_alternatives = {
        choice: quantize_model(model, BY, calibrate(model, data), choices={layer: choice})
        for choice in ("w8", "w8a8dyn")
    }
    found = measure_sensitivity(model, data, given_alternatives).weights[layer]
    alone = measure_alone(model, data, given_alternatives, [(layer, choice) for choice in given_alternatives])
    exact = net(torch.from_numpy(x)).detach().numpy().astype(np.float64)
    low, high = np.minimum(x.min(1, keepdims=True), 0), np.maximum(x.max(1, keepdims=True), 0)
    step = (high - low) / np.float32(255)
    zero = np.round(-low / step)
    inputs = {"w8": x, "w8a8dyn": (np.clip(np.round(x / step) + zero, 0, 255) - zero) * step}
    for choice, planned in given_alternatives.items():
        moved = inputs[choice] @ planned.weights[layer].real.T.astype(np.float64) + planned.biases[layer]
        expected = np.square((moved - exact) / exact).ravel()
        assert alone[layer, choice] == pytest.approx(expected[: damages.ALONE_SAMPLES].mean(), rel=1e-2)
        # to first order: rounded weights meet the input as it is
        assert found[choice] == pytest.approx(expected.mean(), rel=5e-2)
    assert found["w8a8dyn"] > 1.5 * found["w8"]
