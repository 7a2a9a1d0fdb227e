"""Fake quantization that learns: values and gradients against the papers' formulas, computed apart from PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeq.numerics import Scheme, dequantize, quantize
from edgeq.numerics.quantize import QParams
from edgeq.numerics.weights import quantize_bias
from edgeq.training.fake import learned_clip, learned_step, rounded_bias
from edgeq.training.ranges import RANGES

LOW, HIGH, SCALE, ZERO = 0, 15, 0.3, 4
X = np.random.default_rng(0).normal(0, 2, (3, 40)).astype(np.float32)
MOVED = np.random.default_rng(1).normal(0, 1, X.shape).astype(np.float32)


def gradients(function, zero: int = ZERO) -> tuple[np.ndarray, np.ndarray, float]:  # type: ignore[no-untyped-def]
    x, scale = torch.tensor(X, requires_grad=True), torch.tensor([SCALE], requires_grad=True)
    found = function(x, scale, torch.tensor([float(zero)]), LOW, HIGH)
    found.backward(torch.from_numpy(MOVED))
    assert x.grad is not None and scale.grad is not None
    return found.detach().numpy(), x.grad.numpy(), float(scale.grad)


@pytest.mark.parametrize("function", [learned_step, learned_clip, RANGES["lsq"].activations])
def test_values_are_those_of_the_integers(function) -> None:  # type: ignore[no-untyped-def]
    q = QParams(Scheme("uint4"), np.array(SCALE, np.float32), np.array(ZERO, np.int32))
    assert np.allclose(gradients(function)[0], dequantize(quantize(X, q), q), atol=1e-6)


def parts() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    steps = X / np.float32(SCALE)
    return steps, np.rint(steps) + ZERO < LOW, np.rint(steps) + ZERO > HIGH


def test_a_learned_step_moves_by_its_rounding_error_and_by_the_ends() -> None:
    steps, below, above = parts()
    inside = ~(below | above)
    by_scale = np.where(inside, np.rint(steps) - steps, np.where(below, LOW - ZERO, HIGH - ZERO))
    _, of_x, of_scale = gradients(learned_step)
    assert np.allclose(of_x, MOVED * inside, rtol=1e-5)
    assert of_scale == pytest.approx(float((MOVED * by_scale).sum()), rel=1e-4)


def test_the_kernel_that_training_uses_moves_alike_in_smaller_steps() -> None:
    _, of_x, of_scale = gradients(RANGES["lsq"].activations)
    _, expected, whole = gradients(learned_step)
    assert np.allclose(of_x, expected, rtol=1e-5)
    assert of_scale == pytest.approx(whole / np.sqrt(X.shape[1] * HIGH), rel=1e-4)


def test_a_learned_clip_moves_by_what_is_clipped_alone() -> None:
    x, ends = X.astype(np.float64), ((LOW - ZERO) * SCALE, (HIGH - ZERO) * SCALE)
    below, above = x < ends[0], x > ends[1]
    _, of_x, of_scale = gradients(learned_clip)
    assert np.array_equal(of_x, MOVED * ~(below | above))
    expected = (MOVED * below).sum() * (LOW - ZERO) + (MOVED * above).sum() * (HIGH - ZERO)
    assert of_scale == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("rule", ["fixed", "moving", "pact"])
def test_rules_that_do_not_learn_the_scales_of_weights_leave_them(rule: str) -> None:
    x, scale = torch.tensor(X, requires_grad=True), torch.full((3, 1), SCALE, requires_grad=True)
    RANGES[rule].weights(x, scale, torch.zeros(3, 1), -8, 7).sum().backward()
    assert scale.grad is None and x.grad is not None and bool(x.grad.any())


def test_scales_of_channels_are_learned_apart() -> None:
    x, scale = torch.tensor(X), torch.full((3, 1), SCALE, requires_grad=True)
    RANGES["lsq"].weights(x, scale, torch.zeros(3, 1), -8, 7)[1].sum().backward()
    assert scale.grad is not None
    assert scale.grad[0] == 0 and scale.grad[2] == 0 and scale.grad[1] != 0


@pytest.mark.parametrize("scales", [1, 5])
def test_a_bias_becomes_the_integers_that_are_stored(scales: int) -> None:
    rng = np.random.default_rng(scales)
    bias, read = rng.normal(size=5).astype(np.float32), np.float32(0.0187)
    scale = rng.uniform(1e-3, 1e-2, scales).astype(np.float32)
    axis = None if scales == 1 else 0
    weight = QParams(
        Scheme("int8"),
        scale.reshape(() if axis is None else -1),
        np.zeros(scale.shape if axis == 0 else (), np.int32),
        axis,
    )
    integers = quantize_bias(bias, np.asarray(read), weight)
    value = torch.from_numpy(bias).requires_grad_()
    found = rounded_bias(value, torch.from_numpy(read * scale))
    np.testing.assert_array_equal(np.rint(found.detach().numpy() / (read * scale)), integers)
    found.sum().backward()
    assert value.grad is not None and torch.equal(value.grad, torch.ones(5))
