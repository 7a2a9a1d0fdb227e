"""Devices with names of the user's, and what one that is asked says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeq.cli.app import run
from edgeq.devices import open_device, qemu


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_HOME", str(tmp_path))


def told(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> Any:
    assert run([*words, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_a_device_goes_by_its_name_until_that_is_taken_back(capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "device", "add", "desk", "local")
    assert open_device("desk").name == "desk"
    listed = {one["name"]: one for one in told(capsys, "device", "list")["devices"]}
    assert listed["desk"]["detail"] == "local" and listed["desk"]["ready"] is None
    told(capsys, "device", "remove", "desk")
    assert run(["device", "remove", "desk"]) == 2
    assert run(["device", "doctor", "desk"]) == 2


@pytest.mark.parametrize(
    ("name", "address"), [("local", "arm64"), ("a/b", "local"), ("", "local"), ("-x", "local"), ("desk", "telnet://x")]
)
def test_what_is_no_name_or_no_address(name: str, address: str) -> None:
    assert run(["device", "add", "--", name, address]) == 2


@pytest.mark.parametrize("content", ["[", "[]", '{"a": 1}'])
def test_a_damaged_list_is_told_and_kept(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = qemu.devices_folder() / "named.json"
    file.parent.mkdir()
    file.write_text(content)
    assert run(["device", "add", "desk", "local"]) == 2
    assert str(file) in capsys.readouterr().err
    assert file.read_text() == content


def test_a_device_says_what_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    found = {one["what"]: one for one in told(capsys, "device", "doctor", "local")["findings"]}
    assert found["reached"]["good"] and found["onnxruntime"]["good"]
    assert int(found["cores"]["detail"]) >= 1 and "MB free" in found["room"]["detail"]


def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    (only,) = told(capsys, "device", "doctor", "qemu://arm64?cpu=cortex-a53", status=5)["findings"]
    assert only["good"] is False and only["remedy"] == "edgeq device setup arm64"
