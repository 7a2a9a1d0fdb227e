"""One artefact on several devices: one report, a column a device, and what could not be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import trained_model

from edgeq.cli.app import run
from edgeq.devices import add_device
from edgeq.devices.links import LINKS, Kind
from edgeq.devices.local import open_local
from edgeq.errors import DeviceError


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = trained_model.make(tmp_path_factory.mktemp("model"))
    data = ["--calib", str(folder / "calib.npz"), "--eval", str(folder / "eval.npz"), "--allow-slower", "--quiet"]
    where = ["--target", "x86-avx512", "--format", "onnx", "--device", "local"]
    assert run(["deploy", str(folder / "model.pt2"), *where, *data, "--out", str(folder / "build")]) == 0
    return folder


@pytest.fixture(autouse=True)
def _devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`desk` is this machine by another name, `gone` is a device that was switched off."""

    def gone(rest: str) -> Any:
        raise DeviceError("it cannot be reached", where="gone", remedy="switch it on")

    monkeypatch.setenv("EDGEQ_HOME", str(tmp_path))
    monkeypatch.setitem(LINKS, "gone", Kind("gone", gone))
    add_device("desk", "local")


def told(files: Path, capsys: pytest.CaptureFixture[str], *words: str, status: int) -> Any:
    data = ["--model", str(files / "model.pt2"), "--eval", str(files / "eval.npz"), "--allow-slower", "--json"]
    capsys.readouterr()
    assert run(["validate", str(files / "build"), *data, *words]) == status
    return json.loads(capsys.readouterr().out)


def test_devices_stand_side_by_side_and_the_unreached_are_listed(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["--device", "local", "--device", "gone", "--device", "desk"]
    report = told(files, capsys, *names, "--junit", str(tmp_path / "out.xml"), status=5)
    assert list(report["reports"]) == ["local", "desk"]
    assert report["unreached"] == {"gone": {"cause": "it cannot be reached", "remedy": "switch it on"}}
    for name, one in report["reports"].items():
        (build,) = one["builds"]
        assert build["device"] == name and build["speed"] is not None and build["accuracy"]["score"] > 90
    first, second = (one["builds"][0]["accuracy"] for one in report["reports"].values())
    assert first == second
    suites = ElementTree.parse(tmp_path / "out.xml").getroot()
    assert [(suite.get("name", "").split()[0], suite.get("errors")) for suite in suites] == [
        ("local", "0"),
        ("desk", "0"),
        ("gone", "1"),
    ]


def test_a_missed_limit_counts_more_than_a_device_that_is_gone(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fleet").write_text("# two\ndesk\n\ngone\n")
    report = told(files, capsys, "--devices", str(tmp_path / "fleet"), "--max-size", "1kB", status=3)
    assert report["reports"]["desk"]["verdict"] == "failed" and "gone" in report["unreached"]


def test_a_device_that_breaks_off_is_unreached_and_the_rest_counts(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(folder: Path, command: Any, on_line: Any) -> Any:
        raise OSError(104, "Connection reset by peer")

    def opened(rest: str) -> Any:
        here = open_local()
        return type(here)("cut", False, cut, runner=here.runner)

    monkeypatch.setitem(LINKS, "cut", Kind("cut", opened))
    report = told(files, capsys, "--device", "cut", "--device", "local", status=5)
    assert "Connection reset" in report["unreached"]["cut"]["cause"]
    assert report["reports"]["local"]["verdict"] == "passed"


def test_a_long_run_tells_whether_the_device_slows_down(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = told(files, capsys, "--device", "local", "--sustain", "600ms", status=0)
    sustained = report["builds"][0]["sustained"]
    assert 0.5 < sum(window["seconds"] for window in sustained["windows"]) < 5
    assert all(window["calls"] >= 1 and window["median"] > 0 for window in sustained["windows"])
    first, *_, last = sustained["windows"]
    assert 0.1 < sustained["throttled"] < 10 and first["median"] > 0 and last["median"] > 0
    assert run(["validate", str(files / "build"), "--model", "x", "--eval", "y", "--sustain", "long"]) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["--device", "local", "--device", "local"],
        ["--device", "local", "--device", "nope"],
        ["--devices", "/no/such/file"],
        ["--device", "local", "--target", "nope"],
    ],
)
def test_wrong_use(files: Path, words: list[str]) -> None:
    data = ["--model", str(files / "model.pt2"), "--eval", str(files / "eval.npz")]
    assert run(["validate", str(files / "build"), *data, *words]) == 2


def test_a_file_of_no_build_wants_a_target_and_a_folder_a_build(files: Path, tmp_path: Path) -> None:
    data = ["--model", str(files / "model.pt2"), "--eval", str(files / "eval.npz")]
    assert run(["validate", str(files / "build/model.onnx"), *data]) == 2
    assert run(["validate", str(tmp_path), *data]) == 2
