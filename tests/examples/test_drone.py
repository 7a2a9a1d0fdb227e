"""The C++ example: compiled here, and as its CMake project for Arm, where it answers as the golden vectors do."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgeq.devices import qemu

ROOT = Path(__file__).parent.parent.parent
DRONE = ROOT / "examples" / "drone"
HEADERS = ROOT / "build" / "onnxruntime-headers"
TYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program}")
    if not HEADERS.is_dir():
        pytest.skip("there are no headers of ONNX Runtime: python tools/onnxruntime_headers.py")


def release(folder: Path, library: Path) -> Path:
    """As a release of ONNX Runtime unpacks: headers, and the library of a wheel with the links that lead to it."""
    (folder / "lib").mkdir(parents=True)
    (folder / "include").symlink_to(HEADERS)
    shutil.copy(next(library.glob("libonnxruntime.so.*")), folder / "lib" / "libonnxruntime.so.1")
    (folder / "lib" / "libonnxruntime.so").symlink_to("libonnxruntime.so.1")
    return folder


@pytest.fixture(scope="module")
def drone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program for this machine."""
    need("g++")
    folder = tmp_path_factory.mktemp("native")
    found = importlib.util.find_spec("onnxruntime")
    assert found is not None and found.origin is not None
    there = release(folder / "onnxruntime", Path(found.origin).parent / "capi")
    told = subprocess.run(
        ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-isystem", there / "include", DRONE / "drone.cpp",
         "-o", folder / "drone", "-L", there / "lib", "-lonnxruntime", f"-Wl,-rpath,{there / 'lib'}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    return folder / "drone"


@pytest.fixture
def flight(tmp_path: Path) -> Path:
    """A folder with `model.onnx`, which gives its input in every type, and the vectors that it is proven by."""
    casts = [helper.make_node("Cast", ["image"], [name], to=kind) for name, kind in TYPES.items()]
    outputs = [helper.make_tensor_value_info(name, kind, ["n", 2, 3]) for name, kind in TYPES.items()]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 2, 3])]
    graph = helper.make_graph(casts, "casts", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    image = np.arange(24, dtype=np.float32).reshape(4, 2, 3) / 4
    answers = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"image": image})
    for name, array in {"input:image": image, **{f"output:onnx:{i}": a for i, a in enumerate(answers)}}.items():
        np.save(tmp_path / f"{name}.npy", array)
    return tmp_path


def run(drone: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([drone, *map(str, arguments)], capture_output=True, text=True)


def test_it_proves_golden_answers_of_every_type(drone: Path, flight: Path) -> None:
    told = run(drone, flight / "model.onnx", "--golden", flight)
    assert (told.returncode, told.stdout) == (0, "golden: 4 samples, the same bits\n"), told.stderr


@pytest.mark.parametrize("output", range(len(TYPES)), ids=list(TYPES))
def test_another_answer_is_exit_code_1(drone: Path, flight: Path, output: int) -> None:
    path = flight / f"output:onnx:{output}.npy"
    golden = np.load(path)
    golden[3, 1, 2] = not golden[3, 1, 2] if golden.dtype == bool else golden[3, 1, 2] + 1
    np.save(path, golden)
    told = run(drone, flight / "model.onnx", "--golden", flight)
    assert (told.returncode, told.stdout) == (1, "golden: 4 samples, answers moved by up to 1, allowed are 0\n")
    assert run(drone, flight / "model.onnx", "--golden", flight, "--tolerance", 1).returncode == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda golden: golden * np.float32(np.nan),  # to NaN there is no small difference
        lambda golden: golden.astype(np.float64),
        lambda golden: golden.reshape(4, 6),
    ],
    ids=["nan", "type", "shape"],
)
def test_no_tolerance_is_large_enough_for_another_artefact(
    drone: Path, flight: Path, change: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    path = flight / "output:onnx:0.npy"
    np.save(path, change(np.load(path)))
    told = run(drone, flight / "model.onnx", "--golden", flight, "--tolerance", 1e9)
    assert told.returncode == 1 and "moved by up to inf" in told.stdout


def test_other_bits_of_an_equal_number_are_told(drone: Path, flight: Path) -> None:
    path = flight / "output:onnx:0.npy"
    golden = np.load(path)
    golden[0, 0, 0] = -0.0
    np.save(path, golden)
    assert run(drone, flight / "model.onnx", "--golden", flight).returncode == 1


def test_what_cannot_be_read_is_exit_code_2(drone: Path, flight: Path) -> None:
    path = flight / "output:onnx:0.npy"
    whole = path.read_bytes()
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1, " * 200_000 + b")}"
    for content, why in {
        b"": "is no .npy file",
        b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header: "a header that no array",
        whole.replace(b"(4, ", b"(4" + b"0" * 15 + b", "): "is cut short",
        whole[:40]: "is cut short",
        whole[:-1]: "holds another number of bytes",
        whole.replace(b"<f4", b">f4"): "is not little-endian",
        whole.replace(b"<f4", b"<c4"): "arrays of type <c4 are not read here",
    }.items():
        path.write_bytes(content)
        told = run(drone, flight / "model.onnx", "--golden", flight)
        assert told.returncode == 2 and why in told.stderr
    np.save(path, np.zeros((3, 2, 3), np.float32))
    assert "answers are missing" in run(drone, flight / "model.onnx", "--golden", flight).stderr
    assert "cannot be read" in run(drone, flight / "model.onnx", "--frames", flight / "nowhere").stderr
    for wrong in ([], ["--golden"], ["--hz", 1], ["--golden", flight, "--frames", flight]):
        told = run(drone, flight / "model.onnx", *wrong)
        assert told.returncode == 2 and told.stderr.startswith("usage: ")


def test_frames_come_at_their_rate_and_late_ones_are_counted(drone: Path, flight: Path) -> None:
    told = run(drone, flight / "model.onnx", "--frames", flight, "--hz", 100, "--count", 30)
    found = re.fullmatch(r"30 frames at 100 Hz: median ([\d.]+) ms, p99 ([\d.]+) ms, \d+ late\n", told.stdout)
    assert found is not None and 0 < float(found[1]) <= float(found[2]), told.stderr
    hurried = run(drone, flight / "model.onnx", "--frames", flight, "--hz", 1e9, "--count", 30)
    assert hurried.stdout.endswith(" 30 late\n")


def test_ctrl_c_ends_it_with_its_summary(drone: Path, flight: Path) -> None:
    command = [drone, flight / "model.onnx", "--frames", flight]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as flying:
        time.sleep(1)
        flying.send_signal(signal.SIGINT)
        told, _ = flying.communicate(timeout=60)
    assert flying.returncode == 0 and re.match(r"\d+ frames at 30 Hz: ", told)


def cmake(folder: Path, environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["cmake", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def configured(folder: Path, environment: Mapping[str, str], onnxruntime: Path, *options: str) -> str:
    """Configures the project for a user's model, and tells why it cannot."""
    named = ["-DMODEL=model.pt", "-DCALIB=calib.npz", "-DEVAL=eval.npz", f"-DONNXRUNTIME_ROOT={onnxruntime}"]
    return cmake(folder, environment, "-S", str(DRONE), "-B", "build", *named, *options).stderr


def test_a_package_for_arm_answers_there_as_when_it_was_built(project: Path, environment: dict[str, str]) -> None:
    need("cmake", "make", "aarch64-linux-gnu-g++")
    machine = qemu.read_machine(qemu.devices_folder() / "arm64")
    if machine is None:
        pytest.skip("the emulated machine is not set up: edgeq device setup arm64")
    there = release(project / "onnxruntime", machine.folder / "site" / "onnxruntime" / "capi")
    emulator = f"{machine.emulator};-cpu;{qemu.DEFAULT_CPU['arm64']};-L;{machine.folder / 'root'}"
    assert not configured(
        project, environment, there,
        f"-DCMAKE_TOOLCHAIN_FILE={DRONE / 'aarch64.cmake'}", f"-DCMAKE_CROSSCOMPILING_EMULATOR={emulator}",
        "-DDEPLOY_OPTIONS=--max-drop 1% --effort fast",
    )  # fmt: skip
    told = cmake(project, environment, "--build", "build")
    assert told.returncode == 0, told.stdout + told.stderr

    package = project / "build" / "package"
    assert {path.name for path in package.iterdir()} >= {"drone", "model.onnx", "golden", "libonnxruntime.so.1"}
    prove = ["ctest", "--test-dir", str(project / "build"), "--verbose"]
    told = subprocess.run(prove, capture_output=True, text=True)
    assert told.returncode == 0 and "golden: 4 samples, the same bits" in told.stdout, told.stdout

    path = package / "golden" / "output:onnx:0.npy"
    np.save(path, np.nextafter(np.load(path), np.float32(np.inf)))
    told = subprocess.run(prove, capture_output=True, text=True)
    assert told.returncode != 0 and "answers moved by up to " in told.stdout


def test_it_is_deployed_again_for_what_changed_and_a_missed_limit_ends_the_build(
    drone: Path, project: Path, environment: dict[str, str]
) -> None:
    need("cmake", "make")
    deployed, there = project / "build" / "package" / "model.onnx", drone.parent / "onnxruntime"
    program, told = project / "program", project / "told"
    np.savez(project / "golden.npz", x=np.zeros(1))
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {told}\nwhile [ "$1" != --out ]; do shift; done\nmkdir -p "$2"\n'
        f'cp {project}/golden.npz "$2"\ncp {project}/model.pt "$2/model.onnx"\ntest ! -e {project}/missed || exit 3\n'
    )
    program.chmod(0o755)

    def build(*options: str) -> tuple[bool, int]:
        """Whether it succeeded, and how often it was deployed by then."""
        assert not configured(project, environment, there, f"-DEDGEQ={program}", *options)
        done = cmake(project, environment, "--build", "build", "--target", "artefact")
        return done.returncode == 0, len(told.read_text().splitlines())

    assert build() == (True, 1)
    assert build() == (True, 1)
    os.utime(project / "calib.npz")
    assert build() == (True, 2)
    assert build("-DDEPLOY_OPTIONS=--max-drop 2% --effort fast") == (True, 3)
    assert "--max-drop 2% --effort fast --overwrite" in told.read_text().splitlines()[-1]
    before = deployed.stat().st_mtime_ns
    (project / "missed").touch()
    os.utime(project / "model.pt")
    assert build() == (False, 4)
    assert deployed.stat().st_mtime_ns == before
    (project / "missed").unlink()
    assert build() == (True, 5)


def test_what_is_missing_is_named_with_its_remedy(drone: Path, project: Path, environment: dict[str, str]) -> None:
    need("cmake", "make")
    there = drone.parent / "onnxruntime"
    bare = {**environment, "PATH": "/usr/bin:/bin"}
    assert "edgeq was not found" in (why := configured(project, bare, there)) and "-DEDGEQ=" in why
    assert "-DONNXRUNTIME_ROOT=" in configured(project, environment, project / "nowhere")
