"""Outliers apart: the function stays, the branches are what they are by themselves, they stay in float in every
runtime, and few bits lose less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import outlying
import pytest
import torch
from torch import nn

from edgeq.api.deploy import deploy
from edgeq.calibration.calibrate import calibrate
from edgeq.frontends.kept import _pack, _unpack
from edgeq.frontends.load import load
from edgeq.lowering.assign import FLOAT, assign
from edgeq.lowering.choices import ladder
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.plans.plan import read_plan
from edgeq.progress import Silent
from edgeq.quantization.simulate import sqnr_of
from edgeq.registry.load import load_target
from edgeq.registry.schema import Runtime
from edgeq.rewrites import REWRITES
from edgeq.rewrites.channels import channels_of
from edgeq.rewrites.low_rank import best_share, parts
from edgeq.rewrites.price import price_of
from edgeq.rewrites.rewrite import Asked, Channels, split

RUNTIMES = load_target("x86-avx512").runtimes
HOW = {"columns": ("outlier_columns", 8.0), "rank": ("low_rank", 1 / 64), "rows": ("low_rank", 1 / 64)}
FILES = {"onnx": "model.onnx", "openvino": "model.bin", "tflite": "model.tflite"}
LOW_RANK = {f"{layer}.{part}" for layer in ("up", "down") for part in ("low_rank.down", "low_rank.up", "add")}
BRANCHES = {"columns": {"up.outliers", "up.add"}, "rank": LOW_RANK, "rows": LOW_RANK}


def observed(kind: str) -> dict[str, Channels]:
    places = REWRITES[HOW[kind][0]].places(outlying.model(kind), RUNTIMES)
    return channels_of(outlying.model(kind), outlying.inputs(kind, 32), places)


def apart(kind: str) -> Model:
    name, parameter = HOW[kind]
    seen = observed(kind)
    return REWRITES[name].apply(outlying.model(kind), seen, dict.fromkeys(seen, parameter))


def values_of(model: Model, names: set[str], tokens: np.ndarray) -> dict[str, np.ndarray]:
    seen: dict[str, np.ndarray] = {}
    model.run([[torch.from_numpy(tokens)]], lambda n, v: (seen.update({n.name: v[0].numpy()}), v)[1])
    return {name: seen[name] for name in names}


@pytest.mark.parametrize("kind", HOW)
def test_the_function_stays_what_it_was_also_as_exporters_get_it_and_as_it_is_kept(kind: str) -> None:
    model, changed, tokens = outlying.model(kind), apart(kind), outlying.tokens(4, seed=3, kind=kind)
    ends = set(model.output_nodes) | {"relu"}
    wanted, found = values_of(model, ends, tokens), values_of(changed, ends, tokens)
    for name in ends:
        np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=2e-6 * np.abs(wanted[name]).max())
    exported = changed.exported().module()(torch.from_numpy(tokens)).detach().numpy()
    np.testing.assert_allclose(exported, found[model.output_nodes[0]], rtol=0, atol=1e-5 * np.abs(exported).max())
    entry = _pack(changed)
    assert entry is not None
    again = _unpack(entry, model.reference)
    assert again is not None and again.fingerprint == changed.fingerprint


def test_outlier_columns_are_those_beyond_the_median() -> None:
    model, changed = outlying.model("columns"), apart("columns")
    taken = sorted((*outlying.FAR, *outlying.HEAVY))
    before, after = model.state["up.weight"], changed.state["up.weight"]
    np.testing.assert_array_equal(changed.state["up.outliers.weight"], before[:, taken])
    assert not after[:, taken].any()
    rest = np.delete(np.arange(outlying.WIDTH), taken)
    np.testing.assert_array_equal(after[:, rest], before[:, rest])
    tokens = outlying.tokens(4, kind="columns")
    seen = values_of(changed, {"layer_norm", "layer_norm_smoothed", "layer_norm_selected"}, tokens)
    np.testing.assert_array_equal(seen["layer_norm_selected"], seen["layer_norm"][..., taken])
    np.testing.assert_array_equal(seen["layer_norm_smoothed"][..., rest], seen["layer_norm"][..., rest])
    assert not seen["layer_norm_smoothed"][..., taken].any()


def test_a_value_without_outliers_has_no_mask() -> None:
    seen = observed("columns")
    level = {place: Channels(*np.ones_like(channels)) for place, channels in seen.items()}
    changed = REWRITES["outlier_columns"].apply(outlying.model("columns"), level, dict.fromkeys(seen, 8.0))
    assert changed.state["up.outliers.weight"].shape[1] == len(outlying.HEAVY)
    assert not any(group.op == "mul" for group in changed.groups)
    assert changed.macs - outlying.model("columns").macs == outlying.TOKENS * outlying.HIDDEN * len(outlying.HEAVY)


def test_low_rank_is_the_best_there_is_for_the_channels_of_the_input() -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(24, 40)).astype(np.float32)
    mean, deviation = random.normal(size=40).astype(np.float32), random.uniform(0.1, 5, 40).astype(np.float32)
    zeros = np.zeros_like(mean)
    found = parts(weight, Channels(zeros, zeros, mean, zeros, deviation), 1 / 8)
    assert found.up.shape == (24, 3) and found.down.shape == (3, 40)
    np.testing.assert_allclose(found.up @ found.down + found.rest, weight, atol=1e-6)
    scale = np.sqrt(mean.astype(np.float64) ** 2 + deviation.astype(np.float64) ** 2)
    scaled = weight * scale
    # the best of rank 3: the rows projected on the three leading eigenvectors of the scaled columns' products
    _, vectors = np.linalg.eigh(scaled @ scaled.T)
    leading = vectors[:, -3:]
    np.testing.assert_allclose(found.up @ found.down, leading @ leading.T @ scaled / scale, atol=1e-5)


def test_noise_alone_is_not_worth_a_branch_and_a_planted_rank_is() -> None:
    random = np.random.default_rng(1)
    noise = random.normal(size=(64, 64)).astype(np.float32)
    rows, ones = random.normal(size=(50, 64)).astype(np.float32), np.ones(64, np.float32)
    channels, kernels = (
        Channels(-ones, ones, 0 * ones, ones, ones),
        [k for k in RUNTIMES[0].kernels if k.weights == "int4"],
    )
    assert best_share([noise], kernels, channels, rows) == 0
    large = np.outer(random.normal(size=64) ** 3, random.normal(size=64) ** 3).astype(np.float32)
    assert best_share([noise + large], kernels, channels, rows) == 1 / 64
    assert best_share([noise + large], [], channels, rows) == 0


@pytest.mark.parametrize("by", RUNTIMES, ids=lambda runtime: runtime.name)
@pytest.mark.parametrize("kind", HOW)
def test_branches_stay_in_float_whatever_is_chosen(kind: str, by: Runtime) -> None:
    changed = apart(kind)
    histograms = calibrate(changed, outlying.inputs(kind, 8)).histograms
    offered = ladder(changed, by, histograms)
    assert {name for name in BRANCHES[kind] if offered[name] == (FLOAT,)} == BRANCHES[kind]
    found = assign(changed, by, histograms)
    assert found.kernels.keys() >= {"up", "down"} and found.kernels.keys().isdisjoint(BRANCHES[kind])
    values = {name.replace(".", "_") for name in BRANCHES[kind]} | ({"linear_rest"} if by.float_outputs else set())
    assert values.isdisjoint(found.tensors), "the sum is of floats where the layer can write one"


@pytest.mark.parametrize("choice", ["w4", "w4a8"])
@pytest.mark.parametrize("kind", HOW)
def test_few_bits_keep_more(kind: str, choice: str) -> None:
    by, inputs = RUNTIMES[0], outlying.inputs(kind, 32)

    def kept(model: Model) -> float:
        choices = {group.name: choice if group.name in ("up", "down") else FLOAT for group in model.groups}
        return sqnr_of(model, quantize_model(model, by, calibrate(model, inputs), choices=choices), inputs)

    assert kept(apart(kind)) > kept(outlying.model(kind)) + 8


@pytest.mark.parametrize("kind", HOW)
def test_it_is_chosen_where_it_gains_more_than_it_costs(kind: str) -> None:
    model, rewrite = outlying.model(kind), REWRITES[HOW[kind][0]]
    samples = split(outlying.inputs(kind, 64))
    seen = channels_of(model, samples.observed, rewrite.places(model, RUNTIMES))
    chosen = rewrite.choose(Asked(model, RUNTIMES, samples, seen, Silent()))
    changed = rewrite.apply(model, seen, chosen.parameters)
    gains = np.subtract(chosen.after, chosen.before)
    added = sum(array.size for array in changed.state.values()) - sum(array.size for array in model.state.values())
    weights = 2 * outlying.WIDTH * outlying.HIDDEN + outlying.WIDTH + outlying.HIDDEN
    assert price_of(model, changed) == pytest.approx(6.02 * 32 * added / weights, rel=1e-3)
    assert gains.mean() > price_of(model, changed) + 5 and gains.min() > -0.5, gains


def test_layers_that_shared_a_weight_have_branches_of_their_own_that_can_be_exported() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.sin(self.layer(x)))

    torch.manual_seed(2)
    x = torch.randn(2, 16)
    model = load(Twice().eval(), example=(x,))
    places = REWRITES["low_rank"].places(model, RUNTIMES)
    seen = channels_of(model, {model.inputs[0].name: x.numpy()}, places)
    changed = REWRITES["low_rank"].apply(model, seen, dict.fromkeys(places, 1 / 8))
    assert len(places) == 2 and changed.macs == model.macs + 2 * 2 * 2 * 16
    torch.testing.assert_close(changed.exported().module()(x), model.run([[x]])[0][0], rtol=1e-4, atol=1e-5)


def test_low_rank_is_not_tried_where_no_runtime_has_few_bits() -> None:
    assert not REWRITES["low_rank"].places(outlying.model("rank"), load_target("mcu-cortex-m").runtimes)


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("kind", HOW)
def test_an_artefact_gains_in_its_runtime_and_its_plan_gives_it_again_to_the_bit(
    kind: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "cache"))
    model, (name, parameter) = outlying.model(kind), HOW[kind]
    data = {"calibration": outlying.data(kind, 32), "evaluation": outlying.data(kind, 32, seed=9)}
    how = {"target": "x86-avx512", **data, "format": form, "device": "local", "method": "nearest"}
    plain = deploy(model, **how, out=tmp_path / "plain", rewrites={})
    changed = deploy(model, **how, out=tmp_path / "apart", rewrites={name: dict.fromkeys(observed(kind), parameter)})
    lost = [report.builds[0].accuracy.sqnr_db for report in (plain, changed)]
    assert lost[1] > lost[0] + 8, lost
    in_float = {operator.layer: operator.reason for operator in changed.builds[0].audit.float_operators}
    assert all(in_float[layer] == "a rewrite keeps it in float" for layer in BRANCHES[kind])
    made = read_plan(tmp_path / "apart" / "plan.json")
    layer = next(layer for layer in made.layers if layer.name == "up")
    assert layer.weight is not None and layer.weight.algorithm.startswith(REWRITES[name].title)
    del how["method"], how["format"]
    deploy(model, **how, out=tmp_path / "again", plan=made)
    one, other = ((tmp_path / folder / FILES[form]).read_bytes() for folder in ("apart", "again"))
    assert one == other
