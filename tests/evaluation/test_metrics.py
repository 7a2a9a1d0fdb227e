"""Metrics: those that edgeq brings, held against plain loops, and one of the user's, as the guide shows it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeq.cli.app import run
from edgeq.errors import UsageError
from edgeq.evaluation.metric import load_metric

GUIDE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_top_5_is_what_sorting_gives() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(200, 12)), rng.integers(0, 12, 200)
    right = sum(label in np.argsort(row)[-5:] for row, label in zip(scores, labels, strict=True))
    assert load_metric("top-5").score(list(scores), labels) == pytest.approx(100 * right / 200)
    with pytest.raises(UsageError, match="4 classes"):
        load_metric("top-5").score(list(scores[:, :4]), labels)


def test_mean_iou_is_that_of_sets() -> None:
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(size=(5, 4, 6, 7)), rng.integers(0, 3, (5, 6, 7))
    labels[:, 0] = 255  # not labelled
    shares = []
    for one in range(4):
        found, wanted = scores.argmax(axis=1) == one, labels == one
        found &= labels != 255
        shares.append((found & wanted).sum() / (found | wanted).sum())
    assert load_metric("mean-iou").score(list(scores), labels) == pytest.approx(100 * np.mean(shares))
    perfect = np.moveaxis(np.eye(4)[np.where(labels == 255, 0, labels)], -1, 1)
    assert load_metric("mean-iou").score(list(perfect), labels) == 100.0, "a class that never occurs does not count"


def test_a_name_that_is_none_is_told_what_there_is() -> None:
    with pytest.raises(UsageError, match="top-7") as error:
        load_metric("top-7")
    assert "top-5" in error.value.remedy and "package.module:function" in error.value.remedy


def test_a_metric_of_the_users_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    monkeypatch.chdir(tmp_path)
    Path("my_metrics.py").write_text(code)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1)).eval()
    x = np.random.default_rng(2).normal(size=(64, 8)).astype(np.float32)
    torch.export.save(torch.export.export(network, (torch.from_numpy(x[:1]),)), "model.pt")
    answers = network(torch.from_numpy(x)).detach().numpy()[:, 0]
    np.savez("calib.npz", input=x)
    np.savez("eval.npz", input=x, labels=answers + 1)
    command, *_ = re.findall(r"```bash\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    words = [
        *command.replace("\\\n", " ").split()[1:],
        "--format",
        "onnx",
        "--allow-slower",
        "--quiet",
        "--out",
        "build",
    ]
    assert run(words) == 0
    (build,) = json.loads(Path("build/report.json").read_text())["builds"]
    accuracy = build["accuracy"]
    assert (accuracy["metric"], accuracy["unit"]) == ("error", "mm")
    assert accuracy["float_score"] == pytest.approx(1.0, abs=1e-4) and accuracy["score"] != accuracy["float_score"]
