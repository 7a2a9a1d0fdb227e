"""SmoothQuant: the function stays what it was, the factors are the paper's, and it is applied where it helps."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import small_models as small
import torch
import torch.nn.functional as F
from torch import nn

from edgeq.api.deploy import deploy
from edgeq.cache import Cache
from edgeq.calibration.histogram import Histogram
from edgeq.data.dataset import make_dataset
from edgeq.errors import UsageError
from edgeq.frontends.load import load
from edgeq.lowering.assign import assign, is_masked
from edgeq.model.model import Model
from edgeq.plans.plan import read_plan
from edgeq.progress import Clock, Silent
from edgeq.rewrites.alphas import choose
from edgeq.rewrites.channels import channels_of
from edgeq.rewrites.rewrite import Channels, split
from edgeq.rewrites.rewritten import Given, rewritten
from edgeq.rewrites.sites import find_sites
from edgeq.rewrites.smooth_quant import factors, smooth

WIDTH, TOKENS, OUTLIERS = 16, 6, (3, 11)


class Block(nn.Module):
    """A transformer's layer, with a normalisation that makes two channels much larger than all others."""

    def __init__(self, *, post_norm: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out, self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.post_norm = post_norm
        with torch.no_grad():
            for norm, readers in ((self.first, (self.query, self.key, self.value)), (self.second, (self.up,))):
                for channel in OUTLIERS:
                    norm.weight[channel] *= 60
                    for reader in readers:
                        reader.weight[:, channel] /= 60

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2) / WIDTH**0.5
        return self.out(scores.softmax(-1) @ self.value(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.post_norm:
            y = self.first(x)
            y = self.second(y + self.attend(y))
            return y + self.down(F.gelu(self.up(y)))
        x = x + self.attend(self.first(x))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Transformer(nn.Module):
    def __init__(self, *, post_norm: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 4)
        self.block, self.last = Block(post_norm=post_norm), nn.LayerNorm(WIDTH)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.last(self.block(self.embed(tokens))).mean(1))


class Gated(nn.Module):
    """A gated feed-forward network behind a root-mean-square normalisation, as Llama spells both."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.gate, self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(WIDTH, 32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        return self.down(F.silu(self.gate(x)) * self.up(x))


def tokens(count: int, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, TOKENS, width)).astype(np.float32)


@cache
def transformer(*, post_norm: bool) -> Model:
    torch.manual_seed(0)
    net = Transformer(post_norm=post_norm).eval()
    batch = torch.export.Dim("batch", max=256)
    return load(torch.export.export(net, (torch.zeros(2, TOKENS, 8),), dynamic_shapes=({0: batch},)))


def inputs(model: Model, array: np.ndarray) -> dict[str, np.ndarray]:
    return {model.inputs[0].name: array}


def answers(model: Model, array: np.ndarray) -> np.ndarray:
    return model.run([[torch.from_numpy(array)]])[0][0].numpy()


def everywhere(model: Model, array: np.ndarray, alpha: float = 0.5) -> Model:
    sites = find_sites(model)
    axes = {site.value: -1 for site in sites}
    return smooth(model, channels_of(model, inputs(model, array), axes), dict.fromkeys(axes, alpha))


@pytest.mark.parametrize("post_norm", [False, True])
def test_the_function_stays_what_it_was_also_as_exporters_get_it(post_norm: bool) -> None:
    model, data = transformer(post_norm=post_norm), tokens(16)
    changed = everywhere(model, data)
    assert changed.fingerprint != model.fingerprint and changed.sha256 == model.sha256
    wanted = answers(model, data)
    np.testing.assert_allclose(answers(changed, data), wanted, rtol=1e-4, atol=1e-5)
    exported = changed.exported().module()(torch.from_numpy(data)).detach().numpy()
    np.testing.assert_allclose(exported, wanted, rtol=1e-4, atol=1e-5)
    assert changed.reference().state.keys() == model.reference().state.keys()
    assert {g.name for g in model.groups} <= {g.name for g in changed.groups}


def test_a_gain_that_nothing_else_reads_takes_the_division_and_else_a_product_does() -> None:
    def products(post_norm: bool) -> list[str]:
        changed = everywhere(transformer(post_norm=post_norm), tokens(16))
        return sorted(node.name for node in changed.nodes.values() if node.name.endswith("_smoothed") and node.args)

    kinds = {s.layers: s.kind for s in find_sites(transformer(post_norm=False))}
    assert kinds[("block.query", "block.key", "block.value")] == "norm" and kinds[("block.down",)] == "activation"
    assert len(products(post_norm=False)) == 1  # behind the activation
    assert len(products(post_norm=True)) == 3  # the additions read what the normalisations give


def test_the_factors_are_those_of_the_paper() -> None:
    model = transformer(post_norm=False)
    site = find_sites(model)[0]
    assert site.layers == ("block.query", "block.key", "block.value")
    low, high = np.linspace(-4, -1, WIDTH), np.linspace(0.5, 9, WIDTH)
    ends = [array.astype(np.float32) for array in (low, high)]
    channels = Channels(*ends, *[np.zeros(WIDTH, np.float32)] * 3)
    found = factors(model, site, channels, 0.3)
    for channel in range(WIDTH):
        value = max(abs(low[channel]), abs(high[channel]))
        weight = max(np.abs(model.state[f"{layer}.weight"][:, channel]).max() for layer in site.layers)
        assert found[channel] == pytest.approx(value**0.3 / weight**0.7, rel=1e-5)
    changed = smooth(model, {site.value: channels}, {site.value: 0.3})
    np.testing.assert_allclose(changed.state["block.key.weight"], model.state["block.key.weight"] * found, rtol=1e-6)
    np.testing.assert_allclose(
        changed.state["block.first.weight"] * found, model.state["block.first.weight"], rtol=1e-5
    )
    np.testing.assert_allclose(changed.state["block.first.bias"] * found, model.state["block.first.bias"], rtol=1e-5)


def test_what_is_seen_is_that_of_each_channel() -> None:
    model, data = transformer(post_norm=False), tokens(20)
    value = find_sites(model)[0].value
    found = channels_of(model, inputs(model, data), {value: -1})[value]
    seen: list[np.ndarray] = []
    model.run([[torch.from_numpy(data)]], lambda n, v: (seen.append(v[0].numpy()) if n.name == value else None, v)[1])
    rows = seen[0].reshape(-1, WIDTH)
    np.testing.assert_allclose(found.low, rows.min(0), rtol=1e-5)
    np.testing.assert_allclose(found.high, rows.max(0), rtol=1e-5)
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.magnitude, np.abs(rows).mean(0), rtol=1e-4)
    np.testing.assert_allclose(found.deviation, rows.std(0), rtol=1e-4)


def test_a_gated_network_has_its_factors_in_gain_and_gated_layer() -> None:
    torch.manual_seed(1)
    model = load(Gated().eval(), example=(torch.randn(2, TOKENS, WIDTH),))
    data = tokens(2, WIDTH)
    divided = {site.kind: [name for name, _ in site.divided] for site in find_sites(model)}
    assert divided == {"norm": ["gain"], "activation": ["up.weight", "up.bias"]}
    np.testing.assert_allclose(answers(everywhere(model, data, 0.7), data), answers(model, data), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("post_norm", [False, True])
def test_it_is_chosen_where_it_helps_on_samples_that_it_never_saw(post_norm: bool) -> None:
    model, parts = transformer(post_norm=post_norm), split(inputs(transformer(post_norm=post_norm), tokens(64)))
    (name,) = parts.tried
    rows = [{row.tobytes() for row in part[name]} for part in parts]
    assert all(rows) and rows[0].isdisjoint(rows[1]) and rows[0].isdisjoint(rows[2]) and rows[1].isdisjoint(rows[2])
    sites = find_sites(model)
    found = choose(model, sites, channels_of(model, parts.observed, {s.value: -1 for s in sites}), parts)
    assert found.after[0] > found.before[0] + 3
    norms = {site.value for site in sites if site.kind == "norm" and len(site.layers) == 3}
    assert norms <= found.parameters.keys()


@pytest.mark.parametrize("name", ["residual", "conv-norm-relu6", "mlp", "pools"])
def test_networks_without_a_candidate_are_not_touched_and_nothing_is_computed(name: str) -> None:
    model = small.model(name)
    assert find_sites(model) == ()
    data = make_dataset(small.arrays(name, 16), model.inputs, labels=None, source="test")
    given = Given(data, [small.runtime("onnxruntime")], Clock(Silent()), Cache(None))
    found, remarks = rewritten(model, given, ["smooth_quant"])
    assert found is model and not remarks and not given.clock.seconds


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_an_artefact_gains_and_its_plan_is_followed_to_the_same_weights(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "cache"))
    model = transformer(post_norm=False)
    calib = make_dataset(inputs(model, tokens(64)), model.inputs, labels=None, source="calib")
    evals = make_dataset(inputs(model, tokens(64, seed=9)), model.inputs, labels=None, source="eval")
    how = {"target": "x86-avx2", "calibration": calib, "evaluation": evals, "format": form, "device": "local"}
    off = deploy(model, **how, out=tmp_path / "off", smooth_quant="off")
    auto = deploy(model, **how, out=tmp_path / "auto")
    lost = [report.builds[0].accuracy.sqnr_db for report in (off, auto)]
    assert lost[1] > lost[0] + 1, lost
    made = read_plan(tmp_path / "auto" / "plan.json")
    assert made.rewrites["smooth_quant"] and any("SmoothQuant" in text for text in auto.warnings)
    layer = next(layer for layer in made.layers if layer.name == "block.query")
    assert layer.weight is not None and layer.weight.algorithm.startswith("SmoothQuant (alpha 0.")
    again = deploy(model, **{**how, "format": "auto"}, out=tmp_path / "again", plan=made)
    assert again.builds[0].format == form
    followed = read_plan(tmp_path / "again" / "plan.json")
    assert followed.rewrites == made.rewrites
    assert [x.weight for x in followed.layers] == [x.weight for x in made.layers]
    with pytest.raises(UsageError, match="no value of this model that SmoothQuant can change"):
        wrong = made.model_copy(update={"rewrites": {"smooth_quant": {"elsewhere": 0.5}}})
        deploy(model, **{**how, "format": "auto"}, out=tmp_path / "wrong", plan=wrong)


def test_what_nothing_behind_reads_as_integers_is_not_rounded() -> None:
    model = transformer(post_norm=True)
    histograms: dict[str, Histogram] = {}

    def observe(node, values):  # type: ignore[no-untyped-def]
        if isinstance(values[0], torch.Tensor) and values[0].is_floating_point():
            histograms.setdefault(node.name, Histogram()).add(values[0])
        return values

    model.run([[torch.from_numpy(tokens(8))]], observe)
    for name in ("onnxruntime", "openvino"):
        found = assign(model, small.runtime(name), histograms)
        adds = [g for g in model.groups if g.op == "add"]
        assert adds and not any(g.name in found.kernels for g in adds)
        assert any(found.reasons[g.name] == "nothing behind it runs on integers" for g in adds)
        down = next(g for g in model.groups if g.name == "block.down")
        assert down.name in found.kernels and down.output not in found.tensors


def test_a_mask_is_told_from_outliers() -> None:
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(size=(4, 32, 32)).astype(np.float32))
    hidden = torch.zeros(4, 1, 32)
    hidden[:, :, 20:] = 1

    def seen(values: torch.Tensor) -> Histogram:
        histogram = Histogram()
        histogram.add(values)
        assert np.isfinite(histogram.sample_low)
        return histogram

    for mask in (-1e4, -1e9, float(torch.finfo(torch.float32).min)):
        assert is_masked(seen(scores + hidden * mask)) and is_masked(seen(hidden * mask))
    assert not is_masked(seen(scores)) and not is_masked(seen(hidden)) and not is_masked(seen(hidden * 255))
    spread = torch.from_numpy(rng.standard_t(2, size=(4, 32, 256)).astype(np.float32) * 100)
    assert not is_masked(seen(spread))
