"""Devices: this machine, the emulated one, and what happens when a worker does not come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import device_models as models
import numpy as np
import onnx
import pytest
import torch

from edgeq import on_device
from edgeq.calibration.calibrate import calibrate
from edgeq.data.stored import stored_arrays
from edgeq.devices import Candidate, Device, device_status, open_device, qemu, workers_ahead
from edgeq.devices.setup import renamed_sources, set_up
from edgeq.errors import DeviceError, UsageError
from edgeq.export.artifact import Exporter
from edgeq.frontends.load import load
from edgeq.methods.quantize import quantize_model
from edgeq.registry.load import load_target
from edgeq.runtimes import runtime

pytest.importorskip("openvino")
pytest.importorskip("ai_edge_litert")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where jobs are staged: it must be empty after each."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture
def quantized(tmp_path: Path) -> Candidate:
    return Candidate(models.write_quantized_onnx(tmp_path / "q.onnx"), "onnxruntime")


class Steps:
    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def start(self, stage: str) -> None: ...
    def step(self, done: int, total: int) -> None:
        self.seen.append((done, total))

    def end(self, stage: str, seconds: float) -> None: ...
    def note(self, text: str) -> None: ...


def test_an_input_may_lie_anywhere_in_a_file(tmp_path: Path, quantized: Candidate) -> None:
    x = models.images(4)
    np.savez(tmp_path / "x.npz", other=np.arange(3), x=x)
    stored = stored_arrays(tmp_path / "x.npz")["x"]
    assert stored.place is not None and stored.place.offset % 4, "not even aligned"
    (y,) = open_device("local").outputs(quantized, {"x": stored.place})
    np.testing.assert_array_equal(y, models.quantized_answer(x))


@pytest.mark.parametrize("linked", [True, False], ids=["linked", "copied"])
def test_inputs_in_files_give_the_same_answers_and_the_files_stay_as_they_are(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("links are not allowed")

    if not linked:
        monkeypatch.setattr(os, "link", refuse)
    local = open_device("local")
    floating = Candidate(models.write_float_onnx(tmp_path / "f.onnx"), "onnxruntime")
    integer = Candidate(models.write_tflite(tmp_path / "m.tflite", signature=True), "litert")
    for candidate, arrays in (
        (floating, {"a": models.samples(5, 1), "b": models.samples(5, 2)}),
        (integer, {"args_0": models.integers(5, 1), "args_1": models.integers(5, 2)}),
    ):
        files = {name: tmp_path / f"{name}.npy" for name in arrays}
        for name, path in files.items():
            np.save(path, arrays[name])
        before = {path: (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns) for path in files.values()}
        got, expected = local.outputs(candidate, files), local.outputs(candidate, arrays)
        assert len(got) == len(expected) == 2
        for ours, theirs in zip(got, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs, strict=True)
        after = {path: (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns) for path in files.values()}
        assert after == before and all(path.stat().st_nlink == 1 for path in files.values())
    assert list(temporary.iterdir()) == []


def test_placement_tells_integer_kernels_from_float_ones(quantized: Candidate, tmp_path: Path) -> None:
    local = open_device("local")
    inputs = {"x": models.images(1)}
    by_op = {p.op: p for p in local.placement(quantized, inputs)}
    assert by_op["QLinearConv"].integer is True
    assert by_op["QuantizeLinear"].integer is None
    assert by_op["QLinearConv"].where == "CPUExecutionProvider"
    assert (by_op["QLinearConv"].microseconds or 0) > 0

    (conv,) = (p for p in local.placement(Candidate(quantized.path, "openvino"), inputs) if p.op == "Convolution")
    assert conv.integer is True and conv.where.startswith("CPU ")

    floating = Candidate(models.write_float_onnx(tmp_path / "f.onnx"), "onnxruntime")
    found = local.placement(floating, {"a": models.samples(1), "b": models.samples(1)})
    assert {p.integer for p in found} == {False}


def test_placement_in_litert_names_the_delegate(tmp_path: Path) -> None:
    path = models.write_tflite(tmp_path / "m.tflite", signature=True)
    inputs = {"args_0": models.integers(1), "args_1": models.integers(1)}
    local = open_device("local")
    for options, where in (({}, "XNNPACK delegate"), ({"kernels": "builtin"}, "builtin kernel")):
        found = local.placement(Candidate(path, "litert", options), inputs)
        assert [(p.op, p.where, p.integer) for p in found] == [("FULLY_CONNECTED", where, True)] * 2


def test_latency_gives_each_artifact_its_inputs(tmp_path: Path, quantized: Candidate, temporary: Path) -> None:
    floating = Candidate(models.write_float_onnx(tmp_path / "f.onnx"), "onnxruntime")
    found = open_device("local").latency(
        {"quantized": quantized, "float": floating},
        {"x": models.images(2)},
        own_inputs={"float": {"a": models.samples(2), "b": models.samples(2)}},
        rounds=12,
        warmup=1,
    )
    assert {name: seconds.shape for name, seconds in found.items()} == {"quantized": (12,), "float": (12,)}
    assert all((seconds > 0).all() for seconds in found.values())
    assert list(temporary.iterdir()) == []


def test_latency_wants_one_runtime(quantized: Candidate) -> None:
    mixed = {"a": quantized, "b": Candidate(quantized.path, "openvino")}
    with pytest.raises(UsageError, match="one runtime"):
        open_device("local").latency(mixed, {"x": models.images(1)})


def test_cold_start_is_not_coloured_by_the_size_of_this_process(quantized: Candidate) -> None:
    ballast = np.ones(400_000_000, np.uint8)
    cold = open_device("local").cold_start(quantized, {"x": models.images(1)}, runs=1)
    assert 0 < cold.baseline_bytes <= cold.peak_bytes < ballast.nbytes
    assert 0 < cold.artifact_bytes < 200_000_000
    assert 0 < cold.seconds < 10


def test_the_quantization_of_ends_is_told(tmp_path: Path) -> None:
    local = open_device("local")
    path = models.write_tflite(tmp_path / "m.tflite", signature=True)
    found = local.interface(Candidate(path, "litert"))
    assert [(p.names[0], p.shape, p.dtype, p.scale, p.zero_point) for p in found.inputs] == [
        ("args_0", (1, 4), "int8", 0.5, 3),
        ("args_1", (1, 4), "int8", 0.5, 3),
    ]


def test_external_data_travels_with_the_artifact(tmp_path: Path) -> None:
    import onnx

    whole = models.write_float_onnx(tmp_path / "whole.onnx")
    split = tmp_path / "elsewhere" / "split.onnx"
    split.parent.mkdir()
    onnx.save(onnx.load(whole), split, save_as_external_data=True, location="weights.bin", size_threshold=0)
    a, b = models.samples(2, 1), models.samples(2, 2)
    got = open_device("local").outputs(Candidate(split, "onnxruntime"), {"a": a, "b": b})
    np.testing.assert_allclose(got[1], models.float_answer(a, b)[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import sys; sys.exit('no numpy here')", "status 1 and left no result: no numpy here"),
    ],
)
def test_a_crashed_worker_is_a_device_error(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, quantized: Candidate, code: str, told: str
) -> None:
    (tmp_path / "crashing").mkdir()
    (tmp_path / "crashing/worker.py").write_text(code)
    monkeypatch.setattr(on_device, "FOLDER", tmp_path / "crashing")
    with pytest.raises(DeviceError, match=told) as caught:
        open_device("local").interface(quantized)
    assert caught.value.remedy
    assert list(temporary.iterdir()) == []


def endless(path: Path) -> Candidate:
    """A loop of which nothing says how often it turns, and whose condition stays true."""
    tensor, kinds = onnx.helper.make_tensor_value_info, onnx.TensorProto
    body = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Identity", ["go"], ["again"]),
            onnx.helper.make_node("Mul", ["value", "value"], ["next"]),
        ],
        "body",
        [tensor("turn", kinds.INT64, []), tensor("go", kinds.BOOL, []), tensor("value", kinds.FLOAT, [1, 3])],
        [tensor("again", kinds.BOOL, []), tensor("next", kinds.FLOAT, [1, 3])],
    )
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Loop", ["", "true", "x"], ["y"], body=body)],
        "endless",
        [tensor("x", kinds.FLOAT, [1, 3])],
        [tensor("y", kinds.FLOAT, [1, 3])],
        [onnx.helper.make_tensor("true", kinds.BOOL, [], [True])],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), path)
    return Candidate(path, "onnxruntime")


@pytest.mark.parametrize("ahead", [False, True])
def test_an_artefact_that_never_answers_is_ended(
    ahead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    monkeypatch.setenv("EDGEQ_PATIENCE", "0.05")
    here = open_device("local")
    with workers_ahead([here]):
        if ahead:
            here.expect("onnxruntime")
        with pytest.raises(DeviceError, match="did not finish one call") as caught:
            here.outputs(endless(tmp_path / "endless.onnx"), {"x": np.ones((2, 3), np.float32)})
    assert "EDGEQ_PATIENCE" in caught.value.remedy and "endless.onnx" in str(caught.value)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("told", ["soon", "-1", "0", "nan"])
def test_a_patience_that_is_none(told: str, quantized: Candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_PATIENCE", told)
    with pytest.raises(UsageError, match="cannot read"):
        open_device("local").interface(quantized)


def test_workers_that_are_started_ahead_do_one_job_each(quantized: Candidate, temporary: Path) -> None:
    here, x = open_device("local"), {"x": np.random.default_rng(0).normal(size=(5, 4, 3, 3)).astype(np.float32)}
    wanted = here.outputs(quantized, x)
    others = children(os.getpid())

    def waiting() -> list[int]:
        return [child for child in children(os.getpid()) if child not in others]

    with workers_ahead([here, None]):
        here.expect("onnxruntime", 2)
        here.expect("onnxruntime", 1)
        first, second = waiting()
        here.cold_start(quantized, x, runs=1)  # times the import
        here.environment("openvino")
        assert waiting() == [first, second]
        (found,) = here.outputs(quantized, x)
        assert np.array_equal(found, wanted[0]) and waiting() == [second]
        assert here.latency({"one": quantized}, x, rounds=3)["one"].shape == (3,) and waiting() == []
        here.expect("onnxruntime")
        with pytest.raises(DeviceError, match="wants float32"):
            here.outputs(quantized, {"x": x["x"].astype(np.float64)})
        here.expect("onnxruntime")
        (last,) = waiting()
        os.kill(last, signal.SIGKILL)
        with pytest.raises(DeviceError, match="was ended by SIGKILL and left no result"):
            here.outputs(quantized, x)
        here.expect("litert", 3)
    assert waiting() == [] and list(temporary.iterdir()) == []


def children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(("number", "left"), [(signal.SIGINT, 0), (signal.SIGKILL, 1)])
def test_no_worker_outlives_the_host(tmp_path: Path, quantized: Candidate, number: int, left: int) -> None:
    """Ctrl-C leaves neither child nor folder; where the host is killed, its folder stays but the child goes."""
    place = tmp_path / "temporary"
    place.mkdir()
    script = tmp_path / "host.py"
    script.write_text(
        textwrap.dedent(f"""
        import numpy as np
        from pathlib import Path
        from edgeq.devices import Candidate, open_device
        from edgeq.progress import Silent
        class Tell(Silent):
            def step(self, done, total): print(done, flush=True)
        one = Candidate(Path({str(quantized.path)!r}), "onnxruntime")
        x = {{"x": np.zeros((1, 4, 3, 3), np.float32)}}
        here = open_device("local")
        here.expect("onnxruntime", 2)
        try:
            here.latency({{"one": one}}, x, Tell(), rounds=10**8)
        except KeyboardInterrupt:
            raise SystemExit(130)
        """)
    )
    host = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(place)}
    )
    assert host.stdout is not None and host.stdout.readline()
    at_work, waiting = children(host.pid)
    host.send_signal(number)
    assert host.wait(20) == (130 if number == signal.SIGINT else -number)
    host.stdout.close()
    for _ in range(100):
        if not any(Path(f"/proc/{child}").exists() for child in (at_work, waiting)):
            break
        time.sleep(0.1)
    else:
        pytest.fail("a worker is still there")
    assert len(list(place.iterdir())) == left


def test_device_names() -> None:
    with pytest.raises(UsageError, match="no device 'toaster'"):
        open_device("toaster")
    with pytest.raises(UsageError, match="'toaster' can be set up"):
        set_up("toaster")
    with pytest.raises(UsageError, match="in 'toaster'"):
        runtime("toaster")


def test_a_machine_that_is_not_set_up_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_HOME", str(tmp_path))
    with pytest.raises(DeviceError) as caught:
        open_device("arm64")
    assert caught.value.remedy == "edgeq device setup arm64"
    local, *others = device_status()
    assert local.ready and not local.emulated
    assert [(d.name, d.emulated, d.ready, d.remedy) for d in others if d.name in qemu.EMULATOR] == [
        (name, True, False, f"edgeq device setup {name}") for name in ("arm64", "x86_64")
    ]


def test_sources_are_renamed_without_makers_repositories() -> None:
    found = renamed_sources(
        {
            "debian.sources": (
                "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n"
                "Components: main\nArchitectures: amd64\nSigned-By: /usr/share/keyrings/bookworm.gpg\n\n"
                "# bookworm, of a maker\nTypes: deb\nURIs: http://maker.example\n"
                "Suites: tool-bookworm\nComponents: main\n"
            ),
            "old.list": "deb [arch=amd64] http://mirror.example/debian bookworm-security main\n# deb x bookworm main\n",
            "other.list": "deb http://maker.example stable main\n",
        },
        "bookworm",
        "trixie",
    )
    assert found == {
        "debian.sources": (
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie trixie-updates\n"
            "Components: main\nSigned-By: /usr/share/keyrings/bookworm.gpg\n"
        ),
        "old.list": "deb  http://mirror.example/debian trixie-security main\n",
    }


def emulated(kind: str) -> Device:
    if qemu.read_machine(qemu.devices_folder() / kind) is None:
        pytest.skip(f"the emulated machine is not set up: edgeq device setup {kind}")
    return open_device(kind)


@pytest.fixture(scope="module")
def arm() -> Device:
    return emulated("arm64")


def test_emulated_arm_agrees_with_numpy(arm: Device, quantized: Candidate, tmp_path: Path) -> None:
    x = models.images(2)
    (y,) = arm.outputs(quantized, {"x": x})
    np.testing.assert_array_equal(y, models.quantized_answer(x))

    path = models.write_tflite(tmp_path / "m.tflite", signature=True)
    a, b = models.integers(2, 1), models.integers(2, 2)
    got = arm.outputs(Candidate(path, "litert"), {"args_0": a, "args_1": b})
    np.testing.assert_array_equal(got[0], models.tflite_answer(a))
    np.testing.assert_array_equal(got[1], models.tflite_answer(b))


def test_emulated_arm_says_what_it_is(arm: Device, quantized: Candidate) -> None:
    told = arm.environment("onnxruntime")
    assert told["machine"] == "aarch64" and "asimddp" in told["cpu_isa"].split()
    placement = arm.placement(quantized, {"x": models.images(1)})
    assert [p.integer for p in placement if p.op == "QLinearConv"] == [True]
    assert {p.microseconds for p in placement} == {None}
    with pytest.raises(DeviceError, match="openvino is not on the emulated machine"):
        arm.environment("openvino")


def test_emulated_time_is_not_latency(arm: Device, quantized: Candidate) -> None:
    inputs = {"x": models.images(1)}
    with pytest.raises(DeviceError, match="not latency"):
        arm.latency({"q": quantized}, inputs)
    with pytest.raises(DeviceError, match="not the device's"):
        arm.cold_start(quantized, inputs)


@pytest.mark.parametrize("narrow", [True, False])
def test_depthwise_weights_of_minus_128_overflow_on_arm(arm: Device, narrow: bool, tmp_path: Path) -> None:
    """Its kernel adds two products of 8-bit numbers in 16 bits: 2 * 128 * 128 does not fit. The target's weights do."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
    with torch.no_grad():
        conv.weight.uniform_(-1.0, -0.99)
    model = load(conv.eval(), example=(torch.zeros(1, 8, 9, 9),))
    x = {model.inputs[0].name: np.random.default_rng(0).uniform(0, 1, (4, 8, 9, 9)).astype(np.float32)}
    runtime = next(r for r in load_target("arm-neon").runtimes if r.name == "onnxruntime")
    if not narrow:
        kernels = [k.model_copy(update={"weight_narrow": False}) for k in runtime.kernels]
        runtime = runtime.model_copy(update={"kernels": kernels})
    quantized = quantize_model(model, runtime, calibrate(model, x))
    (weight,) = quantized.weights.values()
    assert int(weight.integers.min()) == (-127 if narrow else -128)
    (path,) = Exporter(model, tmp_path).write(quantized, tmp_path)
    here, there = (d.outputs(Candidate(path, "onnxruntime"), x)[0] for d in (open_device("local"), arm))
    assert np.array_equal(here, there) == narrow


def test_unknown_cpu_models_are_refused(arm: Device) -> None:
    with pytest.raises(UsageError, match="no CPU model 'cortex-z1'") as caught:
        open_device("arm64:cortex-z1")
    assert "cortex-a53" in caught.value.remedy


def test_emulated_avx2_saturates_where_vnni_does_not(tmp_path: Path) -> None:
    """Pairs of u8 x s8 products are added in 16 bits there: 2 * 255 * 127 becomes 32767."""
    haswell = emulated("x86_64")
    path = models.write_saturating_onnx(tmp_path / "s.onnx")
    x = np.full((1, 64, 1, 1), 255, np.float32)
    (y,) = haswell.outputs(Candidate(path, "onnxruntime"), {"x": x}, threads=1)
    assert y.reshape(-1).tolist() == [round(32 * 32767 / 16384)] * 16
    if "avx512_vnni" in (here := open_device("local")).environment("onnxruntime")["cpu_isa"].split():
        (y,) = here.outputs(Candidate(path, "onnxruntime"), {"x": x}, threads=1)
        assert set(y.reshape(-1).tolist()) <= {126.0, 127.0}  # 64 * 255 * 127 / 16384 is 126.5
    told = haswell.environment("onnxruntime")
    assert (told["cpu"], told["emulator"]) == ("Haswell", "qemu-x86_64 -cpu Haswell")


def test_openvino_is_imported_without_telling_its_makers(tmp_path: Path) -> None:
    # under CI it keeps quiet by itself
    bare = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    code = (
        "import sys; from edgeq.runtimes.openvino import import_openvino as load;"
        "print(load() is load(), hasattr(load(), 'convert_model'), 'openvino_telemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "False"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "told",
    [
        '{"error": {}}',
        '{"files": "output0.npy", "missed": false}',
        '{"files": ["../../../../etc/hostname"], "missed": false}',
        '{"files": ["garbage.npy"], "missed": false}',
        '{"files": ["empty.npy"], "missed": false}',
        '{"files": [7], "missed": false}',
        "{}",
        "[]",
        "[" * 100_000,
    ],
)
def test_an_answer_that_is_none_is_a_device_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantized: Candidate, told: str
) -> None:
    (tmp_path / "lying").mkdir()
    (tmp_path / "told.json").write_text(told)
    code = f"import shutil; shutil.copy({str(tmp_path / 'told.json')!r}, 'result.json')\n"
    code += "open('garbage.npy', 'wb').write(bytes(range(200))); open('empty.npy', 'wb').close()"
    (tmp_path / "lying/worker.py").write_text(code)
    monkeypatch.setattr(on_device, "FOLDER", tmp_path / "lying")
    with pytest.raises(DeviceError) as caught:
        open_device("local").outputs(quantized, {"a": np.zeros((1, 4), np.float32)})
    assert caught.value.remedy
