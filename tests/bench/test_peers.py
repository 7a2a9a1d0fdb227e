"""The bench beside other tools: what becomes of a tool that fails, and what is shown of rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import peers
from peer_page import Row, page
from peer_tools.job import Job
from peer_tools.process import last_line, make
from peer_tools.table import Tool

GOOD = Row(
    model="m", runtime="onnxruntime", precision="w8a8", tool="ours", version="1.0", metric="top-1", score=90.0,
    float_score=91.0, drop=1.0, drop_low=0.5, drop_high=1.5, agreement=98.0, size=2500, float_size=9000, latency=0.5,
    latency_low=0.45, latency_high=0.55, latency_to_ours=1.0, seconds=3.0, units=0.5, peak_bytes=400_000_000,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with its data, and modules of tools beside it."""
    place = tmp_path / "tiny"
    place.mkdir()
    x = torch.zeros(1, 4)
    torch.export.save(torch.export.export(torch.nn.Linear(4, 3), (x,)), place / "model.pt2")
    for name in ("calibration", "evaluation"):
        np.savez(place / f"{name}.npz", input=np.zeros((8, 4), np.float32))
    (tmp_path / "raises.py").write_text("print('begun')\nraise ValueError('there is no such layer')\n")
    (tmp_path / "writes.py").write_text(
        "from peer_tools.job import carry_out\n"
        "def quantize(job):\n"
        "    with job.timed('quantize'):\n"
        "        job.out.write_bytes(b'x' * len(job.samples()))\n"
        "carry_out(quantize, 'numpy')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return place


def job(folder: Path) -> Job:
    out = folder.parent / "made" / "model.onnx"
    return Job(folder / "model.pt2", folder / "calibration.npz", out, "onnx")


def test_a_tool_that_raises_is_a_row_with_the_last_line_of_its_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {
        "broken": Tool("raises", "nothing", {"onnx": ("w8a8",)}),
        "absent": Tool("nowhere", "", {"onnx": ("w8a8",)}),
    }
    monkeypatch.setattr(peers, "TOOLS", broken)
    peers.main(["--out", str(tmp_path / "out"), "--page", str(tmp_path / "page.md"), str(folder), "--tools", *broken])
    rows = json.loads((tmp_path / "out" / "peers.json").read_text())
    assert [row["tool"] for row in rows] == ["broken", "absent"]
    assert rows[0]["error"] == "ValueError: there is no such layer"
    assert "nowhere" in rows[1]["error"]
    assert "| broken | w8a8 | none: ValueError: there is no such layer |" in (tmp_path / "page.md").read_text()


def test_what_a_tool_made_is_kept_with_its_time_and_its_memory(folder: Path, tmp_path: Path) -> None:
    tool = Tool("writes", "eight bytes", {"onnx": ("w8a8",)})
    made = make(tool, job(folder), tmp_path)
    assert made.error == "" and made.version == np.__version__
    assert made.seconds is not None and made.peak_bytes is not None and made.peak_bytes > 1e6
    assert job(folder).out.read_bytes() == b"x" * 8
    assert make(tool._replace(module="raises"), job(folder), tmp_path) == made, "it is not made twice"


def test_a_tool_has_so_many_minutes(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sleeps.py").write_text("import time\ntime.sleep(60)\n")
    made = make(Tool("sleeps", "", {}), job(folder), tmp_path, minutes=0.01)
    assert made.error == "it was not done after 0.01 minutes"


CPU = {"cpu": "Some CPU", "cpu_isa": "avx2"}


def test_a_page_has_a_line_for_each_row() -> None:
    text = page(
        [GOOD, Row("m", "onnxruntime", "w4a8", "theirs", error="no | such")], {"ours": "all"}, "run", "ours", "x", CPU
    )
    assert "## m in onnxruntime" in text and "top-1 91.00 %, 9.0 kB" in text and "| ours | 1.0 | all |" in text
    cells = "90.00 | 1.00 (0.50 to 1.50) | 98.00 | 2.5 | 0.50 (0.45 to 0.55) [1.00] | 3.0 s [0.50] | 400 MB |"
    assert f"| ours | w8a8 | {cells}" in text
    assert "| theirs | w4a8 | none: no \\| such |" in text


def test_the_last_line_is_not_what_pip_says_of_itself() -> None:
    assert (
        last_line("ERROR: nothing fits\nWARNING: a mirror is ignored\n[notice] a new pip\n\n") == "ERROR: nothing fits"
    )
