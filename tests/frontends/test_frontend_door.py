"""A frontend that edgeq does not know comes in by one entry of a list: the one that the guide shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edgeq
from edgeq.api.deploy import deploy
from edgeq.errors import UsageError
from edgeq.frontends import read

GUIDE = Path(__file__).parents[2] / "docs" / "frontends.md"


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    code, entry = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    monkeypatch.setattr(read, "FRONTENDS", list(read.FRONTENDS))
    shown: dict[str, Any] = {"FRONTENDS": read.FRONTENDS}
    exec(code + entry, shown)


def written(path: Path) -> list[torch.Tensor]:
    torch.manual_seed(0)
    layers = [(torch.randn(12, 6), torch.randn(12)), (torch.randn(4, 12), torch.randn(4))]
    path.write_text(json.dumps({"linear": [[w.tolist(), b.tolist()] for w, b in layers]}))
    return [tensor for layer in layers for tensor in layer]


def test_a_file_of_another_kind_is_deployed(tmp_path: Path) -> None:
    w, b, v, c = written(tmp_path / "network")
    x = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    inner = np.maximum(x @ w.numpy().T + b.numpy(), 0)
    labels = (inner @ v.numpy().T + c.numpy()).argmax(1)
    np.savez(tmp_path / "calib.npz", input=x)
    np.savez(tmp_path / "eval.npz", input=x, labels=labels)
    report = deploy(
        tmp_path / "network", target="x86-avx512", format="onnx", inputs=["1x6"], out=tmp_path / "build",
        calibration=tmp_path / "calib.npz", evaluation=tmp_path / "eval.npz",
        limits=edgeq.Limits(allow_slower=True),
    )  # fmt: skip
    (build,) = report.builds
    assert build.accuracy is not None and build.accuracy.float_score == 100.0, "the network is the one in the file"
    assert build.accuracy.score is not None and build.accuracy.score > 80


def test_a_broken_one_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "network").write_text('{"linear": [[[1.0, 2.0], 3]]}')
    with pytest.raises(UsageError, match="its layers cannot be read") as error:
        edgeq.load(tmp_path / "network", inputs=["1x2"])
    assert error.value.where == "network"
