"""Calibration data that is made of the model alone, and says so."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import small_models as small
import torch
import trained_model
from torch import nn

from edgeq.api.deploy import deploy
from edgeq.api.verify import verify
from edgeq.cache import Cache
from edgeq.calibration import zeroq
from edgeq.case import Case, given, load_case
from edgeq.data.dataset import Dataset
from edgeq.errors import UsageError
from edgeq.frontends.load import load
from edgeq.limits import Limits
from edgeq.lock import read_lock
from edgeq.model.model import Model
from edgeq.plans.plan import Given, read_plan
from edgeq.plans.remembered import data_of
from edgeq.progress import Clock, Silent
from edgeq.records.schema import Report


@cache
def seen_pixels() -> nn.Module:
    """A network whose batch norms have seen smooth images with values from 0 to 255."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8, momentum=None), nn.ReLU(),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8, momentum=None), nn.ReLU(),
            nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6, momentum=None), nn.Flatten(), nn.Linear(6 * 64, 5),
        )  # fmt: skip
        for _ in range(8):
            coarse = torch.rand(32, 3, 4, 4)
            net(nn.functional.interpolate(coarse, (16, 16), mode="bilinear") * 255)
    return net.eval()


def model_of(net: nn.Module, *, fixed: bool = False) -> Model:
    example = (torch.zeros(1 if fixed else 2, 3, 16, 16),)
    return load(torch.export.export(net, example)) if fixed else load(net, example=example)


def made(model: Model, samples: int = 16) -> tuple[torch.Tensor, float]:
    (images,), left = zeroq.synthesize(model, samples, 0, Silent())
    return torch.from_numpy(images), left


def differences(net: nn.Module, images: torch.Tensor) -> tuple[float, float]:
    """Of what batch norms read from what they have kept, as PyTorch's own modules see it, the mean over channels: how
    far the means are, in deviations, and the logarithms of the deviations."""
    means, deviations = [], []

    def look(norm: nn.BatchNorm2d, read: tuple[torch.Tensor]) -> None:
        kept = norm.running_var.sqrt()  # type: ignore[union-attr]
        means.append(((read[0].mean((0, 2, 3)) - norm.running_mean) / kept).abs())
        deviations.append((read[0].std((0, 2, 3), unbiased=False) / kept).log().abs())

    hooks = [one.register_forward_pre_hook(look) for one in net.modules() if isinstance(one, nn.BatchNorm2d)]  # type: ignore[arg-type]
    with torch.no_grad():
        net(images)
    for hook in hooks:
        hook.remove()
    return float(torch.cat(means).mean()), float(torch.cat(deviations).mean())


@pytest.mark.parametrize("fixed", [False, True])
def test_batch_norms_read_what_they_have_kept(fixed: bool) -> None:
    images, left = made(model_of(seen_pixels(), fixed=fixed))
    assert images.shape == (16, 3, 16, 16) and images.dtype == torch.float32
    mean, deviation = differences(seen_pixels(), images)
    assert mean < 0.1 and deviation < 0.2
    assert left < 0.1
    # nothing said that these are pixels
    assert 100 < images.mean() < 155 and 30 < images.std() < 80
    assert images.mean((1, 2, 3)).std() > 1  # no sample is another
    noise = torch.randn(images.shape) * 60 + 127
    assert all(
        own < 0.5 * others for own, others in zip((mean, deviation), differences(seen_pixels(), noise), strict=True)
    )


def test_the_last_samples_get_sure_answers() -> None:
    images, _ = made(model_of(seen_pixels()), 64)
    with torch.no_grad():
        sure = seen_pixels()(images).softmax(1).amax(1)
    assert sure[56:].mean() > 1.2 * sure[:56].mean()


def test_moments_and_their_gradients_are_those_of_pytorch() -> None:
    value = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    mean, variance = zeroq._moments(value)
    assert torch.allclose(mean, value.mean((0, 2)))
    assert torch.allclose(variance, value.var((0, 2), unbiased=False))
    assert torch.autograd.gradcheck(zeroq._moments, (value,))


def test_what_batch_norms_have_kept_is_found() -> None:
    (norms,) = zeroq.batch_norms(small.model("conv-norm-relu6").reference()).values()
    norm = small.module("conv-norm-relu6").norm
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    assert torch.equal(norms[0].mean, norm.running_mean)
    assert torch.equal(norms[0].variance, norm.running_var + norm.eps)


@pytest.mark.parametrize("name", ["conv1d", "norm-over-tokens", "norm-first", "upconv"])
def test_inputs_of_any_shape_are_made(name: str) -> None:
    model = small.model(name)
    inputs, left = zeroq.synthesize(model, 9, 0, Silent())
    assert [array.shape for array in inputs] == [array.shape for array in small.arrays(name, 9).values()]
    assert np.isfinite(left)


def test_the_same_seed_gives_the_same_samples_with_any_number_of_threads() -> None:
    model, threads = model_of(seen_pixels()), torch.get_num_threads()
    first, _ = made(model)
    try:
        torch.set_num_threads(2)
        again, _ = made(model)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(first, again)
    (other,), _ = zeroq.synthesize(model, 16, 100, Silent())
    assert not np.array_equal(other, first.numpy())


def test_without_batch_norms_or_with_integers_it_is_refused() -> None:
    with pytest.raises(UsageError, match="no batch norms") as error:
        load_case(Case(small.model("mlp"), calibration="synthetic"), Clock(Silent()), Cache(None))
    assert error.value.remedy == "give real samples" and error.value.exit_code == 2

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm = nn.Embedding(20, 12), nn.BatchNorm1d(7)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.norm(self.embed(tokens)).mean(1)  # type: ignore[no-any-return]

    integers = load(Tokens().eval(), example=(torch.zeros(2, 7, dtype=torch.int64),))
    with pytest.raises(UsageError, match="'tokens' takes others"):
        load_case(Case(integers, calibration="synthetic"), Clock(Silent()), Cache(None))


def test_a_second_run_finds_them_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def data() -> Dataset:
        case = Case(model_of(seen_pixels()), calibration="synthetic")
        return load_case(case, Clock(Silent()), Cache(tmp_path)).calibration

    monkeypatch.setattr(zeroq, "STEPS", 2)
    first = data()
    monkeypatch.setattr(zeroq, "synthesize", None)
    assert data().sha256 == first.sha256 and len(first) == 64 and first.recipe == "ZeroQ 1, 64 samples, seed 0"


def test_a_plan_remembers_the_word_and_no_folder_of_that_name() -> None:
    data = Dataset({}, None, "", "", ())
    model = small.model("residual")

    def remembered(calibration: str | Path) -> Given:
        return given(Case(model, calibration=calibration), data)

    assert remembered("synthetic").calibration == "synthetic"
    assert data_of(remembered("synthetic"), "--calib", None, "calibration") == "synthetic"
    assert data_of(remembered(Path("synthetic")), "--calib", None, "calibration") == Path("synthetic")
    with pytest.raises(UsageError, match="there is no evaluation data 'synthetic'"):
        load_case(Case(model, calibration="synthetic", evaluation="synthetic"), Clock(Silent()), Cache(None))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_model.make(tmp_path_factory.mktemp("trained"))


def build(files: Path, out: Path, calibration: str | Path) -> Report:
    return deploy(
        files / "model.pt2",
        target="x86-avx512",
        format="onnx",
        calibration=calibration,
        evaluation=files / "eval.npz",
        limits=Limits(allow_slower=True),
        out=out,
    )


def test_accuracy_is_near_that_of_real_samples_and_all_papers_say_what_it_was(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "kept"))
    report, real = build(files, tmp_path / "out", "synthetic"), build(files, tmp_path / "real", files / "calib.npz")
    found, wanted = (one.builds[0].accuracy for one in (report, real))
    assert found is not None and wanted is not None and found.score is not None and wanted.score is not None
    assert found.score > 90 and abs(found.score - wanted.score) <= 2

    assert report.data["calibration"] == "synthetic"
    assert any("calibration data is synthetic" in warning for warning in report.warnings)
    assert "calibration data is synthetic" in (tmp_path / "out/report.html").read_text()
    lock = read_lock(tmp_path / "out")
    assert lock.recipes == {"calibration": report.data["calibration_recipe"]}
    assert read_lock(tmp_path / "real").recipes == {} and "calibration_recipe" not in real.data
    assert verify(tmp_path / "out").ok

    again = load_case(Case(files / "model.pt2", calibration="synthetic"), Clock(Silent()), Cache(None)).calibration
    assert lock.data["calibration"] == again.sha256 == read_plan(tmp_path / "out/plan.json").data_hash
