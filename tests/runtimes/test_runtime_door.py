"""A runtime that edgeq does not know comes in by one file and one entry: those that the guide shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import trained_model

from edgeq.cli.app import run
from edgeq.runtimes import RUNTIMES

GUIDE = Path(__file__).parents[2] / "docs" / "runtimes.md"


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    text = GUIDE.read_text(encoding="utf-8")
    on_device, entry = re.findall(r"```python\n(.*?)```", text, re.S)
    (shown,) = re.findall(r"```toml\n(.*?)```", text, re.S)
    assert len(on_device.splitlines()) <= 60
    (tmp_path / "reference.py").write_text(on_device)
    (tmp_path / "reference.toml").write_text(shown)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RUNTIMES, "onnx-reference", RUNTIMES["onnxruntime"])  # taken out again after the test
    exec(entry, {})
    return tmp_path / "reference.toml"


def test_a_runtime_comes_in_by_a_file_and_an_entry(target: Path, tmp_path: Path) -> None:
    files = trained_model.make(tmp_path)
    common = ["--calib", str(files / "calib.npz"), "--eval", str(files / "eval.npz"), "--allow-slower", "--quiet"]
    out = tmp_path / "build"
    assert run(["deploy", str(files / "model.pt2"), "--target", str(target), *common, "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    (build,) = report["builds"]
    assert build["runtime"] == "onnx-reference" and build["accuracy"]["score"] > 90
    assert {row["where"] for row in build["placements"]} == {"numpy"}


def test_a_plan_shares_out_times_that_it_does_not_tell(target: Path, tmp_path: Path) -> None:
    files = trained_model.make(tmp_path)
    data = ["--calib", str(files / "calib.npz"), "--eval", str(files / "eval.npz"), "--max-drop", "1%", "--quiet"]
    out = tmp_path / "plan.json"
    assert run(["plan", str(files / "model.pt2"), "--target", str(target), *data, "--out", str(out)]) == 0
    plan = json.loads(out.read_text())
    assert plan["planned"]["latency_from"] == "measured"
    assert 0.3 < plan["planned"]["predicted"]["latency"] / plan["planned"]["proof"]["latency"] < 3
