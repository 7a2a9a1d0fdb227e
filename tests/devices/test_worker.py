"""The worker alone: a file, a job, a process."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import device_models as models
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.devices.link import WORKER
from edgeq.on_device import FOLDER, worker
from edgeq.on_device.openvino import mean_of_later
from edgeq.runtimes import RUNTIMES

pytest.importorskip("openvino")
pytest.importorskip("ai_edge_litert")


@pytest.fixture
def onnx_model(tmp_path: Path) -> Path:
    return models.write_float_onnx(tmp_path / "float.onnx")


def run_job(folder: Path, task: str, runtime: str, **fields: Any) -> dict[str, Any]:
    job = {"runtime": on_device(runtime), "task": task, "threads": 1, "artifacts": {}, **fields}
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, str(WORKER), str(folder / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    assert done.returncode == (1 if "error" in result else 0), done.stderr
    result["stdout"] = done.stdout
    return result


def on_device(runtime: str) -> str:
    return str(RUNTIMES[runtime].on_device)


def stage(folder: Path, **arrays: Any) -> dict[str, str]:
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {name: f"{name}.npy" for name in arrays}


def artifact(path: Path, inputs: dict[str, str], **options: str) -> dict[str, Any]:
    return {"path": path.name, "options": options, "inputs": inputs}


def test_openvino_reports_nothing_and_leaves_nothing_in_the_home(tmp_path: Path) -> None:
    # under CI it keeps quiet by itself
    bare = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    job = {"runtime": on_device("openvino"), "task": "environment", "threads": 1, "artifacts": {}}
    (tmp_path / "job.json").write_text(json.dumps(job))
    subprocess.run([sys.executable, str(WORKER), str(tmp_path / "job.json")], env=bare, check=True)
    assert {file.name for file in tmp_path.iterdir()} == {"job.json", "result.json"}


def test_what_a_worker_sets_for_itself_is_not_set_for_those_who_import_it() -> None:
    code = "import os; before = dict(os.environ); import edgeq.on_device.worker; print(dict(os.environ) == before)"
    code = f"import edgeq; {code}"  # which sets what it wants to be set
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]


def test_started_ahead_it_does_the_job_that_it_is_told_of_or_none(tmp_path: Path, onnx_model: Path) -> None:
    inputs = stage(tmp_path, a=models.samples(7, 1), b=models.samples(7, 2))
    job = {"runtime": "", "task": "outputs", "threads": 1, "artifacts": {"a": artifact(onnx_model, inputs)}}
    (tmp_path / "job.json").write_text(json.dumps({**job, "stop_at_eof": True}))
    ahead = [sys.executable, str(WORKER), "--ahead", on_device("onnxruntime")]
    done = subprocess.run(ahead, input="", capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    child = subprocess.Popen(ahead, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None
    print(json.dumps(str(tmp_path / "job.json")), file=child.stdin, flush=True)
    child.stdout.read()
    assert child.wait() == 0
    child.stdin.close()
    child.stdout.close()
    assert json.loads((tmp_path / "result.json").read_text())["files"] == ["output0.npy", "output1.npy"]


def test_what_lies_beside_it_is_not_imported(tmp_path: Path) -> None:
    shutil.copy(WORKER, tmp_path)
    for file in ("health.py", "decoder.py"):
        shutil.copy(WORKER.with_name(file), tmp_path)
    for module in ("numpy", "onnxruntime"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('not meant')")
    shutil.copy(on_device("onnxruntime"), tmp_path / "known.py")
    job = {"runtime": "known.py", "task": "environment", "threads": 1, "artifacts": {}}
    (tmp_path / "job.json").write_text(json.dumps(job))
    subprocess.run([sys.executable, "worker.py", "job.json"], cwd=tmp_path, check=True)
    assert "environment" in json.loads((tmp_path / "result.json").read_text())


@pytest.mark.parametrize("file", FOLDER.glob("*.py"), ids=lambda file: file.name)
def test_speaks_python_3_8_and_knows_nothing_else_of_edgeq(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 8))
    imported = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    imported |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    beside = {f"edgeq.on_device.{one.stem}" for one in FOLDER.glob("*.py")}
    assert {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names} <= {"numpy", *beside}


@pytest.mark.parametrize("threads", [1, 3], ids=["one by one", "side by side"])
@pytest.mark.parametrize("kernels", ["xnnpack", "builtin", "reference"])
def test_litert_runs_integers_bit_exactly_and_reports_quantization(tmp_path: Path, kernels: str, threads: int) -> None:
    path = models.write_tflite(tmp_path / "m.tflite", signature=True)
    a, b = models.integers(5, 1), models.integers(5, 2)
    files = stage(tmp_path, args_1=b, args_0=a)
    given = {"m": artifact(path, files, kernels=kernels)}
    result = run_job(tmp_path, "outputs", "litert", threads=threads, artifacts=given)
    got = [np.load(tmp_path / name) for name in result["files"]]
    np.testing.assert_array_equal(got[0], models.tflite_answer(a))
    np.testing.assert_array_equal(got[1], models.tflite_answer(b))
    assert (got[0] == 127).any() or (got[1] == 127).any()
    port = result["interface"]["outputs"][0]
    assert (port["names"], port["dtype"]) == (["output_0", "out_a"], "int8")
    assert (port["scale"], port["zero_point"]) == (0.125, -5)


class Lane:
    """Stands for a loaded model that answers with its input, and knows who calls it."""

    def __init__(self, busy: set[int], met: threading.Barrier, shapes: int = 1) -> None:
        self.busy, self.met, self.shapes, self.seen = busy, met, shapes, 0

    def feed(self, arrays: list[Any]) -> None:
        assert id(self) not in self.busy, "two threads in one lane"
        self.busy.add(id(self))
        self.given = arrays[0]

    def invoke(self) -> None:
        self.seen += 1
        if self.given[0, 0] in (1.0, 2.0):  # the second and third sample wait for each other
            self.met.wait(timeout=30)

    def fetch(self) -> list[Any]:
        self.busy.remove(id(self))
        return [self.given if self.given[0, 0] < 4.0 else np.repeat(self.given, self.shapes, axis=1)]

    def loaded(self) -> worker.Loaded:
        ports = [worker.Port(["y"], [1, 2], "float32", None, None)]
        return worker.Loaded(ports, ports, self.feed, self.invoke, self.fetch, list, self.loaded)


def side_by_side(lanes: list[Lane], monkeypatch: pytest.MonkeyPatch, folder: Path) -> tuple[list[str], bool]:
    monkeypatch.chdir(folder)
    x = np.repeat(np.arange(6, dtype=np.float32)[:, None], 2, axis=1)
    return worker.run_outputs([lane.loaded() for lane in lanes], worker.bind(lanes[0].loaded().inputs, {"y": x}, False))


def test_samples_run_side_by_side_each_in_a_lane_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy: set[int] = set()
    met = threading.Barrier(2)
    lanes = [Lane(busy, met), Lane(busy, met)]
    (name,), missed = side_by_side(lanes, monkeypatch, tmp_path)
    assert not missed
    assert np.load(tmp_path / name)[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert lanes[0].seen + lanes[1].seen == 6 and min(lane.seen for lane in lanes) > 0


def test_a_failure_beside_other_samples_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy: set[int] = set()
    met = threading.Barrier(2)
    with pytest.raises(worker.WorkerError, match="changes its shape"):
        side_by_side([Lane(busy, met, 2), Lane(busy, met, 2)], monkeypatch, tmp_path)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("most", "missed"), [(1, True), (4, True), (5, False)])
def test_samples_are_left_out_once_too_many_answers_are_wrong(
    tmp_path: Path, onnx_model: Path, threads: int, most: int, missed: bool
) -> None:
    a, b = models.samples(40, 1), models.samples(40, 2)
    right = models.float_answer(a, b)[0].reshape(40, -1).argmax(1)
    order = np.random.default_rng(0).permutation(40)
    wanted = right.copy()
    wanted[order[[0, 1, 3, 4, 20]]] += 1
    decides = {"wanted": wanted.tolist(), "most": most, "order": order.tolist()}
    given = {"m": artifact(onnx_model, stage(tmp_path, a=a, b=b))}
    result = run_job(tmp_path, "outputs", "onnxruntime", threads=threads, artifacts=given, **decides)
    assert result["missed"] == missed
    answers = np.load(tmp_path / result["files"][0])[order].reshape(40, -1)
    ran = 40 if not missed else [0, 1, 3, 4, 20][most] + 1
    assert (answers[:ran].argmax(1) == right[order[:ran]]).all()
    if threads == 1:
        assert not answers[ran:].any()


def test_litert_takes_strange_names_in_order(tmp_path: Path) -> None:
    a, b = models.integers(3, 1), models.integers(3, 2)
    for signature, want in ((True, (a, b)), (False, (b, a))):
        path = models.write_tflite(tmp_path / "m.tflite", signature=signature)
        files = stage(tmp_path, first=want[0], second=want[1])
        result = run_job(tmp_path, "outputs", "litert", artifacts={"m": artifact(path, files)})
        for name, array in zip(result["files"], want, strict=True):
            np.testing.assert_array_equal(np.load(tmp_path / name), models.tflite_answer(array))


def test_openvino_runs_in_float32_unless_asked(tmp_path: Path, onnx_model: Path) -> None:
    files = stage(tmp_path, a=models.samples(1), b=models.samples(1))
    told = run_job(tmp_path, "environment", "openvino")["environment"]["capabilities"].split()
    for precision, flag in (("float32", "FP32"), ("bfloat16", "BF16")):
        job = {"m": artifact(onnx_model, files, precision=precision)}
        result = run_job(tmp_path, "placement", "openvino", artifacts=job, runs=2)
        if flag in told:
            assert ("bf16" in {r["where"].rpartition("_")[2] for r in result["rows"]["m"]}) == (precision == "bfloat16")
        else:
            assert "no bfloat16" in result["error"]["message"]


@given(st.lists(st.floats(1, 50), min_size=20, max_size=40), st.floats(1, 4))
def test_means_of_openvino_without_its_first_calls(later: list[float], slower: float) -> None:
    """Whole microseconds are all that OpenVINO gives; what is left of the first, slower calls is the cut's error."""
    first = [slower * later[0]] * 5
    told = [float(int(np.mean(times))) for times in (first, [*first, *later])]
    found = mean_of_later(told[1], 5 + len(later), told[0], 5)
    assert found == pytest.approx(np.mean(later), abs=0.5 * (10 + len(later)) / len(later) + 1e-6)


def test_openvino_profiles_the_calls_that_were_asked_for(tmp_path: Path, onnx_model: Path) -> None:
    files = stage(tmp_path, a=models.samples(1), b=models.samples(1))
    job = {"m": artifact(onnx_model, files)}
    few, many = (run_job(tmp_path, "placement", "openvino", artifacts=job, runs=n)["rows"]["m"] for n in (2, 40))
    assert [r["name"] for r in few] == [r["name"] for r in many]
    assert any(r["microseconds"] is not None for r in many)


@pytest.mark.parametrize("shape", [(5,), (5, 4), (1, 4), (2, 3, 4)])
def test_samples_are_whole_inputs_or_rows_of_them(shape: tuple[int, ...]) -> None:
    port = worker.Port(["x"], list(shape), "float32", None, None)
    loaded: Any = SimpleNamespace(inputs=[port])
    whole = np.arange(3 * np.prod(shape), dtype=np.float32).reshape(3, *shape)
    for arrays in (whole, whole.reshape(-1, *shape[1:])):
        bound = worker.bind(loaded.inputs, {"x": arrays}, by_order=False)
        assert bound.total == 3
        for index in range(3):
            np.testing.assert_array_equal(bound.call(index)[0], whole[index])


def test_models_that_are_loaded_side_by_side_do_not_wait_for_one_another() -> None:
    """Eight threads ask OpenVINO for a NumPy type at the same moment, and change places all the time."""
    code = (
        "import sys, threading; from edgeq.on_device import openvino, worker; sys.setswitchinterval(1e-6); "
        "met = threading.Barrier(8); worker.usable_cores = lambda: 8; "
        "ov = openvino.RUNTIME.find()[0]; "
        "runtime = openvino.RUNTIME._replace(load=lambda *_: (met.wait(), ov.Type.f32.to_dtype())); "
        "one = {'path': '', 'options': {}}; "
        "job = {'task': 'latency', 'artifacts': {str(i): one for i in range(8)}}; "
        "how = worker.Setting(1, 1, True, False); "
        "print(len([load() for load in worker.loading(job, runtime, how).values()]))"
    )
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, "8\n"), done.stderr
