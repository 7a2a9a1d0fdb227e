"""A link that edgeq does not know comes in by one function and one entry: those that the guide shows."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import trained_model

from edgeq.cli.app import run
from edgeq.devices.links import LINKS

GUIDE = Path(__file__).parents[2] / "docs" / "links.md"


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    assert len(code.splitlines()) <= 60
    monkeypatch.setitem(LINKS, "board", LINKS["local"])  # taken out again after the test
    found: dict[str, Any] = {}
    exec(code.replace("/tmp/edgeq", str(tmp_path / "board")).replace('["python3"]', repr([sys.executable])), found)
    return found


def test_a_link_comes_in_by_a_function_and_an_entry(shown: dict[str, Any], tmp_path: Path) -> None:
    files = trained_model.make(tmp_path)
    data = ["--calib", str(files / "calib.npz"), "--eval", str(files / "eval.npz"), "--allow-slower", "--quiet"]
    where = ["--target", "x86-avx512", "--format", "onnx", "--device", "board"]
    assert run(["deploy", str(files / "model.pt2"), *where, *data, "--out", str(tmp_path / "build")]) == 0
    report = json.loads((tmp_path / "build" / "report.json").read_text())
    (build,) = report["builds"]
    assert build["device"] == "board" and build["accuracy"]["score"] > 90 and build["speed"] is not None
    assert list((tmp_path / "board").iterdir()) == [], "nothing is left there"
    assert run(["verify", str(tmp_path / "build"), "--device", "board", "--quiet"]) == 0


def test_a_board_that_is_off_is_an_error_of_the_device(shown: dict[str, Any], tmp_path: Path) -> None:
    files = trained_model.make(tmp_path)
    shown["SHELL"][:] = ["false"]
    data = ["--calib", str(files / "calib.npz"), "--eval", str(files / "eval.npz"), "--quiet"]
    where = ["--target", "x86-avx512", "--format", "onnx", "--device", "board"]
    assert run(["deploy", str(files / "model.pt2"), *where, *data, "--out", str(tmp_path / "build")]) == 5
    assert not (tmp_path / "build").exists()
