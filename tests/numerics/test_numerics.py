"""Scales and integers against the definition, computed in double precision by numpy."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeq.methods.method import Wanted
from edgeq.methods.nearest import quantize_weight
from edgeq.numerics import QParams, Scheme, dequantize, per_tensor, qparams, quantize, sqnr_db
from edgeq.numerics.dynamic import round_dynamically
from edgeq.numerics.fake import fake_quantize
from edgeq.numerics.quantize import SMALLEST_SCALE
from edgeq.numerics.scheme import DType
from edgeq.numerics.weights import BIAS_HEADROOM, bias_scale, quantize_bias

settings.register_profile("edgeq", deadline=None)
settings.load_profile("edgeq")

LIMIT = 2.0**100
bounds = st.tuples(st.floats(-LIMIT, LIMIT, width=32), st.floats(-LIMIT, LIMIT, width=32)).map(sorted)
schemes = st.builds(
    Scheme,
    dtype=st.sampled_from(["int2", "int4", "uint4", "int8", "uint8", "int16", "uint16"]),
    symmetry=st.sampled_from(["symmetric", "asymmetric"]),
    narrow=st.booleans(),
    power_of_two=st.booleans(),
)


INPUT_SCALE = np.array(1e-3, np.float32)


def floats(*values: float | list[float]) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def make(low: float, high: float, scheme: Scheme) -> QParams:
    return qparams(low, high, scheme)


@given(bounds, schemes)
def test_zero_is_exact_in_every_range(limits: list[float], scheme: Scheme) -> None:
    q = make(*limits, scheme)
    assert scheme.quant_min <= int(q.zero_point) <= scheme.quant_max
    zero = np.zeros(1, np.float32)
    assert dequantize(quantize(zero, q), q).item() == 0.0
    assert fake_quantize(torch.from_numpy(zero), q).item() == 0.0


@given(bounds, schemes)
def test_the_range_is_covered_to_half_a_step(limits: list[float], scheme: Scheme) -> None:
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    q = make(*limits, scheme)
    slack = float(q.scale) * (0.5 if scheme.symmetry == "asymmetric" else 0.0) * 1.01 + 1e-6 * max(-low, high)
    assert q.low <= low + slack
    assert q.high >= high - slack


@given(bounds, schemes, st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_error_is_at_most_half_a_step_inside(limits: list[float], scheme: Scheme, places: list[float]) -> None:
    q = make(*limits, scheme)
    x = np.array([q.low + p * (q.high - q.low) for p in places], np.float32)
    error = np.abs(dequantize(quantize(x, q), q).astype(np.float64) - x).max()
    # the division in float32 may miss a tie by the rounding of large quotients
    assert float(error) <= float(q.scale) * (0.5 + 2.0**-7)


@given(bounds, schemes, st.lists(st.floats(-LIMIT, LIMIT, width=32), min_size=1, max_size=20))
def test_integers_are_the_definition_and_saturate(limits: list[float], scheme: Scheme, values: list[float]) -> None:
    q = make(*limits, scheme)
    integers = quantize(np.array(values, np.float32), q).astype(np.int64)
    quotient = np.array(values, np.float64) / float(q.scale)
    exact = np.clip(np.rint(quotient) + int(q.zero_point), scheme.quant_min, scheme.quant_max)
    near_a_tie = np.abs(np.abs(quotient - np.floor(quotient)) - 0.5) < 1e-5 * np.maximum(1, np.abs(quotient))
    assert np.all((integers == exact) | (near_a_tie & (np.abs(integers - exact) <= 1)))


@given(bounds, schemes, st.lists(st.floats(-2, 2), min_size=1, max_size=20))
def test_fake_quantization_is_the_round_trip_but_for_ties(
    limits: list[float], scheme: Scheme, places: list[float]
) -> None:
    q = make(*limits, scheme)
    reach = max(-q.low, q.high, 1e-6)
    x = np.array([p * reach for p in places], np.float32)
    exact = dequantize(quantize(x, q), q).astype(np.float64)
    fast = fake_quantize(torch.from_numpy(x), q).double().numpy()
    quotient = x.astype(np.float64) / float(q.scale)
    tie = np.abs((quotient - np.floor(quotient)) - 0.5) < 1e-5 * np.maximum(1, np.abs(quotient))
    same = np.abs(exact - fast) <= 1e-6 * np.abs(exact)
    assert np.all(same | (tie & (np.abs(exact - fast) <= 1.01 * float(q.scale))))


@pytest.mark.parametrize(
    ("dtype", "middle"), [("int4", 0), ("int8", 0), ("int16", 0), ("uint8", 128), ("uint16", 32768)]
)
@pytest.mark.parametrize("narrow", [False, True])
def test_symmetric_zero_points_are_fixed(dtype: DType, middle: int, narrow: bool) -> None:
    scheme = Scheme(dtype, "symmetric", narrow=narrow)
    for low, high in [(-1.0, 3.0), (-3.0, 1.0), (-5.0, 0.0)]:
        assert int(make(low, high, scheme).zero_point) == middle
    assert int(make(0.0, 5.0, scheme).zero_point) == (0 if scheme.signed else scheme.quant_min)


def test_narrow_ranges_leave_out_the_lowest_integer() -> None:
    q = make(-1.0, 1.0, Scheme("int8", "symmetric", narrow=True))
    assert quantize(np.array([-9.0, 9.0]), q).tolist() == [-127, 127]
    assert -q.low == q.high == pytest.approx(1.0)
    assert quantize(np.array([-9.0]), make(-1.0, 1.0, Scheme("int8", "symmetric"))).item() == -128


def test_fewer_bits_than_the_type_holds() -> None:
    q = make(-1.0, 1.0, Scheme("int8", "symmetric", bits=7))
    integers = quantize(np.array([-9.0, 9.0]), q)
    assert integers.dtype == np.int8 and integers.tolist() == [-64, 63]


@given(bounds, schemes.filter(lambda s: s.power_of_two))
def test_power_of_two_scales_are_the_next_larger_power(limits: list[float], scheme: Scheme) -> None:
    scale = float(make(*limits, scheme).scale)
    free = float(make(*limits, Scheme(scheme.dtype, scheme.symmetry, narrow=scheme.narrow)).scale)
    mantissa, _ = math.frexp(scale)
    assert mantissa == 0.5
    assert free * (1 - 1e-6) <= scale <= 2 * free * (1 + 1e-6)


def test_a_range_without_width_has_a_scale() -> None:
    q = make(0.0, 0.0, Scheme("uint8"))
    assert float(q.scale) == pytest.approx(SMALLEST_SCALE)
    assert dequantize(quantize(np.zeros(1), q), q).item() == 0.0


@pytest.mark.parametrize(("low", "high"), [(math.nan, 1.0), (0.0, math.nan), (-math.inf, 1.0), (0.0, math.inf)])
def test_ranges_that_are_not_finite_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        make(low, high, Scheme("int8"))


def test_inverted_ranges_are_refused() -> None:
    with pytest.raises(ValueError, match="low <= high"):
        make(1.0, 0.5, Scheme("int8"))
    with pytest.raises(ValueError, match="low <= high"):
        qparams([0.0, 2.0], [1.0, 1.0], Scheme("int8"), 0)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("symmetry", ["symmetric", "asymmetric"])
def test_each_channel_is_quantized_as_if_it_were_alone(axis: int, symmetry: str) -> None:
    x = (np.random.default_rng(0).standard_normal((3, 4, 5)) * np.logspace(-3, 2, 5)).astype(np.float32)
    other = tuple(d for d in range(3) if d != axis)
    scheme = Scheme("int8", symmetry, "channel")
    q = qparams(x.min(other), x.max(other), scheme, axis)
    whole, round_trip = quantize(x, q), dequantize(quantize(x, q), q)
    fast = fake_quantize(torch.from_numpy(x), q).numpy()
    assert np.allclose(round_trip, fast, atol=float(q.scale.max()) * 1.01)
    for channel in range(x.shape[axis]):
        part = x.take(channel, axis)
        alone = qparams(part.min(), part.max(), Scheme("int8", symmetry))
        assert np.array_equal(whole.take(channel, axis), quantize(part, alone))
        assert np.array_equal(round_trip.take(channel, axis), dequantize(quantize(part, alone), alone))


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["int8", "int4", "int2", "int16"]),
    st.sampled_from(["channel", "tensor"]),
)
@settings(max_examples=50)
def test_weights_on_the_grid_come_back(seed: int, dtype: str, granularity: str) -> None:
    scheme = Scheme(dtype, "symmetric", granularity, narrow=True)
    random = np.random.default_rng(seed)
    integers = random.integers(scheme.quant_min, scheme.quant_max + 1, (4, 3, 3, 3))
    integers[:, 0, 0, 0] = scheme.quant_max  # the largest weight of a channel sets its scale
    scales = 2.0 ** random.integers(-12, 0, 4) if granularity == "channel" else np.full(4, 2.0**-5)
    weight = (integers * scales[:, None, None, None]).astype(np.float32)
    found = quantize_weight(Wanted("layer", weight, np.zeros(4, np.float32), scheme, 0, None))
    assert np.array_equal(found.integers, integers)
    assert np.array_equal(found.real, weight)


@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from(["channel", "tensor", "group"]))
@settings(max_examples=50)
def test_four_levels_take_the_scale_with_the_least_squared_error(seed: int, narrow: bool, granularity: str) -> None:
    random = np.random.default_rng(seed)
    weight = random.standard_t(3, (4, 64)).astype(np.float32)
    group = 16 if granularity == "group" else None
    scheme = Scheme("int2", "symmetric", granularity, narrow, group=group)
    found = quantize_weight(Wanted("layer", weight, np.zeros(4, np.float32), scheme, 0, None))
    rows = weight.reshape({"channel": 4, "tensor": 1, "group": 16}[granularity], -1).astype(np.float64)
    errors = ((found.real.astype(np.float64).reshape(rows.shape) - rows) ** 2).sum(1)
    lowest = -1 if narrow else -2

    def error(row: np.ndarray, scale: float) -> float:
        return float(((np.clip(np.round(row / scale), lowest, 1) * scale - row) ** 2).sum())

    for row, reached in zip(rows, errors, strict=True):
        finest = min(error(row, scale) for scale in np.geomspace(0.05, 1.0, 300) * np.abs(row).max())
        assert reached <= 1.12 * finest  # of all scales: what lies between those that are tried costs some percent
    largest = qparams(rows.min(1), rows.max(1), scheme, 0)
    whole = dequantize(quantize(rows.astype(np.float32), largest), largest)
    assert (errors <= ((whole - rows) ** 2).sum(1) * (1 + 1e-5)).all()


def test_a_bias_that_would_not_fit_keeps_its_scale_at_four_levels() -> None:
    weight, bias = floats([1e-7, -2e-7], [0.5, -0.25]), floats(100.0, 0.1)
    stored = quantize_weight(Wanted("layer", weight, bias, Scheme("int2", "symmetric", "channel"), 0, INPUT_SCALE))
    assert float(np.abs(quantize_bias(bias, INPUT_SCALE, stored.q)).max()) <= BIAS_HEADROOM * (1 + 1e-6)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_a_large_bias_on_tiny_weights_fits_its_integers(granularity: str) -> None:
    weight, bias = floats([1e-7, -2e-7], [0.5, -0.25], [0.0, 0.0]), floats(100.0, -0.1, -50.0)
    stored = quantize_weight(Wanted("layer", weight, bias, Scheme("int8", "symmetric", granularity), 0, INPUT_SCALE))
    integers = quantize_bias(bias, INPUT_SCALE, stored.q).astype(np.float64)
    scale = bias_scale(INPUT_SCALE, stored.q).astype(np.float64)
    assert float(np.abs(integers).max()) <= BIAS_HEADROOM * (1 + 1e-6)
    assert np.allclose(integers * scale, bias, rtol=1e-5)
    if granularity == "channel":
        assert np.allclose(stored.real[1], weight[1], atol=0.5 / 127)


def test_a_bias_beyond_its_integers_saturates() -> None:
    q = per_tensor(Scheme("int8", "symmetric"), 1e-9, 0)
    assert quantize_bias(floats(1e9, -1e9), q.scale, q).tolist() == [2**31 - 1, -(2**31 - 1)]


def test_signal_to_noise_ratio() -> None:
    reference = floats(3.0, 4.0)
    assert sqnr_db(reference, reference + floats(0.5, 0.0)) == pytest.approx(20.0)
    assert sqnr_db(reference, reference) == 200.0
    assert sqnr_db(np.zeros(2), reference) == -200.0
    assert sqnr_db(np.zeros((1, 2)), np.zeros((1, 2))) == 200.0
    assert sqnr_db(np.float32(1.0), np.float32(1.1)) == pytest.approx(20.0, abs=1e-4)


def test_signal_to_noise_ratio_of_a_tensor_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = np.random.default_rng(0).normal(size=(7, 5, 3))
    measured = reference + np.random.default_rng(1).normal(size=(7, 5, 3))
    whole = sqnr_db(reference, measured)
    monkeypatch.setattr(sys.modules["edgeq.numerics.quantize"], "_BLOCK", 31)
    assert sqnr_db(reference, measured) == pytest.approx(whole)


@pytest.mark.parametrize("symmetry", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("length", [4, 10, 60])
def test_rounding_in_every_call_is_rounding_by_the_extremes_of_each_part(symmetry: str, length: int) -> None:
    """Rows of 10 numbers in parts of 4, 4 and 2, each by itself, or two at once."""
    x = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0)) ** 3
    scheme = Scheme("int8", symmetry)  # type: ignore[arg-type]
    found = round_dynamically(x, scheme, length).numpy()
    rows = x.numpy().reshape(-1, 10)
    parts = np.split(rows, [4, 8], axis=1) if length == 4 else [x.numpy().reshape(-1, length)]
    expected = []
    for part in parts:
        ends = np.abs(part).max(1) if symmetry == "symmetric" else part.max(1)
        low = -ends if symmetry == "symmetric" else part.min(1)
        q = qparams(low, ends, Scheme("int8", symmetry, narrow=symmetry == "symmetric"), 0)  # type: ignore[arg-type]
        expected.append(dequantize(quantize(part, q), q))
    wanted = np.concatenate(expected, 1).reshape(x.shape)
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    assert np.abs(found - x.numpy()).max() > 1e-3


def test_a_part_of_zeros_stays_and_gradients_pass() -> None:
    x = torch.zeros(3, 8)
    x[1] = torch.arange(8.0)
    x.requires_grad_()
    found = round_dynamically(x, Scheme("uint8"), 8)
    found.sum().backward()
    assert not found[0].any() and not found[2].any() and float(found[1, 7].detach()) == 7.0
    assert x.grad is not None and bool((x.grad == 1).all())
