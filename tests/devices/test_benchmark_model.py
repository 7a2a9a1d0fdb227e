"""Devices without Python: jobs done by LiteRT's benchmark, for which a stand-in takes its place."""

from __future__ import annotations

import asyncio
import shlex
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import trained_model
from device_models import integers, tflite_answer, write_tflite

from edgeq.api.deploy import deploy
from edgeq.devices import Candidate, Device, open_device
from edgeq.devices.links import LINKS, Kind
from edgeq.devices.over_shell import Process, Start
from edgeq.devices.remote import Options, remote
from edgeq.errors import DeviceError

pytest.importorskip("ai_edge_litert")

STAND_IN = Path(__file__).with_name("benchmark_model_stand_in.py")


@asynccontextmanager
async def here() -> AsyncIterator[Start]:
    async def start(line: str) -> Process:
        process = await asyncio.create_subprocess_exec("sh", "-c", line, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        return Process(process.stdin, process.stdout, process.stderr, process.wait)

    yield start


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    """Reached by a shell, with the stand-in as its only program."""
    program = tmp_path / "benchmark_model"
    program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, str(STAND_IN)])} "$@"\n')
    program.chmod(0o755)
    options = Options(("no-python",), str(tmp_path), benchmark_model=str(program))
    monkeypatch.setitem(LINKS, "phone", Kind("phone", lambda rest: remote("phone", here, options)))
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "cache"))
    return open_device("phone")


def test_a_build_is_proved_by_it_as_by_the_worker(phone: Device, tmp_path: Path) -> None:
    files = trained_model.make(tmp_path / "model")
    found = {}
    for device in ("local", "phone"):
        found[device] = deploy(
            files / "model.pt2",
            target="arm-neon",
            format="tflite",
            device=device,
            calibration=files / "calib.npz",
            evaluation=files / "eval.npz",
            effort="fast",
            out=tmp_path / device,
        ).builds[0]
    here, there = found["local"], found["phone"]
    assert there.accuracy == here.accuracy and there.accuracy is not None
    assert there.speed is not None and there.speed.artifact.p50 > 0
    assert there.peak_memory_bytes == 2.25 * 2**20
    assert not list(tmp_path.glob("edgeq-job*"))


def test_several_inputs_and_outputs_keep_their_places(phone: Device, tmp_path: Path) -> None:
    a, b = integers(5), integers(5, seed=1)
    artifact = Candidate(write_tflite(tmp_path / "two.tflite", signature=True), "litert")  # its order is not the file's
    assert phone.interface(artifact) == open_device("local").interface(artifact)
    one, other = phone.outputs(artifact, {"args_0": a, "args_1": b})
    np.testing.assert_array_equal(one, tflite_answer(a))
    np.testing.assert_array_equal(other, tflite_answer(b))
    runs = phone.latency({"x": artifact, "y": artifact}, {"args_0": a, "args_1": b}, rounds=3, fewest=3, warmup=1)
    assert {name: len(some) for name, some in runs.items()} == {"x": 3, "y": 3} and (runs["x"] > 0).all()
    with pytest.raises(DeviceError, match="has 2 inputs, 1 were given"):
        phone.outputs(artifact, {"args_0": a})
    with pytest.raises(DeviceError, match="no reference kernels"):
        phone.outputs(Candidate(artifact.path, "litert", {"kernels": "reference"}), {"args_0": a, "args_1": b})


def test_what_it_cannot_do(phone: Device, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="wants Python on the device"):
        phone.health()
    with pytest.raises(DeviceError, match=r"runs \.tflite files"):
        phone.environment("onnxruntime")
    told = phone.environment("litert")
    assert told["runtime"] == "benchmark_model" and told["system"].startswith("Linux")
    (tmp_path / "benchmark_model").write_text("#!/bin/sh\necho it is broken; exit 7\n")
    path = tmp_path / "model.tflite"
    path.write_bytes(b"nothing")
    with pytest.raises(DeviceError):
        phone.outputs(Candidate(path, "litert"), {"x": np.zeros((1, 4), np.float32)})
    (tmp_path / "benchmark_model").unlink()
    with pytest.raises(DeviceError, match="is no program there"):
        open_device("phone")
