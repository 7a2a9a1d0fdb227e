"""Plans of a network whose samples differ much in size: no calibrated scale holds them, one for each call does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_models as small
import torch
from torch import nn

from edgeq.api.deploy import deploy
from edgeq.limits import Limits
from edgeq.planning.planner import plan
from edgeq.plans.plan import Plan

RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "tflite": "ai_edge_litert"}
FLOAT32 = """
extends = "x86-avx512"
name = "float32"

[[runtimes]]
name = "openvino"
float_alternatives = []
"""
"""A target without bfloat16, which on some CPUs is faster than all else."""

ROWS, INPUTS, CLASSES = 16, 256, 8


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(INPUTS, 512, bias=False), nn.Linear(512, INPUTS, bias=False)
        self.head = nn.Linear(INPUTS, CLASSES, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((x + self.down(torch.tanh(self.up(x)))).mean(1))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that was not trained, and what it says itself of samples that span four powers of ten, each with its
    opposite: a mean that is not zero would be corrected in biases, which small samples would drown in."""
    folder = tmp_path_factory.mktemp("tokens")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = Tokens().eval()
    half = torch.randn(128, ROWS, INPUTS) * 10 ** (4 * torch.rand(128, 1, 1) - 3)
    x = torch.stack([half, -half], 1).flatten(0, 1)
    torch.export.save(torch.export.export(net, (x[:1],)), folder / "model.pt2")
    with torch.no_grad():
        labels = net(x).argmax(1)
    np.savez(folder / "calib.npz", x=x[:64].numpy())
    np.savez(folder / "eval.npz", x=x[64:].numpy(), label=labels[64:].numpy())
    (folder / "float32.toml").write_text(FLOAT32)
    return folder


def planned(files: Path, form: str) -> Plan:
    pytest.importorskip(RUNTIMES[form])
    return plan(
        files / "model.pt2",
        target=str(files / "float32.toml"),
        calibration=files / "calib.npz",
        evaluation=files / "eval.npz",
        format=form,
        limits=Limits.parse(max_drop="5%"),
    )


@pytest.mark.skipif(small.SATURATES, reason="without VNNI, integers that are rounded in every call are not faster")
@pytest.mark.parametrize("form", RUNTIMES)
def test_it_is_planned_where_calibrated_integers_lose_and_deployed_as_planned(
    files: Path, form: str, tmp_path: Path
) -> None:
    found = planned(files, form)
    layers = {layer.name: layer for layer in found.layers}
    large = [layers["up"], layers["down"]]
    for layer in large:
        assert layer.alternatives["w8a8dyn"]["latency"] < layer.alternatives["float32"]["latency"]
        assert layer.choice.endswith("dyn")
    assert found.planned is not None and found.planned.proof is not None and found.planned.proof.held
    assert found.planned.proof.loss is not None
    assert found.planned.predicted["loss"] == pytest.approx(found.planned.proof.loss, rel=0.75)
    report = deploy(
        files / "model.pt2",
        target=str(files / "float32.toml"),
        calibration=files / "calib.npz",
        evaluation=files / "eval.npz",
        plan=found,
        out=tmp_path / "out",
    )
    (build,) = report.builds
    assert build.audit is not None and build.audit.integer_mac_percent > 90
