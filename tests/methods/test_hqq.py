"""HQQ by the error that it minimizes, and where the answer is known."""

from __future__ import annotations

import layer_models as layers
import numpy as np
import pytest

from edgeq.methods import METHODS
from edgeq.methods.hqq import POWER, solved
from edgeq.methods.scales import by_scale
from edgeq.numerics import Scheme

SCHEMES = [
    Scheme("int8", "symmetric", "channel", narrow=True),
    Scheme("int4", "symmetric", "channel"),
    Scheme("int4", "symmetric", "group", group=4),
    Scheme("int2", "symmetric", "channel"),
    Scheme("uint4", "asymmetric", "channel"),
    Scheme("uint4", "asymmetric", "tensor"),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.dtype}-{s.granularity}")
def test_the_error_that_outliers_hardly_count_in_is_less(scheme: Scheme) -> None:
    costs = []
    for name in ("grouped", "conv3d", "depthwise"):
        model, seen = layers.layer(name)
        for one in layers.wanted_of(model, scheme):
            found = [METHODS[method](model, [one], seen).weights[one.layer] for method in ("nearest", "hqq")]
            errors = (by_scale(one, weights.real.astype(np.float64) - one.weight) for weights in found)
            costs.append([(np.abs(error) ** POWER).sum(axis=1) for error in errors])
    before, after = (np.concatenate(column) for column in zip(*costs, strict=True))
    assert (after <= before * (1 + 1e-6)).all()
    assert after.sum() < before.sum()


def test_weights_on_a_grid_are_found_behind_their_outliers() -> None:
    random = np.random.default_rng(0)
    weight = 0.1 * random.integers(-7, 8, (5, 200)).astype(np.float64)
    weight[:, :4] += random.uniform(-0.05, 0.05, (5, 4))
    begin, zero = np.full((5, 1), 0.103), np.zeros((5, 1))
    scale = solved(weight, begin, zero, Scheme("int4", "symmetric", "channel", True), np.full((1, 1), 1e-9))
    np.testing.assert_allclose(scale, 0.1, rtol=1e-3)
