"""Levels that are not evenly spaced, against definitions computed here."""

from __future__ import annotations

import itertools

import layer_models as layers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.methods import METHODS
from edgeq.methods.k_means import k_means
from edgeq.methods.method import Wanted
from edgeq.methods.scales import least_costly, rounded
from edgeq.numerics import Scheme
from edgeq.numerics.levels import fixed_levels, nearest_level

CODEBOOKS = {bits: Scheme(f"uint{bits}", "symmetric", "channel", levels="codebook") for bits in (2, 4)}  # type: ignore[arg-type]
POWERS = Scheme("uint4", "symmetric", "channel", levels="pow2")

DRAWS = {
    "normal": lambda random, shape: random.normal(size=shape),
    "uniform": lambda random, shape: random.uniform(-1, 1, size=shape),
    "heavy-tailed": lambda random, shape: random.standard_t(2, size=shape),
    "one-sided": lambda random, shape: random.exponential(size=shape),
    "channels-far-apart": lambda random, shape: random.normal(size=shape) * np.logspace(-4, 4, shape[0])[:, None],
    "few-values": lambda random, shape: random.integers(-1, 2, size=shape).astype(float),
    "zero": lambda random, shape: np.zeros(shape),
}


def wanted(weight: np.ndarray, scheme: Scheme, axis: int = 0) -> Wanted:
    bias = np.zeros(weight.shape[axis], np.float32)
    return Wanted("layer", weight.astype(np.float32), bias, scheme, axis, None)


def squared(one: Wanted, real: np.ndarray, heavy: np.ndarray | float = 1.0) -> float:
    return float((heavy * np.square(real.astype(np.float64) - one.weight)).sum())


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("bits", CODEBOOKS)
def test_never_worse_than_evenly_spaced_levels(bits: int, draw: str) -> None:
    for seed in range(5):
        one = wanted(DRAWS[draw](np.random.default_rng(seed), (6, 50)), CODEBOOKS[bits])
        even = one._replace(scheme=Scheme(f"int{bits}", "symmetric", "channel"))  # type: ignore[arg-type]
        best = squared(even, rounded(even, least_costly(even, np.square)).real)
        found = squared(one, k_means(one).real)
        assert found <= best * (1 + 1e-5) + 1e-12
        assert draw != "normal" or found < 0.95 * best


def test_each_weight_has_the_nearest_level_and_each_level_the_mean_of_its_weights() -> None:
    """Where it ends, neither step of Lloyd's algorithm gains much more."""
    random = np.random.default_rng(0)
    one = wanted(random.normal(size=(5, 400)), CODEBOOKS[4])
    heavy = random.uniform(0.1, 10, one.weight.shape)
    found = k_means(one, heavy)
    assert found.levels is not None
    scale = found.q.scale[:, None].astype(np.float64)
    apart = np.abs(one.weight[..., None] - scale[..., None] * found.levels)
    assert np.allclose(apart.min(-1), np.take_along_axis(apart, found.integers[..., None].astype(int), -1)[..., 0])
    before = squared(one, found.real, heavy)
    means = found.levels.astype(np.float64)
    for place in range(16):
        here = found.integers == place
        if here.any():
            over, under = heavy * scale * one.weight, heavy * np.square(scale) * np.ones_like(one.weight)
            means[place] = over[here].sum() / under[here].sum()
    assert before * 0.99 <= squared(one, scale * means[found.integers], heavy) <= before * (1 + 1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1, 1, width=32), min_size=6, max_size=8))
def test_two_bits_beside_every_partition(numbers: list[float]) -> None:
    """Of one channel the best four levels are means of neighbours: not always found, but never beaten."""
    ordered = np.sort(np.array(numbers, np.float64))
    one = wanted(ordered[None], CODEBOOKS[2])
    ends = itertools.combinations_with_replacement(range(len(ordered) + 1), 3)
    best = min(
        sum(float(np.square(part - part.mean()).sum()) for part in np.split(ordered, cuts) if part.size)
        for cuts in ends
    )
    assert squared(one, k_means(one).real) >= best * (1 - 1e-4) - 1e-9


def test_heavy_weights_are_nearer() -> None:
    random = np.random.default_rng(1)
    one = wanted(random.normal(size=(4, 300)), CODEBOOKS[2])
    heavy = np.where(np.abs(one.weight) < 0.5, 1000, 1)
    plain, own = (squared(one, k_means(one, counts).real, heavy) for counts in (None, heavy))
    assert own < 0.5 * plain


def test_channels_may_lie_along_another_axis() -> None:
    weight = np.random.default_rng(2).normal(size=(3, 5, 2, 2))
    one, turned = wanted(weight, CODEBOOKS[4], 1), wanted(np.moveaxis(weight, 1, 0), CODEBOOKS[4])
    assert np.array_equal(np.moveaxis(k_means(one).real, 1, 0), k_means(turned).real)


def test_powers_of_two() -> None:
    levels = fixed_levels(POWERS)
    assert levels is not None
    assert levels.tolist() == [*(-(2.0**-k) for k in range(7)), 0.0, *(2.0**-k for k in reversed(range(7)))]
    one = wanted(np.random.default_rng(3).normal(size=(8, 200)), POWERS)
    found = k_means(one)
    steps = np.log2(
        np.abs(found.real[found.real != 0] / np.broadcast_to(found.q.scale[:, None], one.weight.shape)[found.real != 0])
    )
    assert np.array_equal(steps, np.rint(steps)) and steps.min() >= -6 and steps.max() <= 0
    # no scale of the same octave is much better
    tried = [
        np.square(one.weight - s * levels[nearest_level(one.weight / s, levels)]).sum(1)
        for s in (np.abs(one.weight).max(1, keepdims=True) * part for part in np.linspace(0.5, 1, 60))
    ]
    assert squared(one, found.real) <= 1.05 * np.min(tried, axis=0).sum()


def test_squeezellm_moves_the_outputs_less() -> None:
    """What the layer gives, computed by PyTorch with the weights of both, less what the bias makes up for."""
    gains = []
    for name in ("linear", "conv2d", "grouped", "depthwise", "transposed"):
        model, seen = layers.layer(name)
        (one,) = layers.wanted_of(model, CODEBOOKS[2])
        from edgeq.methods.hessian import hessians

        ((_, at, hessian),) = hessians(model, [one], seen)
        heavy = hessian.diagonal(dim1=1, dim2=2).numpy()[:, None]
        errors = []
        for method in ("nearest", "squeezellm"):
            real = METHODS[method](model, [one], seen).weights[one.layer].real
            errors.append(float((heavy * np.square((real - one.weight).reshape(-1)[at])).sum()))
        gains.append(errors[1] / errors[0])
    assert max(gains) < 1.02 and min(gains) < 0.9


@pytest.mark.parametrize("scheme", [*CODEBOOKS.values(), POWERS], ids=str)
def test_gptq_carries_the_errors_of_levels_too(scheme: Scheme) -> None:
    """e H e^T of each output, which is what it makes smaller by leaving the nearest level."""
    from edgeq.methods.hessian import hessians

    for name in ("linear", "conv2d", "grouped", "transposed"):
        model, seen = layers.layer(name)
        (one,) = layers.wanted_of(model, scheme)
        ((_, at, hessian),) = hessians(model, [one], seen)
        errors = []
        for method in ("squeezellm", "gptq"):
            found = METHODS[method](model, [one], seen).weights[one.layer]
            e = (found.real - one.weight).reshape(-1)[at].astype(np.float64)
            errors.append(float((e * (e @ hessian.numpy())).sum()))
        assert errors[1] < errors[0], name


TERNARY = [
    Scheme("int2", "symmetric", "channel"),
    Scheme("int2", "symmetric", "tensor", narrow=True),
    Scheme("int2", "symmetric", "group", group=10),
]


@pytest.mark.parametrize("scheme", TERNARY, ids=str)
def test_ternary_weights_by_hand(scheme: Scheme) -> None:
    """Li & Liu 2016, equations 3, 5 and 6, row by row."""
    one = wanted(np.random.default_rng(4).normal(size=(4, 30)), scheme)
    found = METHODS["twn"](None, [one], None).weights["layer"]  # type: ignore[arg-type]
    shared = {"channel": (4, 30), "tensor": (1, 120), "group": (12, 10)}[scheme.granularity]
    for row, real in zip(one.weight.reshape(shared).astype(np.float64), found.real.reshape(shared), strict=True):
        threshold = 0.7 * np.abs(row).mean()
        scale = np.abs(row[np.abs(row) > threshold]).mean()
        expected = np.where(row > threshold, scale, np.where(row < -threshold, -scale, 0))
        np.testing.assert_allclose(real, expected, rtol=1e-6)
    assert set(np.unique(found.integers)) <= {-1, 0, 1}


def test_a_channel_of_zeros_stays_zero() -> None:
    weight = np.zeros((2, 8))
    weight[1] = 1
    found = METHODS["twn"](None, [wanted(weight, TERNARY[0])], None).weights["layer"]  # type: ignore[arg-type]
    assert np.array_equal(found.real, weight) and (found.q.scale > 0).all()
