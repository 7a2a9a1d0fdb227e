"""Microcontrollers: artefacts run in the interpreter that is made for them, and the arena that they take is counted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trained_model
from device_models import integers, tflite_answer, write_tflite

from edgeq.api.deploy import deploy
from edgeq.devices import Candidate, device_status, open_device
from edgeq.errors import DeviceError, UsageError
from edgeq.limits import Limits
from edgeq.records.schema import Build
from edgeq.runtimes import runtime

MICRO = "tflite-micro"

if not runtime(MICRO).available():
    pytest.skip(f"{MICRO} is not installed", allow_module_level=True)
pytest.importorskip("litert_torch", reason="the tflite extra (litert-torch) is not installed")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Build, Path]:
    folder = tmp_path_factory.mktemp("micro")
    files = trained_model.make(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEQ_CACHE", str(folder / "cache"))
        report = deploy(
            files / "model.pt2",
            target="mcu-cortex-m",
            calibration=files / "calib.npz",
            evaluation=files / "eval.npz",
            effort="fast",
            limits=Limits.parse(max_drop="2%"),
            out=folder / "out",
        )
    assert report.verdict == "passed"
    return report.builds[0], folder / "out/model.tflite"


def test_a_build_is_proved_and_its_times_are_none(built: tuple[Build, Path]) -> None:
    build, _ = built
    assert build.validated and build.emulated and build.speed is None and build.accuracy is not None
    assert build.device == "micro" and build.runtime == MICRO and build.accuracy.samples == 128, "all of them"
    assert {row.op for row in build.placements} >= {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}
    assert all(row.integer is not False and row.where == "micro kernel" for row in build.placements)


def test_its_integers_are_those_of_the_reference_kernels(built: tuple[Build, Path]) -> None:
    _, path = built
    artifact, other = Candidate(path, MICRO), Candidate(path, "litert", {"kernels": "reference"})
    (port,) = open_device("micro").interface(artifact).inputs
    assert open_device("micro").interface(artifact) == open_device("local").interface(other)
    x = {port.names[0]: np.random.default_rng(0).integers(-128, 128, (40, *port.shape[1:])).astype(np.int8)}
    (one,), (reference,) = open_device("micro").outputs(artifact, x), open_device("local").outputs(other, x)
    assert len(np.unique(one)) > 20
    np.testing.assert_array_equal(one, reference)


def test_the_arena_is_as_large_as_it_has_to_be(built: tuple[Build, Path]) -> None:
    build, path = built
    assert build.arena_bytes is not None

    def fits(size: int) -> bool:
        code = (
            "from tflite_micro.python.tflite_micro import runtime;"
            f"runtime.Interpreter.from_file({str(path)!r}, arena_size={size})"
        )
        return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0

    assert fits(int(build.arena_bytes * 1.1)) and not fits(int(build.arena_bytes * 0.9))


@pytest.mark.parametrize("signature", [False, True])
def test_several_inputs_and_outputs_keep_their_places(tmp_path: Path, signature: bool) -> None:
    path = write_tflite(tmp_path / "two.tflite", signature=signature)
    a, b = integers(5), integers(5, seed=1)
    names = ("args_0", "args_1") if signature else ("in_a", "in_b")
    found = open_device("micro").outputs(Candidate(path, MICRO), dict(zip(names, (a, b), strict=True)))
    one, other = found if signature else found[::-1]  # without, the file's order stands
    np.testing.assert_array_equal(one, tflite_answer(a))
    np.testing.assert_array_equal(other, tflite_answer(b))


def test_what_it_is_not(built: tuple[Build, Path], tmp_path: Path) -> None:
    _, path = built
    with pytest.raises(DeviceError, match="no microcontroller"):
        open_device("local").interface(Candidate(path, MICRO))
    with pytest.raises(DeviceError, match="emulated"):
        open_device("micro").latency({"a": Candidate(path, MICRO)}, {})
    with pytest.raises(UsageError, match="it is called micro"):
        open_device("micro:m4")
    assert next(one for one in device_status() if one.name == "micro").emulated
    (tmp_path / "short.tflite").write_bytes(path.read_bytes()[:600])
    with pytest.raises(DeviceError, match=r"short\.tflite"):
        open_device("micro").interface(Candidate(tmp_path / "short.tflite", MICRO))


def test_files_for_an_ethos_u_are_run_before_they_are_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "cache"))
    files = trained_model.make(tmp_path / "model")
    data = {"calibration": files / "calib.npz", "evaluation": files / "eval.npz"}
    given = {"target": "npu-ethos-u", "effort": "fast", "out": tmp_path / "out", **data}
    (build,) = deploy(files / "model.pt2", **given).builds  # type: ignore[arg-type]
    assert build.validated and build.emulated and "before Vela compiles it" in build.remark
    assert build.arena_bytes is None, "Vela lays memory out itself"
    assert build.remark in " ".join((tmp_path / "out/report.json").read_text().split())
