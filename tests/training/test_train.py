"""From a plan to a trained file and to an artefact; interrupted, resumed, refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import few_bits
import numpy as np
import onnxruntime
import pytest
import torch

import edgeq
from edgeq.errors import UsageError
from edgeq.frontends.load import load
from edgeq.training.augment import crop_flip
from edgeq.training.checkpoint import place_of
from edgeq.training.loop import AUTOCAST, Steps
from edgeq.training.train import Trained, train_model


def train(out: Path, inner: str = "w4a4", **more: Any) -> Trained:
    folder = few_bits.folder()
    asked = {"labels": True, "steps": Steps(4, 64, seed=3), **more}
    return train_model(
        folder / "model.pt2",
        train=folder / "train.npz",
        plan=few_bits.plan(inner),
        target=str(folder / "few-bits.toml"),
        out=out,
        **asked,
    )


def answers(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate(
        [session.run(None, {session.get_inputs()[0].name: images[i : i + 1]})[0] for i in range(len(images))]
    )


@pytest.mark.parametrize(
    "aims", [{"labels": True}, {"labels": False, "distill": True}, {"labels": False, "features": True}]
)
def test_learning_betters_what_rounding_left(aims: dict[str, bool], tmp_path: Path) -> None:
    trained = train(tmp_path / "trained.pt", "w2a4", **aims)
    first, best = trained.epochs[0], trained.epochs[trained.best]
    assert best.held_out < 0.8 * first.held_out
    assert [one.number for one in trained.epochs] == [0, 1, 2, 3, 4]
    assert not place_of(tmp_path / "trained.pt").exists()


def test_the_artefact_holds_what_was_trained_and_answers_alike(tmp_path: Path) -> None:
    folder = few_bits.folder()
    trained = train(tmp_path / "trained.pt")
    report = edgeq.deploy(
        str(trained.out),
        plan=few_bits.plan("w4a4"),
        target=str(folder / "few-bits.toml"),
        device="local",
        calibration=str(folder / "calib.npz"),
        evaluation=str(folder / "eval.npz"),
        limits=edgeq.Limits(allow_slower=True),
        out=tmp_path / "build",
    )
    assert report.builds[0].audit is not None
    data = np.load(folder / "eval.npz")
    model = load(trained.out)
    with torch.no_grad():
        from edgeq.model.execute import execute

        expected = execute(model.reference(), [[torch.from_numpy(data["image"])]])[0][0].numpy()
    found = answers(tmp_path / "build" / "model.onnx", data["image"])
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.99
    assert (found.argmax(1) == data["labels"]).mean() > 0.9


def test_without_a_plan_layers_are_what_the_file_says(tmp_path: Path) -> None:
    folder = few_bits.folder()
    trained = train(tmp_path / "trained.pt")
    edgeq.deploy(
        str(trained.out),
        target=str(folder / "few-bits.toml"),
        format="onnx",
        device="local",
        calibration=str(folder / "calib.npz"),
        out=tmp_path / "build",
    )
    from edgeq.plans.plan import read_plan

    built = {layer.name: layer.choice for layer in read_plan(tmp_path / "build" / "plan.json").layers}
    assert built == {layer.name: layer.choice for layer in few_bits.plan("w4a4").layers}


def test_the_same_seed_gives_the_same_network_and_another_does_not(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.pt" for i in range(3)]
    for file, seed in zip(files, (3, 3, 4), strict=True):
        train(file, "w2a4", augment="few_bits:noisy", steps=Steps(3, 64, seed=seed))
    same, again, other = (load(file).fingerprint for file in files)
    assert same == again != other


def test_a_run_that_is_killed_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    """In a process of its own, which is killed once it has left a checkpoint."""
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
import edgeq.training.loop as loop
from pathlib import Path
import test_train, time
loop.BETWEEN = 0.0
loop_step = loop._step
def slowly(*args):
    time.sleep(0.05)
    return loop_step(*args)
loop._step = slowly
test_train.train(Path({str(tmp_path / "killed.pt")!r}), "w2a4", augment="few_bits:noisy")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    running = subprocess.Popen([sys.executable, "-c", script], env=environment)
    checkpoint = place_of(tmp_path / "killed.pt")
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.02)
    assert checkpoint.exists()
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "killed.pt").exists()
    train(tmp_path / "killed.pt", "w2a4", augment="few_bits:noisy")
    train(tmp_path / "whole.pt", "w2a4", augment="few_bits:noisy")
    one, other = (load(tmp_path / name) for name in ("killed.pt", "whole.pt"))
    assert one.fingerprint == other.fingerprint
    assert not checkpoint.exists()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"labels": False}, "nothing says what to learn"),
        ({"augment": "twist"}, "no augmentation"),
        ({"ranges": "magic"}, "ranges"),
        ({"steps": Steps(0)}, "less than one epoch"),
    ],
)
def test_wrong_requests_are_refused_before_any_work(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        train(tmp_path / "trained.pt", **change)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "trained.pt").write_text("precious")
    with pytest.raises(UsageError, match="there already"):
        train(tmp_path / "trained.pt")
    assert (tmp_path / "trained.pt").read_text() == "precious"


@pytest.mark.parametrize("broken", [b"", b"nonsense", None])
def test_a_checkpoint_of_something_else_is_named(broken: bytes | None, tmp_path: Path) -> None:
    checkpoint = place_of(tmp_path / "trained.pt")
    if broken is None:
        torch.save(
            {"key": "another", "step": 1, "view": {}, "optimizer": {}, "scaler": {}, "best": {}, "epochs": []},
            checkpoint,
        )
    else:
        checkpoint.write_bytes(broken)
    with pytest.raises(UsageError, match="the checkpoint is "):
        train(tmp_path / "trained.pt")
    assert checkpoint.exists()


def test_crops_and_mirrors_come_from_the_generator_alone() -> None:
    images = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8).float()
    one, same = (crop_flip((images,), torch.Generator().manual_seed(5))[0] for _ in range(2))
    other = crop_flip((images,), torch.Generator().manual_seed(6))[0]
    assert torch.equal(one, same) and not torch.equal(one, other) and one.shape == images.shape
    assert set(one.flatten().tolist()) <= set(images.flatten().tolist()) | {0.0}


@pytest.mark.parametrize("kind", AUTOCAST)
def test_products_in_16_bits_learn_too(kind: str, tmp_path: Path) -> None:
    trained = train(tmp_path / "trained.pt", "w2a4", steps=Steps(4, 64, seed=3, autocast=kind))
    assert trained.epochs[trained.best].held_out < 0.8 * trained.epochs[0].held_out
    other = train(tmp_path / "float32.pt", "w2a4")
    assert trained.epochs[0][1:4] == other.epochs[0][1:4]  # judged in float32, as the artefact computes
    assert trained.epochs[1].loss != other.epochs[1].loss
