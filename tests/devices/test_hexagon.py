"""Hexagon: artefacts run in Qualcomm's emulation of the processor, and the report says what fell back to the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import trained_model
from onnx import numpy_helper
from torch import nn

from edgeq.api.deploy import deploy
from edgeq.cli.app import run
from edgeq.devices import Candidate, device_status, open_device
from edgeq.errors import DeviceError, MissingExtraError, UsageError
from edgeq.limits import Limits
from edgeq.plans.plan import read_plan
from edgeq.records.schema import Build
from edgeq.runtimes import runtime

QNN = "onnxruntime-qnn"

needs_qnn = pytest.mark.skipif(not runtime(QNN).available(), reason=f"{QNN} is not installed")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_model.make(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "cache"))


def built(files: Path, out: Path, **changes: object) -> Build:
    data = {"calibration": files / "calib.npz", "evaluation": files / "eval.npz"}
    given = {"target": "npu-hexagon", "effort": "fast", **data, **changes}
    return deploy(files / "model.pt2", out=out, **given).builds[0]  # type: ignore[arg-type]


WIDE = {"w8a8": "w8a16", "a8": "a16"}


@needs_qnn
def test_all_of_a_network_runs_on_the_processor(files: Path, tmp_path: Path) -> None:
    limits = Limits.parse(max_drop="2%", max_fallback=0)
    narrow = built(files, tmp_path / "narrow", limits=limits)
    plan = read_plan(tmp_path / "narrow/plan.json")
    layers = [one.model_copy(update={"choice": WIDE.get(one.choice, one.choice)}) for one in plan.layers]
    wide = built(files, tmp_path / "wide", plan=plan.model_copy(update={"layers": layers}), limits=limits)
    for build in (narrow, wide):
        assert build.validated and build.emulated and build.speed is None and build.accuracy is not None
        assert build.fallen_back == [] and all(gate.passed for gate in build.gates)
        assert {gate.name for gate in build.gates} == {"recognizable", "accuracy drop", "fallback"}
        assert {row.where for row in build.placements if "uantize" not in row.op} == {"QNN"}
    assert narrow.accuracy is not None and wide.accuracy is not None
    assert (wide.accuracy.sqnr_db or 0) > (narrow.accuracy.sqnr_db or 0) + 6


@needs_qnn
def test_what_the_processor_does_not_take_is_named_and_gated(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            y = self.conv(image)
            return self.head(torch.det(y[:, :, :3, :3])[:, :, None, None] + y)

    torch.manual_seed(0)
    x = np.random.default_rng(0).standard_normal((40, 3, 9, 9), np.float32)
    np.savez(tmp_path / "x.npz", image=x)
    limits = Limits.parse(max_fallback=0, allow_unrecognizable=True)
    given = {"calibration": tmp_path / "x.npz", "evaluation": tmp_path / "x.npz", "inputs": ["1x3x9x9"]}
    out = tmp_path / "out"
    report = deploy(Net().eval(), target="npu-hexagon", effort="fast", limits=limits, out=out, **given)  # type: ignore[arg-type]
    (build,) = report.builds
    assert build.fallen_back and any(row.op == "Det" for row in build.placements if row.where != "QNN")
    (gate,) = [gate for gate in build.gates if gate.name == "fallback"]
    assert not gate.passed and build.fallen_back[0] in gate.reason and report.verdict == "failed"


@needs_qnn
def test_parts_of_very_different_ranges_are_joined_on_the_processor(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 4, 1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            low = nn.functional.interpolate(self.low(image), scale_factor=2.0, mode="nearest")
            high = nn.functional.interpolate(100 * self.high(image), scale_factor=2.0, mode="nearest")
            return self.head(torch.cat([low, high], 1))

    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        net.head.weight[:, 4:] /= 100  # both parts count
    x = np.random.default_rng(0).standard_normal((40, 3, 9, 9), np.float32)
    np.savez(tmp_path / "x.npz", image=x)
    given = {"calibration": tmp_path / "x.npz", "evaluation": tmp_path / "x.npz", "inputs": ["1x3x9x9"]}
    limits = Limits.parse(max_fallback=0, allow_unrecognizable=True)
    report = deploy(net, target="npu-hexagon", effort="fast", limits=limits, out=tmp_path / "out", **given)  # type: ignore[arg-type]
    (build,) = report.builds
    assert build.fallen_back == [] and build.audit is not None and build.audit.float_operators == []


@needs_qnn
def test_weights_that_the_cpu_makes_real_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A range beyond the bound of the ReLU6 in front of it: the convolution is computed in float, on the processor."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        net[0].weight *= 8  # type: ignore[operator]
    torch.export.save(torch.export.export(net, (torch.randn(1, 3, 9, 9),)), tmp_path / "net.pt2")
    np.savez(tmp_path / "x.npz", input=np.random.default_rng(0).standard_normal((40, 3, 9, 9), np.float32))
    data = {"calibration": tmp_path / "x.npz", "evaluation": tmp_path / "x.npz"}
    report = deploy(tmp_path / "net.pt2", target="npu-hexagon", effort="fast", out=tmp_path / "out", **data)  # type: ignore[arg-type]
    assert report.builds[0].fallen_back == []
    file = onnx.load(tmp_path / "out/model.onnx")
    (clip,) = [node for node in file.graph.node if node.op_type == "Clip"]
    (ends,) = [node.input[1] for node in file.graph.node if node.input[0] == clip.output[0]]
    (scale,) = [held for held in file.graph.initializer if held.name == ends]
    scale.CopyFrom(numpy_helper.from_array(np.float32(1.02) * numpy_helper.to_array(scale), ends))
    onnx.save(file, tmp_path / "wider.onnx")
    words = ["validate", str(tmp_path / "wider.onnx"), "--target", "npu-hexagon", "--model", str(tmp_path / "net.pt2")]
    assert run([*words, "--eval", str(tmp_path / "x.npz"), "--max-fallback", "0"]) == 3
    assert "instead of the accelerator" in " ".join(capsys.readouterr().out.split())


@needs_qnn
def test_a_context_is_compiled_for_the_processor_of_the_profile(files: Path, tmp_path: Path) -> None:
    build = built(files, tmp_path / "out", emit="context", profile="snapdragon-8-gen-3-npu")
    assert set(build.sources) == {"model_ctx.onnx"} and build.size_bytes == sum(build.files.values())
    made = onnx.load(tmp_path / "out/model_ctx.onnx")
    assert {node.op_type for node in made.graph.node} >= {"EPContext"}
    assert [port.name for port in made.graph.input] == ["image"]
    assert "model_ctx.onnx" in (tmp_path / "out/edgeq.lock").read_text()
    (tmp_path / "other.toml").write_text(
        'extends = "snapdragon-8-gen-3-npu"\nname = "other"\n[qnn]\nsoc_model = "60"\nhtp_arch = "73"\n'
    )
    built(files, tmp_path / "other", emit="context", profile=str(tmp_path / "other.toml"))
    assert (tmp_path / "other/model_ctx.onnx").read_bytes() != (tmp_path / "out/model_ctx.onnx").read_bytes()


@needs_qnn
def test_a_context_wants_to_know_its_processor(files: Path, tmp_path: Path) -> None:
    (tmp_path / "bare.toml").write_text(
        'schema = 1\nname = "bare"\ntarget = "npu-hexagon"\nsummary = "no table"\nlink = "adb"\n'
    )
    with pytest.raises(UsageError, match="compiled for") as found:
        built(files, tmp_path / "out", emit="context", profile=str(tmp_path / "bare.toml"))
    assert "[qnn]" in found.value.remedy and not (tmp_path / "out").exists()


def test_a_limit_on_what_falls_back_wants_an_accelerator(files: Path, tmp_path: Path) -> None:
    limits = Limits.parse(max_fallback=0, allow_slower=True)
    build = built(files, tmp_path / "out", target="arm-neon", format="onnx", device="local", limits=limits)
    (gate,) = [gate for gate in build.gates if gate.name == "fallback"]
    assert not gate.passed and "no accelerator" in gate.reason and build.fallen_back is None


@needs_qnn
def test_the_emulation_is_called_so(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built(files, tmp_path / "out")
    artifact = Candidate(tmp_path / "out/model.onnx", QNN)
    inputs = {"image": np.load(files / "eval.npz")["image"][:2]}
    with pytest.raises(DeviceError, match="no Hexagon processor here"):
        open_device("local").outputs(artifact, inputs)
    with pytest.raises(DeviceError, match="emulated"):
        open_device("hexagon").latency({"a": artifact}, inputs)
    assert "emulator" in open_device("hexagon").environment(QNN)
    assert next(one for one in device_status() if one.name == "hexagon").emulated
    words = ["--model", str(files / "model.pt2"), "--eval", str(files / "eval.npz"), "--device", "hexagon"]
    assert run(["validate", str(tmp_path / "out"), *words]) == 0
    assert "emulated" in capsys.readouterr().out


def test_without_the_library_it_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(runtime(QNN)), "available", lambda self: False)
    with pytest.raises(MissingExtraError, match="onnxruntime-qnn") as found:
        open_device("hexagon")
    assert "edgeq[qnn]" in found.value.remedy
    with pytest.raises(UsageError):
        open_device("hexagon:v75")
