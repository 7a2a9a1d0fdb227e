"""AWQ's scaling: the function stays, the factors are the paper's, and few bits lose less."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from edgeq.frontends.load import load
from edgeq.model.model import Model
from edgeq.progress import Silent
from edgeq.registry.load import load_target
from edgeq.registry.schema import Kernel
from edgeq.rewrites import REWRITES
from edgeq.rewrites.awq import best_alpha, factors, scale_salient
from edgeq.rewrites.channels import channels_of, rows_of
from edgeq.rewrites.rewrite import Asked, Channels, split
from edgeq.rewrites.sites import find_sites

WIDTH, SALIENT = 64, (3, 17, 40)
RUNTIMES = load_target("x86-avx512").runtimes


class Salient(nn.Module):
    """A normalisation whose gain makes a few channels large, in front of layers with weights of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.gate = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.down = nn.Linear(WIDTH, 16)
        with torch.no_grad():
            self.norm.weight[list(SALIENT)] *= 20

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        return self.down(nn.functional.silu(self.gate(x) * 0.1) * self.up(x))


@cache
def model() -> Model:
    torch.manual_seed(0)
    batch = torch.export.Dim("batch", max=256)
    return load(torch.export.export(Salient().eval(), (torch.zeros(2, 5, WIDTH),), dynamic_shapes=({0: batch},)))


def tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 5, WIDTH)).astype(np.float32)


def inputs(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {model().inputs[0].name: tokens(count, seed)}


def kernel(**of: object) -> Kernel:
    told = {"ops": ["linear"], "activations": "float32", "weights": "int4", "source": "test"}
    return Kernel.model_validate(told | of)


def test_the_factors_are_the_means_to_the_power_of_alpha() -> None:
    mean = np.array([0.1, 2.0, 0.5, 8.0], np.float32)
    zeros = np.zeros_like(mean)
    found = factors(Channels(zeros, zeros, zeros, mean, zeros), 0.6)
    np.testing.assert_allclose(found, mean**0.6 / np.sqrt(8.0**0.6 * 0.1**0.6), rtol=1e-5)


def test_the_function_stays_what_it_was_also_as_exporters_get_it() -> None:
    places = REWRITES["awq"].places(model(), RUNTIMES)
    assert len(places) == 2, "the gain of the normalisation, and the layer that the gate multiplies"
    changed = scale_salient(model(), channels_of(model(), inputs(16), places), dict.fromkeys(places, 0.5))
    x = torch.from_numpy(tokens(4, seed=3))
    wanted = model().run([[x]])[0][0].numpy()
    np.testing.assert_allclose(changed.run([[x]])[0][0].numpy(), wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(changed.exported().module()(x).detach().numpy(), wanted, rtol=1e-4, atol=1e-4)
    assert not np.allclose(changed.state["up.weight"], model().state["up.weight"], rtol=0.1)


def test_alpha_is_the_best_of_the_grid_for_rounded_weights() -> None:
    site = find_sites(model())[0]
    channels = channels_of(model(), inputs(16), {site.value: -1})[site.value]
    rows = rows_of(model(), inputs(16), [site.value], 60)[site.value]
    found = best_alpha(model(), site, [kernel()], channels, rows)

    def lost(alpha: float) -> float:
        total = 0.0
        for layer in ("up", "gate"):
            weight = model().state[f"{layer}.weight"].astype(np.float64)
            scale = channels.magnitude.astype(np.float64) ** alpha
            scaled = weight * scale / np.sqrt(scale.max() * scale.min())
            step = np.abs(scaled).max(axis=1, keepdims=True) / 7
            real = np.clip(np.rint(scaled / step), -8, 7) * step / scale * np.sqrt(scale.max() * scale.min())
            total += np.square((real - weight) @ rows.T).sum() / np.square(weight @ rows.T).sum()
        return total

    grid = [step / 20 for step in range(20)]
    assert lost(found) == pytest.approx(min(map(lost, grid)), rel=0.05) and lost(found) < 0.6 * lost(0)


def test_it_is_chosen_where_few_bits_gain_and_eight_bits_do_not_lose() -> None:
    rewrite = REWRITES["awq"]
    places = rewrite.places(model(), RUNTIMES)
    samples = split(inputs(64))
    seen = channels_of(model(), samples.observed, places)
    chosen = rewrite.choose(Asked(model(), RUNTIMES, samples, seen, Silent()))
    gains = np.subtract(chosen.after, chosen.before)
    assert chosen.parameters and gains.mean() > 0.5 and gains.max() > 2, (chosen.before, chosen.after)


def test_nothing_is_tried_where_no_runtime_has_few_bits() -> None:
    assert not REWRITES["awq"].places(model(), load_target("mcu-cortex-m").runtimes)
