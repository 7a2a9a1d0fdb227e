"""Rewrites of what lies between two layers: the function stays, factors are the papers', and rounding loses less."""

from __future__ import annotations

from collections.abc import Callable

import badly_scaled as bad
import numpy as np
import pytest
import small_models as small
import torch
from torch import nn

from edgeq.frontends.load import load
from edgeq.model.model import Model
from edgeq.registry.load import load_target
from edgeq.rewrites import REWRITES, absorption, equalization, link_smoothing
from edgeq.rewrites.channels import channels_of
from edgeq.rewrites.judged import calibrated, sqnrs
from edgeq.rewrites.links import find_links
from edgeq.rewrites.rewrite import Channels, Observed, split

Apply = Callable[[Model, Observed, dict[str, float]], Model]


def observed(model: Model, array: np.ndarray) -> dict[str, Channels]:
    axes = {link.value: link.axis for link in find_links(model)}
    return channels_of(model, {model.inputs[0].name: array}, axes)


def everywhere(model: Model, apply: Apply, parameter: float, array: np.ndarray) -> Model:
    seen = observed(model, array)
    return apply(model, seen, dict.fromkeys(seen, parameter))


def reaching(high: np.ndarray) -> Channels:
    zeros = np.zeros_like(high, np.float32)
    return Channels(zeros, high.astype(np.float32), zeros, zeros, zeros)


def test_links_are_found_through_what_commutes_with_a_factor() -> None:
    links = find_links(bad.model(scale=1.0))
    found = [(link.writer.name, [reader.name for reader in link.readers], set(link.between)) for link in links]
    assert found == [
        ("stem", ["deep"], {"relu"}),
        ("deep", ["point"], {"relu"}),
        ("point", ["wide"], {"relu", "max_pool2d"}),
        ("wide", ["head"], {"relu", "mean"}),
    ]


@pytest.mark.parametrize(
    ("name", "writers"), [("conv-norm-relu6", []), ("residual", []), ("concat", []), ("gate", ["squeeze"])]
)
def test_what_others_read_or_what_does_not_commute_is_no_link(name: str, writers: list[str]) -> None:
    assert [link.writer.name for link in find_links(small.model(name))] == writers


@pytest.mark.parametrize("parameter", [0.5, 1.0])
@pytest.mark.parametrize("apply", [equalization.equalize, link_smoothing.smooth_links], ids=["equalize", "smooth"])
def test_the_function_stays_what_it_was_also_as_exporters_get_it(apply: Apply, parameter: float) -> None:
    model, array = bad.model(scale=30.0), bad.images(16)
    changed = everywhere(model, apply, parameter, array)
    assert changed.fingerprint != model.fingerprint and changed.sha256 == model.sha256
    wanted = bad.answers(model, bad.images(8, seed=5))
    found = bad.answers(changed, bad.images(8, seed=5))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
    exported = changed.exported().module()(torch.from_numpy(bad.images(8, seed=5))).detach().numpy()
    np.testing.assert_allclose(exported, found, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_the_factors_of_a_pair_are_those_of_equation_11_and_no_channel_outgrows_the_largest() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    model = load(net, example=(torch.zeros(2, 6),))
    (link,) = find_links(model)
    high = np.array([1, 0.9, 1e-3, 1e-3, 1e-3, 1e-3, 2, 1e-3], np.float32)
    found = equalization.factors(model, {link.value: reaching(high)})[link.value]
    first, second = (net[i].weight.detach().numpy() for i in (0, 2))
    for channel in range(8):
        r1, r2 = np.abs(first[channel]).max(), np.abs(second[:, channel]).max()
        assert found[channel] == pytest.approx(max(np.sqrt(r1 * r2) / r2, high[channel] / 2), rel=1e-6)


def test_all_channels_of_a_chain_are_equal_on_both_sides() -> None:
    model = bad.model(scale=30.0)
    unbounded = {
        link.value: reaching(np.zeros(len(model.state[link.writer.weight or ""]))) for link in find_links(model)
    }
    changed = equalization.equalize(model, unbounded, dict.fromkeys(unbounded, 1.0))
    stem, deep, point, wide = (np.abs(changed.state[f"{n}.weight"]) for n in ("stem", "deep", "point", "wide"))
    np.testing.assert_allclose(stem.max((1, 2, 3)), deep.max((1, 2, 3)), rtol=1e-2)
    np.testing.assert_allclose(deep.max((1, 2, 3)), point.max((0, 2, 3)), rtol=1e-2)
    read = [wide[4 * group : 4 * group + 4, i].max() for group in range(3) for i in range(4)]
    np.testing.assert_allclose(point.max((1, 2, 3)), read, rtol=1e-2)


def test_the_factors_of_smoothing_are_those_of_equation_4() -> None:
    model, array = bad.model(scale=30.0), bad.images(16)
    seen, link = observed(model, array), find_links(model)[1]
    found = link_smoothing.factors(model, link, seen[link.value], 0.7)
    reach = np.maximum(seen[link.value].high, 0)
    weights = np.abs(model.state["point.weight"]).max((0, 2, 3))
    for channel in range(8):
        x, r = max(reach[channel] / reach.max(), 0.01), max(weights[channel] / weights.max(), 0.01)
        assert found[channel] == pytest.approx(x**0.7 / r**0.3, rel=1e-5)


@pytest.mark.parametrize("target", ["x86-avx512", "npu-hexagon"])
@pytest.mark.parametrize("name", ["equalize", "smooth_links"])
def test_what_bad_scales_lost_comes_back(name: str, target: str) -> None:
    """Beside the network that the channels were never scaled in."""
    runtimes = load_target(target).runtimes
    ways = [(runtime, None) for runtime in runtimes]

    def left(model: Model) -> float:
        parts = split({model.inputs[0].name: bad.images(64)})
        return float(np.mean(sqnrs(model, calibrated(model, parts.observed, ways), parts.held_out, ways)))

    model = bad.model(scale=30.0)
    changed = everywhere(
        model, REWRITES[name].apply, {"equalize": 1.0, "smooth_links": 0.5}[name], bad.images(48, seed=7)
    )
    good, lost, found = left(bad.model(scale=1.0)), left(model), left(changed)
    assert lost < good - 8 and found > lost + 8, (good, lost, found)


class High(nn.Module):
    """Channels that are far above zero, in front of a layer without a border and of one with a border."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 4, 3, padding=1)
        with torch.no_grad():
            self.first.bias[:3] += torch.tensor([6.0, 20.0, 90.0])
            self.second.bias[:2] += 50

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(image)))))


def test_high_biases_move_on_where_no_border_is_in_the_way() -> None:
    torch.manual_seed(1)
    model, array = load(High().eval(), example=(torch.zeros(2, 3, 10, 10),)), bad.images(32)
    seen = observed(model, array)
    places = REWRITES["absorb"].places(model, [small.runtime("onnxruntime")])
    assert [model.groups[0].root] == list(places)
    changed = absorption.absorb(model, seen, dict.fromkeys(places, 3.0))
    before: list[np.ndarray] = []
    model.run(
        [[torch.from_numpy(array)]], lambda n, v: (before.append(v[0].numpy()) if n.name in places else None, v)[1]
    )
    rows = before[0].transpose(1, 0, 2, 3).reshape(6, -1)
    moved = np.maximum(np.minimum(rows.mean(1) - 3 * rows.std(1), rows.min(1)), 0)
    assert (moved[:3] > 0).all() and not moved[3:].any()
    np.testing.assert_allclose(changed.state["first.bias"], model.state["first.bias"] - moved, rtol=1e-4, atol=1e-4)
    gained = model.state["second.weight"].sum((2, 3)) @ moved
    np.testing.assert_allclose(changed.state["second.bias"], model.state["second.bias"] + gained, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(bad.answers(changed, array), bad.answers(model, array), rtol=1e-4, atol=2e-4)
