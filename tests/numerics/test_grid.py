"""Grids that somebody else chose, in the integers of a scheme."""

from __future__ import annotations

import numpy as np
import pytest

from edgeq.numerics import Scheme, dequantize, quantize
from edgeq.numerics.grid import Grid

NUMBERS = np.random.default_rng(0).normal(0, 3, 500).astype(np.float32)


def tensor(scale: float, zero: int, low: int, high: int) -> Grid:
    return Grid(np.float32(scale).reshape(()), np.int32(zero).reshape(()), low, high)


@pytest.mark.parametrize(
    "grid, scheme",
    [
        (tensor(0.1, 3, -128, 127), Scheme("uint8")),
        (tensor(0.1, 131, 0, 255), Scheme("int8")),
        (tensor(0.25, 2, 0, 15), Scheme("uint4")),
        (tensor(0.25, 0, -8, 7), Scheme("int4", "symmetric")),
        (tensor(0.5, 0, 0, 127), Scheme("uint8", bits=7)),
    ],
)
def test_other_integers_stand_for_the_same_numbers(grid: Grid, scheme: Scheme) -> None:
    q = grid.of_activations(scheme)
    assert q is not None
    steps = np.clip(np.rint(NUMBERS / grid.scale) + grid.zero_point, grid.low, grid.high)
    expected = (steps - grid.zero_point).astype(np.float32) * grid.scale
    assert np.array_equal(dequantize(quantize(NUMBERS, q), q), expected)


@pytest.mark.parametrize(
    "grid, scheme",
    [
        (tensor(0.1, 3, -127, 127), Scheme("uint8")),  # what is beyond is cut off elsewhere
        (tensor(0.1, 0, 0, 15), Scheme("uint8")),
        (tensor(0.1, 3, -128, 127), Scheme("int8", "symmetric")),
        (tensor(0.1, 0, -128, 127), Scheme("int8", power_of_two=True)),
    ],
)
def test_a_scheme_without_these_levels_is_none(grid: Grid, scheme: Scheme) -> None:
    assert grid.of_activations(scheme) is None


def test_weights_go_where_there_is_a_place_for_each() -> None:
    integers = np.array([[-7, 0, 3], [7, 2, -1]], np.int8)
    grid = Grid(np.float32([0.5, 0.25]), np.int32([0, 0]), -128, 127, 0)
    four = Scheme("int4", "symmetric", "channel")
    found = grid.of_weights(four, integers, (0, 2))
    assert found is not None and np.array_equal(found[0], integers) and np.array_equal(found[1].scale, grid.scale)
    assert grid.of_weights(Scheme("int2", "symmetric", "channel"), integers, (0, 2)) is None
    assert grid.of_weights(Scheme("int8", "symmetric", "tensor"), integers, (0, 2)) is None
    assert grid.of_weights(Scheme("int8", "symmetric", "group", group=3), integers, (0, 2)) is None


def test_one_scale_is_that_of_each_channel_and_a_middle_goes_to_zero() -> None:
    integers = np.array([[128, 120], [135, 129]], np.uint8)
    grid = tensor(0.5, 128, 0, 255)
    found = grid.of_weights(Scheme("int8", "symmetric", "channel"), integers, (0, 2))
    assert found is not None
    assert np.array_equal(found[0], integers.astype(int) - 128)
    assert found[1].scale.tolist() == [0.5, 0.5] and not found[1].zero_point.any()


def test_weights_with_zero_points_keep_them() -> None:
    integers = np.array([[1, 15], [0, 9]], np.uint8)
    grid = Grid(np.float32([0.5, 0.25]), np.int32([3, 8]), 0, 15, 0)
    assert grid.of_weights(Scheme("int4", "symmetric", "channel"), integers, (0, 2)) is None
    found = grid.of_weights(Scheme("uint4", "asymmetric", "channel"), integers, (0, 2))
    assert found is not None and found[1].zero_point.tolist() == [3, 8]
