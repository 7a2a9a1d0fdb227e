"""What runtimes make of layers in float between layers on integers: told beforehand, and seen in ONNX Runtime."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path

import pytest
import small_models as small
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeq.calibration.calibrate import calibrate
from edgeq.devices import open_device
from edgeq.export.artifact import Exporter
from edgeq.frontends.load import load
from edgeq.lowering.as_run import as_run
from edgeq.lowering.assign import FLOAT, assign
from edgeq.lowering.choices import ladder
from edgeq.lowering.form import form
from edgeq.lowering.space import Space
from edgeq.model.ops import WEIGHTED
from edgeq.planning.costs.builds import build_all, observe
from edgeq.progress import Silent


class Stem(nn.Module):
    """A max pooling behind the first convolution, and an addition that a convolution reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
        self.last = nn.Conv2d(16, 8, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(torch.relu(self.first(image)), 2)
        found: torch.Tensor = self.last(torch.relu(self.left(x)) + torch.relu(self.right(x)))
        return found


def test_onnx_runtime_runs_them_as_it_is_said(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, images = Stem().eval(), torch.randn(8, 3, 20, 20)
    model, by = load(net, example=(images[:2],)), small.runtime("onnxruntime")
    name = model.inputs[0].name
    calibration = calibrate(model, {name: images.numpy()})
    options = ladder(model, by, calibration.histograms)
    ops = {group.name: group.op for group in model.groups}
    plans = {}
    for integers in product((True, False), repeat=len(options)):
        plan = {
            name: offered[0] if on else FLOAT for (name, offered), on in zip(options.items(), integers, strict=True)
        }
        followed = assign(model, by, calibration.histograms, plan)
        plans[str(integers)] = {name: followed.choice(name) for name in plan}
    plans = {str(plan): plan for plan in plans.values()}
    (tmp_path / "floats").mkdir()
    exporter = Exporter(model, tmp_path / "floats")
    built = build_all(model, by, calibration, plans, exporter, tmp_path, Silent())
    one, labels = {name: images[:1].numpy()}, exporter.labels("onnx")
    seen = observe(model, built, open_device("local"), one, labels, 1, Silent())
    told = {True: 0, False: 0}
    for build in seen:
        said = as_run(Space(model, by, options), build.choices)
        for layer, words in build.ran_as.items():
            if ops[layer] not in ("add", "max_pool2d"):
                continue
            account = " ".join(words)
            on_integers = "QLinearAdd" in account or "NhwcMaxPool" in account
            assert on_integers == (form(said[layer]) is not None), (layer, account, build.choices)
            told[build.choices[layer] != said[layer]] += 1
    assert min(told.values()) > 4


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "litert"])
@pytest.mark.parametrize("name", ["residual", "split-shuffle", "gate", "two-outputs"])
@settings(max_examples=25, deadline=None)
@given(rng=st.randoms(use_true_random=False))
def test_layers_with_weights_and_tflite_files_mean_what_they_say(name: str, runtime: str, rng: random.Random) -> None:
    model, by = small.model(name), small.runtime(runtime)
    histograms = small.calibration(name).histograms
    options = ladder(model, by, histograms)
    picked = {g: rng.choice(offered) for g, offered in options.items()}
    followed = assign(model, by, histograms, picked)
    plan = {g: followed.choice(g) for g in picked}
    ran = as_run(Space(model, by, options), plan)
    changed = {g for g in plan if plan[g] != ran[g]}
    assert not changed & {g.name for g in model.groups if g.op in WEIGHTED}
    assert all(form(plan[g]) is None and form(ran[g]) is not None and ran[g] in options[g] for g in changed)
    assert as_run(Space(model, by, options), ran) == ran
    assert runtime != "litert" or not changed
