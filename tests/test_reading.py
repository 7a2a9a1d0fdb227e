"""Files that are none, values that no file should hold, and places that cannot be written to: refused, by name."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeq.cli.app import run
from edgeq.data.dataset import InputSpec
from edgeq.data.load import load_data
from edgeq.errors import UnsupportedError, UsageError
from edgeq.files import refuse_unwritable, scratch_folder, staged_directory
from edgeq.frontends.check import check_weights
from edgeq.frontends.examples import asked_for, parse_input_spec
from edgeq.frontends.kinds import identify
from edgeq.plans.fleet import read_fleet
from edgeq.plans.plan import read_plan
from edgeq.plans.rules import read_rules
from edgeq.reading import read_bytes
from edgeq.registry.load import load_target

SPECS = [InputSpec("x", (None, 3, 4, 4), "float32")]


def special(folder: Path, kind: str) -> Path:
    if kind == "device":
        return Path("/dev/zero")
    path = folder / f"{kind}.toml"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        socket.socket(socket.AF_UNIX).bind(str(path))
    return path


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_may_have_no_end_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    path = special(Path(), kind)
    for read in (read_bytes, identify, read_plan, read_fleet, read_rules, lambda p: load_target(f"./{p}")):
        with pytest.raises(UsageError):
            read(path)
    for role in ("calibration", "evaluation"):
        with pytest.raises(UsageError, match=f"this is a {kind}"):
            load_data(path, SPECS, role=role)  # type: ignore[arg-type]
    for command in (["explain", str(path)], ["plan", "--check", str(path)], ["inspect", str(path)]):
        assert run(command) == 2 and f"this is a {kind}" in capsys.readouterr().err


DEEP, LONG = "[" * 100_000, "9" * 5000


@pytest.mark.parametrize("text", [DEEP, f'{{"schema_version": {LONG}}}', '{"a":' * 100_000, "", "\ud800"])
def test_json_that_no_parser_takes_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for read in (read_plan, read_fleet):
        with pytest.raises(UsageError) as caught:
            read(path)
        assert str(path) in caught.value.where


@pytest.mark.parametrize("text", [f"a = {DEEP}", f"a = {LONG}", "a = {b=" * 50_000])
def test_toml_that_no_parser_takes_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.toml"
    path.write_text(text)
    for read in (read_rules, lambda p: load_target(str(p))):
        with pytest.raises(UsageError) as caught:
            read(path)
        assert str(path) in caught.value.where


@pytest.mark.parametrize("label", ["--1", "1-", "-", LONG, "\u0661", "1e3", "+1", "0x1"])
def test_a_label_is_a_number(tmp_path: Path, label: str) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "labels.txt").write_text(f"a.png {label}\n", encoding="utf-8")
    with pytest.raises(UsageError, match="file label"):
        load_data(tmp_path, SPECS, preprocess="[0,1]", role="evaluation")


def test_a_pipe_among_images_is_passed_over(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "cats").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "cats/a.png")
    os.mkfifo(tmp_path / "cats/b.png")
    assert len(load_data(tmp_path, SPECS, preprocess="[0,1]", role="calibration")) == 1


@pytest.mark.parametrize("text", [f"1x{LONG}", "1x99999999999999999999", "999999x999999x999999", "4294967296"])
def test_a_sample_input_has_a_size_that_can_be(text: str) -> None:
    with pytest.raises(UsageError, match="more than"):
        parse_input_spec(text)


def test_tensors_without_values_and_sparse_ones_are_refused() -> None:
    dense = torch.ones(2, 2)
    for tensor, says in ((dense.to("meta"), "no values"), (dense.to_sparse(), "not dense")):
        with pytest.raises(UnsupportedError, match=f"'w'.*{says}"):
            check_weights({"w": tensor}, "m.pt")
        with pytest.raises(UsageError, match="no values or is not dense"):
            asked_for((), (tensor,))


# ---------------------------------------------------------------- places to write to


def test_a_place_for_a_file_is_looked_at_first(tmp_path: Path) -> None:
    refuse_unwritable(tmp_path / "plan.json")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "plan.1.json").mkdir()
    for path, siblings in (
        (tmp_path, ""), (tmp_path / "none/plan.json", ""), (Path("/dev/null"), ""), (tmp_path / "plan.json", "plan.*"),
        (tmp_path / ("n" * 300), ""), (Path("/proc/plan.json"), ""),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            refuse_unwritable(path, siblings)


@pytest.mark.parametrize("more", [[], ["--pareto", "3"], ["--target", "x86-avx2"]])
def test_plan_looks_at_its_output_before_it_reads_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    arguments = ["plan", "no-model", "--target", "x86-avx512", "--calib", "none", "--eval", "none", *more]
    assert run([*arguments, "--out", str(tmp_path)]) == 2
    assert "this is a folder" in capsys.readouterr().err
    if more:
        (tmp_path / "p.onnx.json").mkdir()
        assert run([*arguments, "--out", str(tmp_path / "p.json")]) == 2
        assert "p.onnx.json: this is a folder" in capsys.readouterr().err


@pytest.mark.parametrize("filename", [True, False])
def test_a_full_temporary_folder_is_not_blamed_on_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filename: bool
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    if not filename:  # a library that tells nothing but that it failed
        monkeypatch.setattr("edgeq.files._nothing_left", lambda folder: folder.is_relative_to(tmp_path / "temporary"))
    with (
        pytest.raises(UsageError, match="disk is full") as caught,
        staged_directory(tmp_path / "out"),
        scratch_folder() as scratch,
    ):
        where = (str(scratch / "model.onnx"),) if filename else ()
        raise OSError(errno.ENOSPC, "No space left on device", *where) if filename else RuntimeError("write failed")
    assert caught.value.where == str(tmp_path / "temporary") and "TMPDIR" in caught.value.remedy
    assert sorted(p.name for p in tmp_path.iterdir()) == ["temporary"] and not any((tmp_path / "temporary").iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--version"], ["targets"], ["targets", "--json"], ["--help"], ["no", "--json"]])
def test_an_answer_that_cannot_be_written_is_an_error(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "edgeq.cli", *arguments], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_array_files_of_no_numbers_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array(["a"]))
    with pytest.raises(UsageError):
        load_data(tmp_path / "a.npy", SPECS, role="calibration")
