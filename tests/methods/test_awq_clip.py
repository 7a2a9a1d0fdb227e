"""The clipping of AWQ against trying every part on the samples."""

from __future__ import annotations

import layer_models as layers
import numpy as np
import pytest
import torch

from edgeq.methods import METHODS
from edgeq.methods.scales import PARTS, rounded, scales
from edgeq.numerics import Scheme


@pytest.mark.parametrize("dtype", ["int4", "int2"])
def test_each_channel_is_cut_where_its_outputs_move_least(dtype: str) -> None:
    model, seen = layers.layer("tokens")
    (one,) = layers.wanted_of(model, Scheme(dtype, "symmetric", "channel"))
    x = seen.inputs[model.inputs[0].name].reshape(-1, 12)
    (found,) = METHODS["awq-clip"](model, [one], seen).weights.values()
    moved = [(x @ (rounded(one, scales(one, part)).real - one.weight).T).var(axis=0) for part in PARTS]
    reached = (x @ (found.real - one.weight).T).var(axis=0)
    np.testing.assert_allclose(reached, np.min(moved, axis=0), rtol=1e-4)


def test_each_group_is_cut_by_itself() -> None:
    model, seen = layers.layer("conv2d")
    (one,) = layers.wanted_of(model, Scheme("int4", "symmetric", "group", group=6))
    x = torch.from_numpy(seen.inputs[model.inputs[0].name])
    patches = torch.nn.functional.unfold(x, (3, 2), (1, 2), (1, 2), (2, 1)).mT.flatten(0, 1).numpy().reshape(-1, 4, 6)
    (found,) = METHODS["awq-clip"](model, [one], seen).weights.values()

    def moved(real: np.ndarray) -> np.ndarray:
        return np.einsum("ngi,ogi->nog", patches, (real - one.weight).reshape(6, 4, 6)).var(axis=0)

    best = np.min([moved(rounded(one, scales(one, part)).real) for part in PARTS], axis=0)
    np.testing.assert_allclose(moved(found.real), best, rtol=1e-4)
