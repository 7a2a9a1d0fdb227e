"""Android's debug bridge: its real server and client, and a stand-in for the device."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trained_model
from android_stand_in import Android

from edgeq.api.deploy import deploy
from edgeq.devices import open_device, over_shell
from edgeq.devices.adb import _adb
from edgeq.errors import DeviceError, UsageError


@pytest.fixture
def adb(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The client, with a server of its own."""
    pytest.importorskip("adbutils")
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free.getsockname()[1]))
    yield _adb()
    subprocess.run([_adb(), "kill-server"], check=True, capture_output=True)


@pytest.fixture
def android(adb: str, tmp_path: Path) -> Android:
    android = Android(tmp_path)
    said = subprocess.run([adb, "connect", android.serial], check=True, capture_output=True, text=True).stdout
    assert said.startswith("connected")
    return android


def named(android: Android, **options: str) -> str:
    told = {"python": sys.executable, "folder": str(android.jobs), **options}
    return f"adb://{android.serial}?" + "&".join(f"{key}={value}" for key, value in told.items())


def work(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    (folder / "in").mkdir(parents=True)
    (folder / "in/bytes.bin").write_bytes(bytes(range(256)) * 3000)
    return folder


def test_files_go_there_and_come_back(android: Android, tmp_path: Path) -> None:
    folder, lines = work(tmp_path), []
    device = open_device(named(android))
    assert not device.emulated
    script = "cat in/bytes.bin in/bytes.bin > out.bin; echo it is done; echo but >&2; exit 3"
    ended = device.link(folder, ["sh", "-c", script], lines.append)
    assert (ended.status, ended.stderr, lines[-1]) == (3, "but\n", "it is done\n")
    assert (folder / "out.bin").read_bytes() == (folder / "in/bytes.bin").read_bytes() * 2
    assert device.link(folder, ["sh", "-c", "kill -9 $$"], lines.append).status == -9
    assert not any(android.jobs.iterdir())
    alone = f"adb://?python={sys.executable}&folder={android.jobs}"  # no serial number: the only one there is
    assert open_device(alone).link(folder, ["true"], lines.append).status == 0


def test_androids_emulator_is_taken_for_what_it_is(android: Android, tmp_path: Path) -> None:
    if not (tmp_path / "bin").exists():
        pytest.skip("mksh and toybox are not installed: the stand-in has the tools of this machine")
    getprop = tmp_path / "bin" / "getprop"
    getprop.write_text('#!/bin/sh\n[ "$1" = ro.boot.qemu ] && echo 1\n')
    getprop.chmod(0o755)
    assert open_device(named(android)).emulated
    getprop.write_text("#!/bin/sh\necho\n")
    assert not open_device(named(android)).emulated


def test_a_pulled_cable_is_told_and_leaves_nothing(android: Android, tmp_path: Path) -> None:
    folder = work(tmp_path)
    device = open_device(named(android))
    threading.Timer(1.5, android.unplug).start()
    with pytest.raises(DeviceError, match="connection to it broke"):
        device.link(folder, ["sh", "-c", "sleep 20; echo late > out.bin"], lambda line: None)
    assert not (folder / "out.bin").exists()
    for _ in range(10 * over_shell.SILENCE):
        if not any(android.jobs.iterdir()):
            break
        time.sleep(0.1)
    assert not any(android.jobs.iterdir())


def test_what_is_not_there(android: Android) -> None:
    with pytest.raises(DeviceError, match="'nobody' not found") as found:
        open_device("adb://nobody")
    assert "adb devices" in found.value.remedy
    with pytest.raises(UsageError, match="cannot read"):
        open_device("adb://a/b")
    with pytest.raises(DeviceError, match="does not run there"):
        open_device(named(android, python="/nowhere/python3"))


def test_a_build_is_proved_through_it_as_on_this_machine(
    android: Android, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ai_edge_litert")
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "cache"))
    files = trained_model.make(tmp_path / "model")
    found = {}
    for device in ("local", named(android)):
        report = deploy(
            files / "model.pt2",
            target="arm-neon",
            format="tflite",
            device=device,
            calibration=files / "calib.npz",
            evaluation=files / "eval.npz",
            effort="fast",
            out=tmp_path / f"build{len(found)}",
        )
        found[device] = report.builds[0]
    here, there = found.values()
    assert here.accuracy == there.accuracy and here.files == there.files
    assert there.speed is not None


def test_the_stand_in_has_androids_shell(android: Android) -> None:
    if shutil.which("mksh") is None or shutil.which("toybox") is None:
        pytest.skip("there is no mksh or no toybox: apt-get install mksh toybox")
    asked = [_adb(), "-s", android.serial, "shell", "-T", '[ -n "$KSH_VERSION" ]']
    assert subprocess.run(asked, check=False).returncode == 0
