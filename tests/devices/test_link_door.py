"""A link that edgeq does not know comes in by one function and one entry: those that the guide shows."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import device_models as models
import pytest
import trained_model

from edgeq.cli.app import run
from edgeq.devices import Candidate, Device
from edgeq.devices.link import Exit
from edgeq.devices.links import LINKS
from edgeq.errors import DeviceError

GUIDE = Path(__file__).parents[2] / "docs" / "links.md"


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    assert len(code.splitlines()) <= 60
    monkeypatch.setitem(LINKS, "board", LINKS["local"])  # taken out again after the test
    found: dict[str, Any] = {}
    (tmp_path / "board").mkdir()
    own = f"Options(({sys.executable!r},), {str(tmp_path / 'board')!r})"
    exec(code.replace("Options()", own), found)
    return found


def test_a_link_comes_in_by_a_function_and_an_entry(shown: dict[str, Any], tmp_path: Path) -> None:
    files = trained_model.make(tmp_path)
    data = ["--calib", str(files / "calib.npz"), "--eval", str(files / "eval.npz"), "--allow-slower", "--quiet"]
    where = ["--target", "x86-avx512", "--format", "onnx", "--device", "board"]
    assert run(["deploy", str(files / "model.pt2"), *where, *data, "--out", str(tmp_path / "build")]) == 0
    report = json.loads((tmp_path / "build" / "report.json").read_text())
    (build,) = report["builds"]
    assert build["device"] == "board" and build["accuracy"]["score"] > 90 and build["speed"] is not None
    assert list((tmp_path / "board").iterdir()) == [], "nothing is left there"
    assert run(["verify", str(tmp_path / "build"), "--device", "board", "--quiet"]) == 0


def cut_off(folder: Path, command: Any, on_line: Any) -> Exit:
    on_line('{"progress": [1')
    return Exit(-15, "gone")


def half(folder: Path, command: Any, on_line: Any) -> Exit:
    (folder / "result.json").write_text('{"interf')
    return Exit(0, "")


def unreachable(folder: Path, command: Any, on_line: Any) -> Exit:
    raise OSError(113, "No route to host")


def forgetful(folder: Path, command: Any, on_line: Any) -> Exit:
    (folder / "result.json").write_text('{"files": ["output0.npy"], "missed": false}')
    return Exit(0, "")


@pytest.mark.parametrize(
    ("link", "told"),
    [(cut_off, "SIGTERM"), (half, "no result"), (unreachable, "No route to host"), (forgetful, "was not brought back")],
)
def test_a_link_that_fails_is_an_error_of_its_device(link: Any, told: str, tmp_path: Path) -> None:
    board = Device("board", False, link)
    artefact = Candidate(models.write_float_onnx(tmp_path / "m.onnx"), "onnxruntime")
    with pytest.raises(DeviceError, match=told) as error:
        board.outputs(artefact, {"a": models.samples(2), "b": models.samples(2)})
    assert error.value.remedy and "board" in f"{error.value.cause} {error.value.where}"


def test_a_board_that_is_off_is_an_error_of_the_device(shown: dict[str, Any], tmp_path: Path) -> None:
    files = trained_model.make(tmp_path)
    shown["SHELL"][:] = ["false"]
    data = ["--calib", str(files / "calib.npz"), "--eval", str(files / "eval.npz"), "--quiet"]
    where = ["--target", "x86-avx512", "--format", "onnx", "--device", "board"]
    assert run(["deploy", str(files / "model.pt2"), *where, *data, "--out", str(tmp_path / "build")]) == 5
    assert not (tmp_path / "build").exists()
