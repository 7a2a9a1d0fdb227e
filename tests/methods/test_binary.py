"""Weights of two values, against the papers' equations row by row."""

from __future__ import annotations

import numpy as np
import pytest

from edgeq.methods import METHODS
from edgeq.methods.method import Wanted
from edgeq.numerics import Scheme

SCHEMES = [
    Scheme("int2", "symmetric", "channel"),
    Scheme("int2", "symmetric", "tensor", narrow=True),
    Scheme("int2", "symmetric", "group", group=10),
]


def found(name: str, weight: np.ndarray, scheme: Scheme) -> np.ndarray:
    one = Wanted("layer", weight.astype(np.float32), np.zeros(len(weight), np.float32), scheme, 0, None)
    weights = METHODS[name](None, [one], None).weights["layer"]  # type: ignore[arg-type]
    assert set(np.unique(weights.integers)) <= {-1, 1}
    return weights.real


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_scale_is_the_one_of_least_error(scheme: Scheme) -> None:
    """Rastegari et al. 2016: no other scale times the signs is nearer to the weights."""
    weight = np.random.default_rng(0).normal(size=(4, 30)) * np.array([[0.1], [1], [3], [0.01]])
    shared = {"channel": (4, 30), "tensor": (1, 120), "group": (12, 10)}[scheme.granularity]
    for row, real in zip(weight.reshape(shared), found("xnor", weight, scheme).reshape(shared), strict=True):
        assert np.array_equal(np.sign(real), np.sign(row))
        least = np.square(real - row).sum()
        assert all(np.square(real * factor - row).sum() > least for factor in (0.99, 1.01))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_one_number_for_a_layer(scheme: Scheme) -> None:
    weight = np.random.default_rng(1).normal(size=(4, 30))
    np.testing.assert_allclose(np.abs(found("binaryconnect", weight, scheme)), np.abs(weight).mean(), rtol=1e-6)


@pytest.mark.parametrize("name", ["xnor", "binaryconnect"])
def test_zeros_have_a_sign_and_hardly_a_size(name: str) -> None:
    assert np.abs(found(name, np.zeros((2, 8)), SCHEMES[0])).max() < 1e-6
