"""Histograms, range estimators and expected output movement, each against the data themselves."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import small_models as small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeq.calibration.calibrate import calibrate
from edgeq.calibration.estimators import (
    ESTIMATORS,
    choose,
    entropy,
    expected_error,
    min_max,
    mse,
    percentile,
    sample_extremes,
)
from edgeq.calibration.gradients import measure_impact
from edgeq.calibration.histogram import HALF, SAMPLES, Histogram
from edgeq.calibration.kept import pack_calibration, unpack_calibration
from edgeq.calibration.patches import mean_patch
from edgeq.errors import UnsupportedError
from edgeq.frontends.load import load
from edgeq.lowering.assign import is_masked
from edgeq.methods.bias_correction import bias_shift
from edgeq.model.batches import batches
from edgeq.model.graph import Node
from edgeq.model.model import Model
from edgeq.model.ops import WEIGHTED, channel_axis_of_output, op_class
from edgeq.numerics import QParams, Scheme, dequantize, qparams, quantize
from edgeq.numerics.fake import fake_quantize

UINT8 = Scheme("uint8")
values = st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=40)


def of(*parts: torch.Tensor) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def normal(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def same(a: Histogram, b: Histogram) -> bool:
    return a.exponent == b.exponent and np.array_equal(a.counts, b.counts) and (a.low, a.high) == (b.low, b.high)


@given(values)
def test_counts_are_those_of_the_values(data: list[float]) -> None:
    histogram = of(torch.tensor(data).reshape(-1, 1))
    edges = np.arange(-HALF, HALF + 1, dtype=np.float64) * histogram.width
    expected, _ = np.histogram(np.array(data, np.float32).astype(np.float64), edges)
    assert histogram.counts.sum() == len(data)
    assert np.array_equal(histogram.counts, expected)


@given(values)
def test_extremes_and_sample_extremes_are_true(data: list[float]) -> None:
    x = torch.tensor([data, data[::-1]]) * torch.tensor([[1.0], [0.5]])
    histogram = of(x[:1], x[1:])
    assert histogram.low == float(x.min()) and histogram.high == float(x.max())
    assert histogram.sample_low == pytest.approx(float(x.double().amin(1).mean()), rel=1e-6)
    assert histogram.sample_high == pytest.approx(float(x.double().amax(1).mean()), rel=1e-6)
    assert histogram.samples == 2


@given(st.lists(values, min_size=1, max_size=5))
def test_growing_in_any_order_is_building_at_once(parts: list[list[float]]) -> None:
    tensors = [torch.tensor(p).reshape(-1, 1) for p in parts]
    assert same(of(torch.cat(tensors)), of(*tensors))
    assert same(of(*tensors), of(*reversed(tensors)))


@given(values, values)
def test_a_union_is_a_concatenation(a: list[float], b: list[float]) -> None:
    x, y = torch.tensor(a).reshape(-1, 1), torch.tensor(b).reshape(-1, 1)
    left, right = of(x), of(y)
    before = left.counts.copy()
    assert same(left.union(right), of(torch.cat([x, y])))
    assert same(left.union(right), right.union(left))
    assert np.array_equal(left.counts, before)


def test_large_tensors_are_thinned_and_keep_their_extremes() -> None:
    x = normal(16 * SAMPLES).reshape(4, -1)
    x[2, 12345], x[1, 7] = 40.0, -30.0
    histogram = of(x)
    assert (histogram.low, histogram.high) == (-30.0, 40.0)
    assert 4 * SAMPLES / 2 <= int(histogram.counts.sum()) <= 4 * SAMPLES
    share = histogram.counts[:HALF].sum() / histogram.counts.sum()
    assert float(share) == pytest.approx(0.5, abs=0.02)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        of(torch.tensor([[0.0, float("nan")]]))


@given(values)
def test_infinite_values_are_left_out_and_told(data: list[float]) -> None:
    column = torch.tensor(data).reshape(1, -1)
    ends = torch.tensor([[-torch.inf, torch.inf]])
    histogram, finite = of(torch.cat([column, ends], 1)), of(column)
    assert histogram.endless and not finite.endless
    assert same(histogram, finite)
    assert (histogram.sample_low, histogram.sample_high) == (finite.sample_low, finite.sample_high)
    finite.include(histogram)
    assert finite.endless and is_masked(finite) and is_masked(of(column).union(histogram))


@pytest.mark.parametrize("nothing", [torch.full((2, 3), -torch.inf), torch.zeros(2, 0), torch.zeros(0, 3)])
def test_samples_without_finite_values_count_as_zero(nothing: torch.Tensor) -> None:
    histogram = of(nothing)
    assert (histogram.low, histogram.high, histogram.sample_low) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("data", [[0.0, 0.0], [5.0, 5.0], [-5.0, -5.0], [-3.0, -1.0, -2.0], [1e-30], [1e30, 1.0]])
def test_every_estimator_stands_every_tensor(name: str, data: list[float]) -> None:
    histogram = of(torch.tensor(data).reshape(1, -1))
    low, high = ESTIMATORS[name](histogram, UINT8)
    assert low <= high
    assert histogram.low <= low or low <= 0.0
    qparams(low, high, UINT8)


def test_min_max_is_exact() -> None:
    x = normal(1000)
    assert min_max(of(x.reshape(10, -1)), UINT8) == (float(x.min()), float(x.max()))


def test_sample_extremes_do_not_follow_one_outlier() -> None:
    x = torch.ones(10, 4)
    x[3, 1] = 101.0
    low, high = sample_extremes(of(x), UINT8)
    assert (low, high) == (1.0, pytest.approx(11.0))


@pytest.mark.parametrize("shape", [lambda x: x, lambda x: x.relu(), lambda x: -x.abs(), lambda x: x.exp()])
def test_percentile_is_that_of_numpy(shape: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = shape(normal(10 * SAMPLES))
    histogram = of(*x.reshape(10, 1, -1))
    low, high = percentile(histogram, UINT8)
    data = x.double().numpy()
    for found, place in ((low, 0.000005), (high, 0.999995)):
        below, above = (np.quantile(data, place, method=m) for m in ("lower", "higher"))
        assert below - 2 * histogram.width <= found <= above + 2 * histogram.width


DATA = {
    "normal": normal(20000),
    "relu": normal(20000).relu(),
    "heavy": normal(20000) ** 3,
    "outlier": torch.cat([normal(19999), torch.tensor([60.0])]),
    "negative": -normal(20000).abs() - 1,
}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("dtype", ["uint4", "uint8", "int8"])
def test_least_squared_error_is_no_worse_than_the_extremes(name: str, dtype: str) -> None:
    histogram, scheme = of(DATA[name].reshape(10, -1)), Scheme(dtype)
    assert expected_error(histogram, mse(histogram, scheme), scheme) <= expected_error(
        histogram, min_max(histogram, scheme), scheme
    )


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("share", [1.0, 0.5, 0.2])
def test_expected_error_is_the_error_on_the_data(name: str, share: float) -> None:
    x = DATA[name]
    bounds = (float(x.min()) * share, float(x.max()) * share)
    q = qparams(bounds[0], bounds[1], UINT8)
    real = float(np.square(dequantize(quantize(x.numpy(), q), q) - x.numpy(), dtype=np.float64).mean())
    # of heavy tails most values lie within the step around zero, where rounding costs less than step^2 / 12
    tolerance = 0.5 if name == "heavy" else 0.1
    assert expected_error(of(x.reshape(10, -1)), bounds, UINT8) == pytest.approx(real, rel=tolerance)


def test_entropy_cuts_outliers_and_keeps_the_bulk() -> None:
    low, high = entropy(of(DATA["outlier"].reshape(10, -1)), UINT8)
    assert 3.0 < high < 30.0 and low < -3.0
    uniform = torch.linspace(-1, 1, 20000)
    low, high = entropy(of(uniform.reshape(1, -1)), UINT8)
    assert low <= -0.9 and high >= 0.9


def test_inputs_and_outputs_keep_their_extremes() -> None:
    histogram = of(DATA["outlier"].reshape(10, -1))
    assert choose(histogram, UINT8, boundary=True, damage=lambda q: float(q.scale)) == (
        "min-max",
        min_max(histogram, UINT8),
    )


def test_without_gradients_the_least_squared_error_decides() -> None:
    histogram = of(DATA["heavy"].reshape(10, -1))
    assert choose(histogram, UINT8, boundary=False, damage=None) == ("mse", mse(histogram, UINT8))


def test_the_range_that_moves_the_outputs_least_wins() -> None:
    histogram = of(DATA["heavy"].reshape(10, -1))
    full = min_max(histogram, UINT8)
    widest = choose(histogram, UINT8, boundary=False, damage=lambda q: -float(q.scale))
    narrowest = choose(histogram, UINT8, boundary=False, damage=lambda q: float(q.scale))
    assert widest[1] == pytest.approx(full)
    assert narrowest[1][1] <= 0.1 * full[1]
    wanted = qparams(full[0] / 2, full[1] / 2, UINT8).scale
    _, found = choose(histogram, UINT8, boundary=False, damage=lambda q: abs(float(q.scale - wanted)))
    assert found[1] == pytest.approx(full[1] / 2, rel=0.15)


def test_calibration_sees_every_float_tensor_and_what_the_weights_meet() -> None:
    model, data = small.model("residual"), small.arrays("residual", 20)
    seen = calibrate(model, data)
    assert seen.samples == 20
    found: dict[str, torch.Tensor] = {}

    def keep(node: Node, values: list[torch.Tensor]) -> list[torch.Tensor]:
        found[node.name] = values[0]
        return values

    model.run([[torch.from_numpy(data["image"])]], keep)
    assert set(seen.histograms) == set(found)
    for name, value in found.items():
        assert seen.histograms[name].low == pytest.approx(float(value.min()), rel=1e-4, abs=1e-6)
        assert seen.histograms[name].high == pytest.approx(float(value.max()), rel=1e-4, abs=1e-6)
    for group in model.groups:
        if group.weight:
            outputs = found[group.root].numpy()
            axis = channel_axis_of_output(group.op) % outputs.ndim
            expected = outputs.mean(axis=tuple(d for d in range(outputs.ndim) if d != axis))
            weight, bias = (model.state[name or ""] for name in (group.weight, group.bias))
            means = bias_shift(group.op, weight, seen.mean_patches[group.root]) + bias
            np.testing.assert_allclose(means, expected, atol=1e-5)


def test_samples_one_by_one_where_the_graph_takes_no_more() -> None:
    class Mixes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.mean(0, keepdim=True)

    model = load(Mixes(), example=(torch.randn(2, 3),))
    assert [len(batch[0]) for batch in batches(model, {"x": np.zeros((5, 3), np.float32)})] == [1] * 5
    fixed = small.model("residual-batch-1")
    assert [len(b[0]) for b in batches(fixed, small.arrays("residual-batch-1", 5), 4)] == [1] * 5
    free = small.model("residual")
    assert [len(b[0]) for b in batches(free, small.arrays("residual", 5), 4)] == [4, 1]


@pytest.mark.parametrize("value, what", [(-5.0, "NaN"), (-1.0, "infinity")])
def test_values_that_are_not_finite_name_their_layer(value: float, what: str) -> None:
    class Log(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.log(x + 1) * 2

    model = load(Log(), example=(torch.zeros(2, 3),))
    with pytest.raises(UnsupportedError, match=what) as caught:
        calibrate(model, {"x": np.full((4, 3), value, np.float32)})
    assert "log" in str(caught.value.where)


class Masked(nn.Module):
    """Scores of which a mask takes some away."""

    def __init__(self, end: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.scores, self.end = nn.Linear(4, 4), end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.scores(x).masked_fill(x > 0, -torch.inf))


MASKED = {"x": np.array([[-1, 2, 3, -4], [5, -6, -7, 8]], np.float32)}


def test_a_mask_inside_the_network_is_legal() -> None:
    model = load(Masked(lambda x: (x * 2).softmax(-1)), example=(torch.zeros(2, 4),))
    histograms = calibrate(model, MASKED).histograms
    assert ["masked" in name or "mul" in name for name, seen in histograms.items() if seen.endless] == [True, True]
    with torch.no_grad():
        (answer,) = model.run([[torch.from_numpy(MASKED["x"])]])[0]
    assert histograms["softmax"].high == pytest.approx(float(answer.max()), rel=1e-5)


@pytest.mark.parametrize("end", [lambda x: x * 2, nn.Linear(4, 2)])
def test_a_mask_that_nothing_takes_away_names_its_layer(end: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model = load(Masked(end), example=(torch.zeros(2, 4),))
    with pytest.raises(UnsupportedError, match="infinity") as caught:
        calibrate(model, MASKED)
    assert "masked_fill" in str(caught.value.where)


class Unread(nn.Module):
    """Channel 0 carries large values that the head does not read; all others matter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.first(x)))


def unread() -> tuple[Model, small.Arrays]:
    torch.manual_seed(0)
    net = Unread().eval()
    with torch.no_grad():
        net.first.weight[0] *= 50
        net.head.weight[:, 0] = 0
    data = {"x": np.random.default_rng(0).standard_normal((32, 12)).astype(np.float32)}
    return load(net, example=(torch.zeros(2, 12),)), data


def measured(model: Model, data: small.Arrays, name: str, q: QParams) -> float:
    """Squared movement of the outputs in units of their power, when one tensor is quantized."""
    batch = [torch.from_numpy(column) for column in data.values()]

    def rounded(node: Node, values: list[torch.Tensor]) -> list[torch.Tensor]:
        return [fake_quantize(v, q) for v in values] if node.name == name else values

    before, after = model.run([batch])[0], model.run([batch], rounded)[0]
    parts = [
        (b - a).flatten(1).square().sum(1) / a.flatten(1).square().sum(1) for a, b in zip(before, after, strict=True)
    ]
    return float(torch.stack(parts).sum(0).mean())


@pytest.mark.parametrize("name", ["residual", "concat", "two-inputs", "two-outputs", "token-mlp", "upsample"])
def test_impact_predicts_how_far_the_outputs_move(name: str) -> None:
    model, data = small.model(name), small.arrays(name, 32)
    seen = small.calibration(name)
    tensors = [n for n in seen.histograms if n not in model.output_nodes]
    impact = measure_impact(model, data, seen.histograms, tensors)
    ratios = []
    for tensor, dtype in itertools.product(tensors, ["uint4", "uint8"]):
        assert impact.knows([tensor])
        low, high = min_max(seen.histograms[tensor], UINT8)
        q = qparams(low, high, Scheme(dtype))
        ratios.append(impact.of([tensor], q) / measured(model, data, tensor, q))
    assert min(ratios) > 0.3 and max(ratios) < 3.0
    assert 0.7 < float(np.median(ratios)) < 1.4


def test_impact_tells_a_harmful_clip_from_a_harmless_one() -> None:
    model, data = unread()
    seen = calibrate(model, data)
    (tensor,) = [g.output for g in model.groups if g.activation_op == "relu"]
    impact = measure_impact(model, data, seen.histograms, [tensor])
    scheme = Scheme("uint4")
    high = seen.histograms[tensor].high

    def damage(share: float) -> float:
        return impact.of([tensor], qparams(0.0, high * share, scheme))

    assert damage(0.05) < 0.1 * damage(1.0)
    assert damage(0.001) > 3 * damage(0.05)
    _, (_, chosen) = choose(seen.histograms[tensor], scheme, boundary=False, damage=lambda q: impact.of([tensor], q))
    assert chosen < 0.3 * high


def test_impact_behind_integer_inputs() -> None:
    model, data = small.model("embedded"), small.arrays("embedded", 16)
    seen = small.calibration("embedded")
    impact = measure_impact(model, data, seen.histograms, [*seen.histograms, "tokens"])
    (embedding,) = [g.output for g in model.groups if g.op == "embedding"]
    low, high = min_max(seen.histograms[embedding], UINT8)
    q = qparams(low, high, Scheme("uint4"))
    assert 0.3 < impact.of([embedding], q) / measured(model, data, embedding, q) < 3.0
    assert not impact.knows(["tokens"])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_impact_of_nothing_is_nothing(seed: int) -> None:
    model, data = small.model("mlp"), small.arrays("mlp", 4, seed)
    seen = small.calibration("mlp")
    impact = measure_impact(model, data, seen.histograms, [])
    assert impact.of([], qparams(-1.0, 1.0, UINT8)) == 0.0


def one_sample(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    result: torch.Tensor = layer(x[0])
    return (result[None],)


def a_number(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    result: torch.Tensor = layer(x)
    return result, result.sum()


def nothing(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    result: torch.Tensor = layer(x[:, None][:, :0])
    return result, x * 2


class Unusual(nn.Module):
    """A layer, used as a function says."""

    def __init__(self, use: Callable[[nn.Module, torch.Tensor], tuple[torch.Tensor, ...]], layer: nn.Module) -> None:
        super().__init__()
        self.use, self.layer = use, layer

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.use(self.layer, x)


@pytest.mark.parametrize(
    "use, layer, shape",
    [
        (one_sample, nn.Linear(6, 4), (6,)),
        (one_sample, nn.Conv1d(3, 4, 3, padding=1), (3, 9)),
        (one_sample, nn.Conv2d(3, 4, 3), (3, 5, 5)),
        (a_number, nn.Linear(6, 4), (6,)),
        (nothing, nn.Linear(6, 4), (6,)),
    ],
)
def test_values_of_unusual_rank_and_size_are_measured(
    use: Callable[[nn.Module, torch.Tensor], tuple[torch.Tensor, ...]], layer: nn.Module, shape: tuple[int, ...]
) -> None:
    x = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    model = load(torch.export.export(Unusual(use, layer).eval(), (x[:1],)))
    seen = calibrate(model, {"x": x.numpy()})
    impact = measure_impact(model, {"x": x.numpy()}, seen.histograms, seen.histograms)
    (group,) = [group for group in model.groups if group.weight]
    assert all(np.isfinite(rows).all() for rows in impact.gradients.values())
    assert "x" in impact.gradients
    if use is nothing:
        assert not seen.mean_patches[group.root].any()
        return
    weight, bias = (model.state[name or ""] for name in (group.weight, group.bias))
    means = bias_shift(group.op, weight, seen.mean_patches[group.root]) + bias
    outputs = layer(x).detach().numpy()
    axis = channel_axis_of_output(group.op) % outputs.ndim
    expected = outputs.mean(axis=tuple(d for d in range(outputs.ndim) if d != axis))
    np.testing.assert_allclose(means, expected, atol=1e-5)


def test_a_network_of_integers_alone_has_nothing_to_keep_but_its_samples() -> None:
    class Integers(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * 3 + 1) % 7

    x = torch.arange(12).reshape(4, 3)
    seen = unpack_calibration(pack_calibration(calibrate(load(Integers(), example=(x,)), {"x": x.numpy()})))
    assert (seen.samples, seen.histograms, seen.mean_patches) == (4, {}, {})


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 6, 5, stride=2, padding=3, dilation=2, groups=2),
        nn.Conv2d(4, 8, (3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
        nn.Conv2d(4, 8, 1, stride=2),
        nn.Conv3d(4, 4, 2, stride=2, padding=1, groups=4),
        nn.ConvTranspose2d(4, 6, (4, 3), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), groups=2),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=2, dilation=2),
        nn.Linear(8, 3),
    ],
)
def test_what_weights_meet_is_the_gradient_of_the_mean_output(layer: nn.Module) -> None:
    layer = layer.double()
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    x = torch.randn(1, 4, *[8] * max(1, weight.dim() - 2), dtype=torch.float64)
    y = layer(x)
    axis = 1 if weight.dim() > 2 else y.dim() - 1
    y.mean(dim=[d for d in range(y.dim()) if d != axis]).sum().backward()
    assert weight.grad is not None
    groups, transposed = getattr(layer, "groups", 1), isinstance(layer, nn.ConvTranspose2d)
    wanted = weight.grad.unflatten(0, (groups, -1)).narrow(1 + transposed, 0, 1)

    model = load(torch.export.export(layer.float(), (x.float(),)))
    node = next(n for n in model.program.nodes if op_class(n) in WEIGHTED)
    np.testing.assert_allclose(mean_patch(node, x.float()), wanted.numpy(), atol=1e-7)
