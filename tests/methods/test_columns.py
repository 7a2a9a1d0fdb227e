"""Layers as matrices, against PyTorch's operators."""

from __future__ import annotations

import layer_models as layers
import numpy as np
import pytest
import torch

from edgeq.methods.columns import columns, met
from edgeq.model.operators import operator_of
from edgeq.model.ops import channel_axis_of_output


@pytest.mark.parametrize("widest", [1000, 3])
@pytest.mark.parametrize("name", layers.LAYERS)
def test_matrices_give_what_the_layer_gives(name: str, widest: int) -> None:
    model, seen = layers.layer(name)
    (group,) = model.groups
    node, weight = model.nodes[group.root], model.state[group.weight or ""]
    x = torch.from_numpy(seen.inputs[model.inputs[0].name])
    out = operator_of(model.program, node.target)(x, torch.from_numpy(weight), None, *node.args[3:])
    expected = out.movedim(channel_axis_of_output(group.op), -1).reshape(-1, len(model.state[group.bias or ""]))
    at, rows = columns(node, widest), met(node, x, len(expected), 5)
    assert at.shape[2] <= widest and sorted(at.reshape(-1)) == list(range(weight.size))
    blocks = rows.numpy().reshape(len(rows), len(at), -1)
    found = np.einsum("nbi,boi->nbo", blocks, weight.reshape(-1)[at])
    found = found.reshape(len(rows), rows.shape[1], -1, found.shape[2]).sum(axis=2).reshape(len(rows), -1)
    drawn = torch.randperm(len(expected), generator=torch.Generator().manual_seed(5))
    np.testing.assert_allclose(found, expected.numpy()[drawn], atol=1e-5)
    assert torch.equal(met(node, x, 7, 5), rows[:7])


@pytest.mark.parametrize("name", layers.LAYERS)
def test_the_mean_of_what_is_met_is_the_calibrations(name: str) -> None:
    model, seen = layers.layer(name)
    node = model.nodes[model.groups[0].root]
    rows = met(node, torch.from_numpy(seen.inputs[model.inputs[0].name]), 1 << 20, 0)
    patch = seen.calibration.mean_patches[node.name]
    np.testing.assert_allclose(rows.mean(dim=0).numpy(), patch.reshape(rows.shape[1:]), atol=1e-5)
