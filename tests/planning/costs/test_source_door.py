"""A source of latencies that edgeq does not know comes in by one function and one entry: those that the guide shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import trained_model

from edgeq.cli.app import run
from edgeq.planning.costs import table
from edgeq.planning.costs.source import Bench, Latencies

GUIDE = Path(__file__).parents[3] / "docs" / "costs.md"
TARGET = """
extends = "mcu-cortex-m"
execution = "none"
schema = 1
name = "my-mcu"
summary = "A microcontroller that nobody has measured"
"""


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    assert len(code.splitlines()) <= 60
    monkeypatch.setattr(table, "SOURCES", list(table.SOURCES))
    exec(code, {})
    path = tmp_path / "mcu.toml"
    path.write_text(TARGET)
    return path


def test_a_plan_is_made_by_a_datasheet(target: Path, tmp_path: Path) -> None:
    files = trained_model.make(tmp_path)
    data = ["--calib", str(files / "calib.npz"), "--eval", str(files / "eval.npz"), "--quiet"]
    out = tmp_path / "plan.json"
    assert run(["plan", str(files / "model.pt2"), "--target", str(target), *data, "--out", str(out)]) == 0
    plan = json.loads(out.read_text())
    planned = plan["planned"]
    assert planned["latency_from"] == "modelled" and planned["latency_by"]["by"] == "a datasheet"
    assert any("datasheet" in figure for figure in planned["latency_by"]["figures"])
    costs = {layer["name"]: layer["alternatives"] for layer in plan["layers"] if layer["macs"]}
    for layer in plan["layers"]:
        if layer["macs"]:
            wanted = {"w8a8": 1.2, "float32": 7.5}
            for choice, each in wanted.items():
                if choice in layer["alternatives"]:
                    assert costs[layer["name"]][choice]["latency"] == pytest.approx(each * layer["macs"] / 100e6)
    assert planned["proof"] is None, "nothing was run"


def test_what_nothing_timed_is_not_told_as_measured(
    target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = table.SOURCES[0]

    def forgetful(bench: Bench) -> Latencies | str | None:
        found = told(bench)
        return found._replace(by=None) if isinstance(found, Latencies) else found

    table.SOURCES[0] = forgetful
    files = trained_model.make(tmp_path)
    data = ["--calib", str(files / "calib.npz"), "--eval", str(files / "eval.npz"), "--quiet"]
    out = tmp_path / "plan.json"
    assert run(["plan", str(files / "model.pt2"), "--target", str(target), *data, "--out", str(out)]) == 4
    assert "forgetful gives latencies and does not say what modelled them" in capsys.readouterr().err
    assert not out.exists()
