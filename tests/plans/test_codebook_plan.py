"""A plan with a codebook: its file says so, and what follows it stores the same levels."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import trained_model

from edgeq.cli.app import run


def test_a_plan_keeps_its_codebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deployed, edited by hand, and deployed again: to the bit; a method that cannot is refused by name."""
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "cache"))
    files = trained_model.make(tmp_path)
    what = [str(files / "model.pt2"), "--target", "x86-avx512", "--format", "onnx", "--calib", str(files / "calib.npz")]
    what += ["--eval", str(files / "eval.npz"), "--allow-slower", "--allow-unrecognizable", "--quiet"]
    assert run(["deploy", *what, "--out", str(tmp_path / "first")]) in (0, 3)
    plan = json.loads((tmp_path / "first" / "plan.json").read_text())
    layer = next(one for one in plan["layers"] if one["op"].startswith("conv2d"))
    layer["choice"] = "w4codebook"

    def follow(method: str, out: str) -> int:
        layer["weight"]["method"] = method
        (tmp_path / "edited.json").write_text(json.dumps(plan))
        return run(["deploy", *what, "--plan", str(tmp_path / "edited.json"), "--out", str(tmp_path / out)])

    assert follow("hqq", "refused") == 2
    hashes = []
    for out in ("second", "third"):
        assert follow("gptq", out) in (0, 3)
        made = json.loads((tmp_path / out / "plan.json").read_text())
        (found,) = (one for one in made["layers"] if one["name"] == layer["name"])
        assert (found["choice"], found["weight"]["levels"], found["weight"]["method"]) == (
            "w4codebook",
            "codebook",
            "gptq",
        )
        hashes.append(found["weight"]["sha256"])
        report = json.loads((tmp_path / out / "report.json").read_text())
        (build,) = report["builds"]
        (row,) = (one for one in build["layers"] if one["name"] == layer["name"])
        assert row["weights"] == "uint4 codebook per channel, gptq"
        (left,) = (one for one in build["audit"]["float_operators"] if one["layer"] == layer["name"])
        assert re.search("onnxruntime expands them when it loads the file", left["reason"])
    assert hashes[0] == hashes[1] != layer["weight"]["sha256"]
