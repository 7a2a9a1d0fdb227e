"""Ethos-U: what Vela compiles is part of the build, what it leaves to the CPU is told before the work and counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trained_model
from torch import nn
from typer.testing import CliRunner

from edgeq.api.deploy import deploy
from edgeq.api.verify import verify
from edgeq.cli.app import app
from edgeq.errors import GateError, MissingExtraError
from edgeq.export import vela
from edgeq.limits import Limits
from edgeq.lock import read_lock
from edgeq.records.schema import Build, Report
from edgeq.registry.load import load_profile
from edgeq.runtimes import runtime

if not runtime("tflite-micro").available():
    pytest.skip("tflite-micro is not installed", allow_module_level=True)
pytest.importorskip("ethosu", reason="the ethos-u extra (ethos-u-vela) is not installed")
pytest.importorskip("litert_torch", reason="the tflite extra (litert-torch) is not installed")
from edgeq.export.tflite_graph import Graph


class Exponential(nn.Module):
    """Something that no Ethos-U has from float, between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3)
        self.second = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.exp(self.first(x)))


def operators(path: Path) -> list[str]:
    """Of a file; those of the NPU by the name that they carry."""
    graph = Graph(path.read_bytes())
    codes = graph.model.operatorCodes
    return [
        (codes[o.opcodeIndex].customCode or b"").decode() if graph.kind(o) == "CUSTOM" else graph.kind(o)
        for o in graph.operators
    ]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    files = trained_model.make(tmp_path_factory.mktemp("trained"))
    return {"model": files / "model.pt2", "calibration": files / "calib.npz", "evaluation": files / "eval.npz"}


@pytest.fixture(scope="module")
def exponential(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("exponential")
    torch.manual_seed(0)
    torch.export.save(torch.export.export(Exponential().eval(), (torch.zeros(1, 2, 8, 8),)), folder / "model.pt2")
    x = np.random.default_rng(0).normal(size=(40, 2, 8, 8)).astype(np.float32)
    np.savez(folder / "x.npz", x=x)
    return {"model": folder / "model.pt2", "calibration": folder / "x.npz", "evaluation": folder / "x.npz"}


def built(given: Mapping[str, Any], out: Path, **how: Any) -> Report:
    return deploy(target="npu-ethos-u", effort="fast", out=out, **{**given, **how})


@pytest.fixture(scope="module")
def whole(trained: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Build, Path]:
    out = tmp_path_factory.mktemp("whole") / "out"
    report = built(trained, out, emit="c", limits=Limits.parse(max_drop="2%", max_fallback=0))
    assert report.verdict == "passed" and report.profile == "ethos-u55-128"
    return report.builds[0], out


def test_what_goes_to_the_device_is_part_of_the_build(whole: tuple[Build, Path]) -> None:
    build, out = whole
    compiled = out / "model_vela.tflite"
    assert operators(compiled) == ["ethos-u"], "the NPU runs all of it"
    assert build.npu is not None and build.npu.file == compiled.name and not build.npu.left_to_cpu
    assert build.files == {name: (out / name).stat().st_size for name in ("model.tflite", compiled.name)}
    assert build.size_bytes == compiled.stat().st_size
    assert compiled.name in read_lock(out).files and verify(out).ok
    compiled.write_bytes(compiled.read_bytes()[:-1] + b"?")
    assert verify(out).files_changed == [compiled.name]


def test_every_figure_of_vela_is_told_as_its_estimate(whole: tuple[Build, Path]) -> None:
    build, out = whole
    npu = build.npu
    assert npu is not None and npu.mac_percent == 100
    assert npu.operators == len([op for op in operators(out / "model.tflite") if op != "RESHAPE"])
    assert npu.seconds == pytest.approx(npu.cycles / 500e6), "the clock of its system"
    assert 0 < npu.sram_bytes < 100_000 and 0 < npu.flash_bytes < 100_000 and npu.dram_bytes == 0
    assert f"Estimated by Vela {vela.version()} for ethos-u55-128" in (out / "report.html").read_text()


def test_the_program_registers_the_npu_and_compares_within_a_step(whole: tuple[Build, Path]) -> None:
    _, out = whole
    program = (out / "main.cc").read_text()
    assert "AddEthosU()" in program and "MicroMutableOpResolver<1>" in program
    assert "GOLDEN_TOLERANCE 1" in (out / "golden_data.h").read_text()
    header = (out / "model_data.h").read_text()
    assert "model_vela.tflite, byte for byte" in header and 'MODEL_INPUT_0_NAME "image"' in header


def test_a_limit_that_cannot_hold_is_told_before_the_work(exponential: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"leaves 3 operators to the CPU: .*exp \(Exp\): .*Float32"):
        built(exponential, tmp_path / "out", calibration=exponential["calibration"], limits=Limits(max_fallback=2))
    assert not (tmp_path / "out").exists()


def test_what_is_left_to_the_cpu_is_named_and_counted(exponential: dict[str, Any], tmp_path: Path) -> None:
    report = built(exponential, tmp_path / "out", emit="c", limits=Limits(max_fallback=3))
    (build,) = report.builds
    assert build.npu is not None and build.fallen_back == [left.name for left in build.npu.left_to_cpu]
    assert [left.op for left in build.npu.left_to_cpu] == ["Dequantize", "Exp", "Quantize"]
    assert operators(tmp_path / "out/model_vela.tflite") == ["ethos-u", "DEQUANTIZE", "EXP", "QUANTIZE", "ethos-u"]
    assert next(gate for gate in build.gates if gate.name == "fallback").measured_value == 3
    assert any("leaves 3 operators to the CPU" in text for text in report.warnings)
    program = (tmp_path / "out/main.cc").read_text()
    assert all(f"Add{name}()" in program for name in ("EthosU", "Dequantize", "Exp", "Quantize"))


def test_inspect_asks_vela_for_what_is_named(exponential: dict[str, Any]) -> None:
    command, found = ["inspect", str(exponential["model"])], {}
    for profile in ("ethos-u55-256", "ethos-u85-512"):
        done = CliRunner().invoke(app, [*command, "--target", "npu-ethos-u", "--profile", profile, "--json"])
        assert done.exit_code == 0
        (found[profile],) = json.loads(done.stdout)["targets"]
        assert found[profile]["npu"]["system"].startswith(profile)
        assert [left["name"] for left in found[profile]["npu"]["left_to_cpu"]][1] == "exp"
    assert found["ethos-u55-256"]["npu"]["cycles"] != found["ethos-u85-512"]["npu"]["cycles"]
    assert CliRunner().invoke(app, [*command, "--profile", "ethos-u55-256"]).exit_code == 2


def test_memories_of_a_board_are_limits(trained: dict[str, Any], tmp_path: Path) -> None:
    board = tmp_path / "board.toml"
    figure = 'value = {}\nunit = "KiB"\nhow = "datasheet"\nsource = "a test"\n'
    board.write_text(
        f'extends = "ethos-u55-128"\nname = "board"\n[figures.sram]\n{figure.format(1)}[figures.flash]\n'
        + figure.format(512)
    )
    report = built(trained, tmp_path / "out", profile=str(board), evaluation=None)
    gates = {gate.name: gate for gate in report.builds[0].gates}
    assert report.verdict == "failed" and report.profile == "board"
    assert not gates["SRAM"].passed and "estimated by Vela" in gates["SRAM"].reason
    assert gates["SRAM"].limit_value == 1024 and gates["flash"].passed
    assert gates["flash"].measured_value == (tmp_path / "out/model_vela.tflite").stat().st_size
    controller = tmp_path / "controller.toml"
    controller.write_text(
        'schema = 1\nname = "controller"\ntarget = "mcu-cortex-m"\nsummary = "a test"\nlink = "none"\n'
        f"[figures.sram]\n{figure.format(1)}"
    )
    counted = deploy(
        target="mcu-cortex-m", effort="fast", out=tmp_path / "other", profile=str(controller), **trained
    ).builds[0]
    (gate,) = [gate for gate in counted.gates if gate.name == "SRAM"]
    assert not gate.passed and gate.measured_value == counted.arena_bytes and "counts it" in gate.reason


def test_without_vela_nothing_is_compiled_and_it_says_so(
    trained: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import edgeq.build
    import edgeq.export.emitters
    import edgeq.prepare

    for module, name in (
        (vela, "version"),
        (edgeq.build, "version"),
        (edgeq.export.emitters, "version"),
        (edgeq.prepare, "compiler"),
    ):
        monkeypatch.setattr(module, name, lambda: None)
    report = built(trained, tmp_path / "out", evaluation=None, limits=Limits(max_fallback=0))
    (gate,) = [gate for gate in report.builds[0].gates if gate.name == "fallback"]
    assert not gate.passed and "nothing was compiled" in gate.reason and report.builds[0].npu is None
    assert any("is not compiled for ethos-u55-128: pip install 'edgeq[ethos-u]'" in text for text in report.warnings)
    with pytest.raises(MissingExtraError, match="ethos-u-vela"):
        built(trained, tmp_path / "emitted", emit="c")


def test_profiles_name_systems_that_vela_knows(whole: tuple[Build, Path]) -> None:
    for name in ("ethos-u55-256", "ethos-u85-512"):
        system = load_profile(name).vela
        assert system is not None and vela.estimate(whole[1] / "model.tflite", system).cycles > 0
