"""What runtimes say of themselves is asked once, and anew when anything about them has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from edgeq.cache import Cache
from edgeq.devices import Device, open_device, recalled
from edgeq.devices.link import Exit
from edgeq.devices.recalled import ask_once
from edgeq.errors import DeviceError


def counting(**changes: object) -> tuple[Device, list[Path]]:
    """This machine, and the folders of the jobs that it was given."""
    jobs: list[Path] = []
    local = open_device("local")

    def link(folder: Path, command: Sequence[str], on_line: Callable[[str], None]) -> Exit:
        jobs.append(folder)
        return local.link(folder, command, on_line)

    return replace(local, link=link, **changes), jobs


def test_a_later_run_knows_what_an_earlier_one_was_told(tmp_path: Path) -> None:
    first, jobs = counting()
    ask_once(first, "onnxruntime", Cache(tmp_path))
    assert len(jobs) == 1 and first.environment("onnxruntime") == open_device("local").environment("onnxruntime")
    later, jobs = counting()
    ask_once(later, "onnxruntime", Cache(tmp_path))
    assert later.environment("onnxruntime") == first.environment("onnxruntime") and jobs == []


@pytest.mark.parametrize("what", ["package", "variable", "cpu", "cores"])
def test_a_change_is_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    ask_once(counting()[0], "onnxruntime", Cache(tmp_path))
    if what == "package":
        monkeypatch.setattr(recalled, "_record", lambda name: f"{name},sha256=other,1")
    elif what == "variable":
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    elif what == "cpu":
        monkeypatch.setattr(recalled, "describe_cpu", lambda: {"cpu": "another", "cpu_isa": "avx2"})
    else:
        monkeypatch.setattr(recalled, "usable_cores", lambda: 77)
    later, jobs = counting()
    ask_once(later, "onnxruntime", Cache(tmp_path))
    assert len(jobs) == 1


def test_other_machines_are_always_asked(tmp_path: Path) -> None:
    for changes in ({"emulated": True}, {"shares_host": False}):
        for _ in range(2):
            device, jobs = counting(**changes)
            ask_once(device, "onnxruntime", Cache(tmp_path))
            assert len(jobs) == 1


def test_a_runtime_that_is_missing_is_no_answer(tmp_path: Path) -> None:
    def missing(folder: Path, command: Sequence[str], on_line: Callable[[str], None]) -> Exit:
        (folder / "result.json").write_text('{"error": {"kind": "missing", "message": "none", "artifact": null}}')
        return Exit(1, "")

    with pytest.raises(DeviceError):
        ask_once(replace(open_device("local"), link=missing), "onnxruntime", Cache(tmp_path))
    later, jobs = counting()
    ask_once(later, "onnxruntime", Cache(tmp_path))
    assert len(jobs) == 1
