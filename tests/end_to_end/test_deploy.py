"""The whole line on real files and real runtimes, and what happens when something in it is broken."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from html import unescape
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import onnxruntime
import pytest
import torch
import trained_model
from rich.console import Console
from torch import nn

from edgeq.api.deploy import deploy
from edgeq.api.validate import validate
from edgeq.api.verify import verify
from edgeq.cli import app
from edgeq.devices import device_status
from edgeq.errors import EdgeqError, UnsupportedError, UsageError
from edgeq.export.audit import AuditError, audit
from edgeq.export.stored import Stored
from edgeq.files import sha256_file
from edgeq.limits import Limits
from edgeq.model.model import Model
from edgeq.quantization.quantized import Quantized
from edgeq.records.schema import Audit, Report
from edgeq.registry.load import load_target
from edgeq.report.console import render

FORMATS = {"onnx": "model.onnx", "openvino": "model.xml", "tflite": "model.tflite"}
RUNTIMES = {"openvino": "openvino", "tflite": "ai_edge_litert"}
SLOWER = Limits(allow_slower=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_model.make(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests of this file share: most are of what comes after the conversion of the float model."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(autouse=True)
def _cache(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(kept))


def build(files: Path, out: Path, **changes: object) -> Report:
    options: dict[str, object] = {
        "target": "x86-avx512",
        "calibration": files / "calib.npz",
        "evaluation": files / "eval.npz",
        "out": out,
        "format": "onnx",
        "limits": SLOWER,
    }
    options.update(changes)
    return deploy(files / "model.pt2", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMATS)
def test_each_format_is_built_measured_and_keeps_the_accuracy(files: Path, tmp_path: Path, form: str) -> None:
    if form in RUNTIMES:
        pytest.importorskip(RUNTIMES[form])
    report = build(files, tmp_path / "out", format=form)
    (made,) = report.builds
    assert report.verdict == "passed"
    assert made.validated and made.accuracy is not None and made.accuracy.drop is not None
    assert made.accuracy.float_score is not None and made.accuracy.float_score > 90
    assert made.accuracy.drop.value <= 2.0
    assert made.audit is not None and made.audit.integer_mac_percent == 100.0
    assert made.speed is not None and made.speed.artifact.p50 > 0
    assert (tmp_path / "out" / FORMATS[form]).stat().st_size == made.files[FORMATS[form]]
    assert Report.model_validate_json((tmp_path / "out" / "report.json").read_text()) == report


def test_score_is_that_of_the_written_file(files: Path, tmp_path: Path) -> None:
    report = build(files, tmp_path / "out")
    data = np.load(files / "eval.npz")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert (entry.name, entry.type) == ("image", "tensor(float)")
    answers = [session.run(None, {"image": row[None]})[0].argmax() for row in data["image"]]
    accuracy = report.builds[0].accuracy
    assert accuracy is not None
    assert accuracy.score == pytest.approx(100 * np.mean(np.array(answers) == data["labels"]))


def test_two_runs_give_the_same_bytes(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", "off")
    for name in ("a", "b"):
        build(files, tmp_path / name)
    for file in ("model.onnx", "plan.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_all_formats_of_a_target_are_kept_and_auto_keeps_one(files: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("litert_torch")
    pytest.importorskip("executorch")
    report = build(files, tmp_path / "all", format="all")
    every = FORMATS | {"executorch": "model.pte"}  # which has to be asked for
    assert {b.format for b in report.builds} == set(every)
    assert all((tmp_path / "all" / name).is_file() for name in every.values())
    report = build(files, tmp_path / "auto", format="auto")
    kept = [form for form, name in every.items() if (tmp_path / "auto" / name).is_file()]
    assert kept == [report.chosen]
    turns = {b.format: b.seconds_in_turns for b in report.builds}
    assert all(seconds is not None and 0 < seconds < 1 for seconds in turns.values())
    able = [b for b in report.builds if all(gate.passed for gate in b.gates)] or report.builds
    assert turns[report.chosen] == min(turns[b.format] or 1.0 for b in able)
    assert "in turns with the others" in report.chosen_because and report.chosen_because.endswith("x of that")


def test_missed_limit_fails_and_everything_is_written(files: Path, tmp_path: Path) -> None:
    report = build(files, tmp_path / "out", limits=Limits.parse(max_size="1KB", allow_slower=True))
    assert report.verdict == "failed"
    assert [g.name for g in report.builds[0].gates if not g.passed]
    assert (tmp_path / "out" / "model.onnx").is_file() and (tmp_path / "out" / "edgeq.lock").is_file()


def test_without_evaluation_nothing_is_called_validated(files: Path, tmp_path: Path) -> None:
    report = build(files, tmp_path / "out", evaluation=None)
    assert report.verdict == "not validated"
    assert report.builds[0].accuracy is None and report.builds[0].speed is None


def test_target_that_cannot_run_here_is_exported_and_says_so(files: Path, tmp_path: Path) -> None:
    report = build(files, tmp_path / "out", target="nvidia-gpu")
    assert report.verdict == "not validated"
    (made,) = report.builds
    assert made.not_validated_because and made.audit is not None and made.audit.conformance is not None
    assert made.audit.conformance.breaches == [] and made.audit.conformance.rules > 10
    assert (tmp_path / "out" / "model.onnx").is_file()
    words = "holds TensorRT's rules for explicit quantization"
    assert words in unescape((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    shown = io.StringIO()
    render(report, Console(file=shown, width=300), None)
    assert words in " ".join(shown.getvalue().split())


def test_overlap_of_the_data_is_reported(files: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "same.npz", image=np.load(files / "eval.npz")["image"][:40])
    report = build(files, tmp_path / "out", calibration=tmp_path / "same.npz")
    assert any("40 of 128 evaluation samples" in text for text in report.warnings)


def test_verify_sees_a_flipped_bit_and_an_honest_build(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(files, out)
    assert verify(out).ok
    content = bytearray((out / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (out / "model.onnx").write_bytes(content)
    found = verify(out)
    assert not found.ok and found.files_changed == ["model.onnx"]


def test_verify_names_every_file_that_is_damaged(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(files, out)
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    for name in ("model.onnx", "plan.json", "golden.npz", "report.json", "edgeq.lock"):
        for content in (whole[name][: len(whole[name]) // 2], b"{}" if name == "edgeq.lock" else b"[" * 50_000):
            (out / name).write_bytes(content)
            found = verify(out)
            assert not found.ok and name in found.files_changed
        (out / name).write_bytes(whole[name])
    assert verify(out).ok
    # a hash that was made to fit does not make a plan of it
    (out / "plan.json").write_bytes(b"{}")
    lock = json.loads(whole["edgeq.lock"])
    lock["files"]["plan.json"] = sha256_file(out / "plan.json")
    (out / "edgeq.lock").write_text(json.dumps(lock))
    found = verify(out)
    assert app.run(["verify", str(out), "--quiet"]) == 3
    assert found.files_changed == ["plan.json"] and any("damaged: plan.json" in line for line in found.lines())


def test_validate_measures_the_file_alone(files: Path, tmp_path: Path) -> None:
    built = build(files, tmp_path / "out")
    report = validate(
        tmp_path / "out" / "model.onnx",
        model=files / "model.pt2",
        target="x86-avx512",
        evaluation=files / "eval.npz",
        limits=SLOWER,
    )
    before, after = built.builds[0].accuracy, report.builds[0].accuracy
    assert before is not None and after is not None and before.score == after.score
    assert (report.builds[0].runtime, report.builds[0].audit) == ("onnxruntime", None)


@pytest.mark.skipif(
    not any(s.name == "arm64" and s.ready for s in device_status()), reason="the emulated Arm machine is not set up"
)
@pytest.mark.parametrize("form", ["onnx", "tflite"])
def test_arm_runs_the_same_file_and_gives_the_same_answers(files: Path, tmp_path: Path, form: str) -> None:
    if form in RUNTIMES:
        pytest.importorskip("litert_torch")
    x86 = build(files, tmp_path / "x86", format=form)
    arm = build(files, tmp_path / "arm", format=form, target="arm-neon")
    name = FORMATS[form]
    assert (tmp_path / "x86" / name).read_bytes() == (tmp_path / "arm" / name).read_bytes()
    assert arm.builds[0].emulated and arm.builds[0].speed is None
    assert arm.builds[0].accuracy is not None and x86.builds[0].accuracy is not None
    assert arm.builds[0].accuracy.agreement is not None and arm.builds[0].accuracy.agreement.value >= 95


class Unsupported(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svd(image.mean(1))[1]


def test_unsupported_operator_is_named(files: Path, tmp_path: Path) -> None:
    program = torch.export.export(Unsupported().eval(), (torch.rand(1, 1, 16, 16),))
    torch.export.save(program, tmp_path / "svd.pt2")
    with pytest.raises(UnsupportedError, match="svd"):
        deploy(
            tmp_path / "svd.pt2",
            target="x86-avx512",
            calibration=files / "calib.npz",
            out=tmp_path / "out",
            format="onnx",
        )
    assert not (tmp_path / "out").exists()


class Ended(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: object) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = app.run(list(map(str, arguments)))
    return Ended(status, out.getvalue(), err.getvalue())


def run_alone(*arguments: object, **options: object) -> Ended:
    """In a process of its own."""
    command = [sys.executable, "-m", "edgeq.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)  # type: ignore[call-overload]
    return Ended(done.returncode, done.stdout, done.stderr)


def deploy_command(
    files: Path, out: Path, model: str = "model.pt2", calib: object = None, evals: object = None
) -> list[object]:
    return [
        "deploy", files / model, "--target", "x86-avx512", "--format", "onnx", "--allow-slower", "--out", out,
        "--calib", calib or files / "calib.npz", "--eval", evals or files / "eval.npz",
    ]  # fmt: skip


def assert_clean(result: Ended, status: int, out: Path) -> None:
    """One line that says what is wrong, one that says what to do, no traceback, nothing left behind."""
    assert result.returncode == status, result.stderr
    assert "error: " in result.stderr and "remedy: " in result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    assert not out.exists() and not list(out.parent.glob(f".{out.name}*"))


def test_broken_models_are_refused(files: Path, tmp_path: Path) -> None:
    whole = (files / "model.pt2").read_bytes()
    (tmp_path / "cut.pt2").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0x10
    (tmp_path / "flipped.pt2").write_bytes(flipped)
    shutil.copy(files / "pickled.pt", tmp_path)
    shutil.copy(files / "weights.pt", tmp_path)
    for name in ("cut.pt2", "flipped.pt2", "pickled.pt", "weights.pt"):
        command = deploy_command(tmp_path, tmp_path / "out", name, files / "calib.npz", files / "eval.npz")
        assert_clean(run(*command), 2, tmp_path / "out")


@pytest.mark.parametrize("breakage", ["nan", "labels", "shape", "dtype", "empty folder", "unreadable image"])
def test_broken_data_is_refused(files: Path, tmp_path: Path, breakage: str) -> None:
    data = dict(np.load(files / "eval.npz"))
    extra: list[str] = []
    source = tmp_path / "eval.npz"
    if breakage == "nan":
        data["image"][3, 0, 2, 2] = np.nan
    elif breakage == "labels":
        data["labels"] = data["labels"][:-1]
    elif breakage == "shape":
        data["image"] = data["image"][:, :, :-1, None]
    elif breakage == "dtype":
        data["image"] = (data["image"] * 10).astype(np.uint8)
    else:
        source = tmp_path / "images"
        source.mkdir()
        extra = ["--preprocess", "[0,1]"]
        if breakage == "unreadable image":
            (source / "one.png").write_bytes(b"\x89PNG\r\n\x1a\n but not really")
    if source.suffix:
        np.savez(source, **data)
    result = run(*deploy_command(files, tmp_path / "out", evals=source), *extra)
    assert_clean(result, 2, tmp_path / "out")


def test_folder_that_holds_something_is_left_alone(files: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    for extra in ([], ["--overwrite"]):
        result = run(*deploy_command(files, tmp_path / "out"), *extra)
        assert result.returncode == 2 and "remedy: " in result.stderr
        assert os.listdir(tmp_path / "out") == ["precious.txt"]


def test_another_build_is_replaced_only_when_asked(files: Path, tmp_path: Path) -> None:
    build(files, tmp_path / "out")
    before = (tmp_path / "out" / "report.json").read_bytes()
    with pytest.raises(UsageError):
        build(files, tmp_path / "out")
    assert (tmp_path / "out" / "report.json").read_bytes() == before
    build(files, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "report.json").read_bytes() != before


def test_full_disk_is_an_error_and_leaves_nothing(files: Path, tmp_path: Path) -> None:
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", mount], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        result = run(*deploy_command(files, mount / "out"))
        assert result.returncode == 2, result.stderr
        assert "remedy: " in result.stderr and "Traceback" not in result.stderr
        assert list(mount.iterdir()) == []
    finally:
        subprocess.run(["umount", mount], check=True)


def test_missing_extra_names_the_install_command(files: Path, tmp_path: Path) -> None:
    (tmp_path / "openvino.py").write_text("raise ImportError('not here')")
    command = [str(c) for c in deploy_command(files, tmp_path / "out")]
    command[command.index("onnx")] = "openvino"
    result = run_alone(*command, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert_clean(result, 5, tmp_path / "out")
    assert "pip install 'edgeq[openvino]'" in result.stderr


@pytest.mark.parametrize("stage", ["load", "calibrate", "export onnx", "validate in onnxruntime"])
def test_interrupt_in_any_stage_leaves_nothing(files: Path, tmp_path: Path, stage: str) -> None:
    """The signal is sent from inside the stage itself, so that it always arrives there."""
    program = (
        "import os, signal, sys\n"
        "from edgeq.progress import Clock\n"
        "from contextlib import contextmanager\n"
        "whole = Clock.stage\n"
        "@contextmanager\n"
        "def stage(self, name):\n"
        "    with whole(self, name) as progress:\n"
        f"        if name == {stage!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "        yield progress\n"
        "Clock.stage = stage\n"
        "from edgeq.cli import main\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, "-c", program, *map(str, deploy_command(files, tmp_path / "out"))]
    environment = {**os.environ, "EDGEQ_CACHE": "off"}  # every stage is gone through
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 130, result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_interrupt_from_outside_ends_the_worker_too(files: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgeq.cli", *map(str, deploy_command(files, tmp_path / "out"))]
    environment = {**os.environ, "EDGEQ_CACHE": "off"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    time.sleep(8)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    # behind its end the system answers: all is written by then
    assert process.returncode in (0, 130, -signal.SIGINT), errors
    assert "Traceback" not in errors
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ([] if process.returncode == 130 else ["out"])


def test_json_is_the_report_and_nothing_else(files: Path, tmp_path: Path) -> None:
    result = run_alone(*deploy_command(files, tmp_path / "out"), "--json")
    assert result.returncode == 0, result.stderr
    assert Report.model_validate(json.loads(result.stdout)).verdict == "passed"


def test_errors_of_the_library_are_of_one_family(files: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgeqError) as caught:
        build(files, tmp_path / "out", target="x86-avx51")
    assert caught.value.exit_code == 2 and "x86-avx512" in caught.value.remedy


def boom(*_: object, **__: object) -> NoReturn:
    raise KeyError("a converter's own")


@pytest.mark.parametrize("broken", ["edgeq.export.openvino.write_openvino", "edgeq.export.artifact.audit"])
def test_a_format_that_fails_in_any_way_is_its_row_and_the_others_go_on(
    broken: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    target = load_target("x86-avx512")
    two = target.model_copy(update={"runtimes": [r for r in target.runtimes if r.format in ("onnx", "openvino")]})
    monkeypatch.setattr("edgeq.api.deploy.load_target", lambda _: two)
    monkeypatch.setenv("EDGEQ_CACHE", "off")
    if broken.endswith("audit"):
        whole = audit

        def for_one(model: Model, quantized: Quantized, stored: Stored) -> Audit:
            if quantized.runtime.format == "openvino":
                raise AuditError("layer x", "other weights")
            return whole(model, quantized, stored)

        monkeypatch.setattr(broken, for_one)
    else:
        monkeypatch.setattr(broken, boom)
    report = build(files, tmp_path / "out", format="all")
    failed, good = sorted(report.builds, key=lambda b: b.error is None)
    assert (failed.format, good.format, good.error) == ("openvino", "onnx", None)
    said = "other weights" if broken.endswith("audit") else 'KeyError: "a converter\'s own"'
    assert failed.error is not None and said in failed.error and "report this model" in failed.error
    assert (tmp_path / "out" / "model.onnx").is_file() and verify(tmp_path / "out").ok
    assert not (tmp_path / "out" / "model.xml").exists() and not (tmp_path / "out" / "model.bin").exists()
    with pytest.raises(EdgeqError, match=r"other weights|KeyError") as caught:
        build(files, tmp_path / "alone", format="openvino")
    assert caught.value.exit_code == 1 and not (tmp_path / "alone").exists()


def test_a_format_that_fails_takes_no_file_of_another_with_it(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("ai_edge_litert")
    target = load_target("x86-avx512")
    two = target.model_copy(update={"runtimes": [r for r in target.runtimes if r.format in ("openvino", "tflite")]})
    monkeypatch.setattr("edgeq.api.deploy.load_target", lambda _: two)
    monkeypatch.setenv("EDGEQ_CACHE", "off")
    monkeypatch.setattr("edgeq.export.tflite_format.export_float", boom)
    report = build(files, tmp_path / "out", format="all")
    assert [b.format for b in report.builds if b.error is None] == ["openvino"]
    assert (tmp_path / "out" / "model.bin").is_file() and verify(tmp_path / "out").ok


def test_a_signal_ends_the_run_and_not_a_format(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeq.export.artifact.audit", stopped)
    with pytest.raises(KeyboardInterrupt):
        build(files, tmp_path / "out", format="all")
    assert not (tmp_path / "out").exists()
