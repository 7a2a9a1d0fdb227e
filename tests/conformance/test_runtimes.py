"""What every runtime has to do, whichever it is: the same artefacts, with answers that NumPy gives.

A runtime takes part by being in `RUNTIMES`. The one of the guide `docs/runtimes.md` does so here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import device_models as models
import numpy as np
import pytest

from edgeq.devices import Candidate, Device, Files, open_device
from edgeq.devices.link import PythonWorker
from edgeq.devices.local import run_here
from edgeq.errors import DeviceError
from edgeq.progress import Silent
from edgeq.runtimes import RUNTIMES, on_cpus, runtime

GUIDE = Path(__file__).parents[2] / "docs" / "runtimes.md"
GUEST = "onnx-reference"
MICRO = "tflite-micro"
NAMES = [*(info.name for info in on_cpus()), MICRO, GUEST]


class Artefact(NamedTuple):
    """One with two inputs, which the model does not list in the order of their names.

    Attributes:
        inputs: three samples by name.
        answers: what NumPy makes of them, in the model's order.
    """

    candidate: Candidate
    inputs: dict[str, np.ndarray]
    answers: list[np.ndarray]


@pytest.fixture(scope="module", autouse=True)
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    on_device, entry = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    file = tmp_path_factory.mktemp("guest") / "reference.py"
    file.write_text(on_device)
    exec(entry.replace('Path("reference.py")', f"Path({str(file)!r})"), {})
    yield
    del RUNTIMES[GUEST]


@pytest.fixture(params=NAMES)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Artefact:
    name: str = request.param
    if not runtime(name).available():
        pytest.skip(f"{name} is not installed")
    if ".onnx" in runtime(name).suffixes:
        path = models.write_float_onnx(tmp_path / "model.onnx")
        a, b = models.samples(3, 1), models.samples(3, 2)
        return Artefact(
            Candidate(path, name), {"a": a, "b": b}, [x.astype(np.float32) for x in models.float_answer(a, b)]
        )
    if ".pte" in runtime(name).suffixes:
        path = models.write_pte(tmp_path / "model.pte")
        a, b = models.samples(3, 1), models.samples(3, 2)
        answers = [x.astype(np.float32) for x in models.float_answer(a, b)]
        return Artefact(Candidate(path, name), {"args_1": a, "args_0": b}, answers)
    path = models.write_tflite(tmp_path / "model.tflite", signature=True)
    p, q = models.integers(3, 1), models.integers(3, 2)
    return Artefact(Candidate(path, name), {"args_0": p, "args_1": q}, [models.tflite_answer(x) for x in (p, q)])


@pytest.fixture
def here(made: Artefact) -> Device:
    return open_device("micro" if made.candidate.runtime == MICRO else "local")


@pytest.mark.parametrize("threads", [1, 3])
def test_answers_are_numpys_in_the_models_order(made: Artefact, threads: int, here: Device) -> None:
    class Heard(Silent):
        steps: ClassVar[list[tuple[int, int]]] = []

        def step(self, done: int, total: int) -> None:
            self.steps.append((done, total))

    for inputs in (made.inputs, dict(reversed(made.inputs.items()))):
        found = here.outputs(made.candidate, inputs, Heard(), threads=threads)
        assert Heard.steps[-1] == (3, 3)
        for got, wanted in zip(found, made.answers, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-6)
            assert got.dtype == wanted.dtype


def test_integers_are_computed_to_the_bit(tmp_path: Path, made: Artefact, here: Device) -> None:
    if ".onnx" not in runtime(made.candidate.runtime).suffixes:
        pytest.skip("the other tests are of integers")
    path, x = models.write_quantized_onnx(tmp_path / "quantized.onnx"), models.images(6)
    (got,) = here.outputs(Candidate(path, made.candidate.runtime), {"x": x})
    np.testing.assert_array_equal(got, models.quantized_answer(x))


def test_samples_in_files_are_those_in_memory(tmp_path: Path, made: Artefact, here: Device) -> None:
    files: Files = {name: tmp_path / f"{name}.npy" for name in made.inputs}
    for name, path in files.items():
        np.save(str(path), made.inputs[name])
    for got, wanted in zip(here.outputs(made.candidate, files), made.answers, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_what_it_takes_and_gives_is_told(made: Artefact, here: Device) -> None:
    found = here.interface(made.candidate)
    ports = {name: port for port in found.inputs for name in port.names}
    for name, array in made.inputs.items():
        assert ports[name].dtype == array.dtype.name and ports[name].shape[1:] == array.shape[1:]
        assert ports[name].shape[0] in (-1, 1)
    assert [port.shape[1:] for port in found.outputs] == [answer.shape[1:] for answer in made.answers]


def test_the_device_is_told(made: Artefact, here: Device) -> None:
    info = runtime(made.candidate.runtime)
    told = here.environment(info.name)
    assert (
        told["runtime_version"].startswith(info.version() or "?")
        and told["cpu"]
        and told["threads"] == str(len(os.sched_getaffinity(0)))
    )
    assert info.baselines(told)["float32"] == {"precision": "float32"}


def test_times_are_taken_in_turns(made: Artefact, here: Device) -> None:
    if here.emulated:
        pytest.skip("it is emulated")
    found = here.latency({"one": made.candidate, "two": made.candidate}, made.inputs, rounds=7, warmup=1)
    assert {name: seconds.shape for name, seconds in found.items()} == {"one": (7,), "two": (7,)}
    assert all((seconds > 0).all() and (seconds < 1).all() for seconds in found.values())
    cold = here.cold_start(made.candidate, made.inputs, runs=1)
    assert 0 < cold.seconds < 60 and 0 < cold.baseline_bytes <= cold.peak_bytes


def test_every_operator_is_placed(made: Artefact, here: Device) -> None:
    both = {key: (made.candidate, made.inputs) for key in ("one", "two")}
    found = here.placements(both, runs=2)
    alone = here.placement(made.candidate, made.inputs, runs=2)
    assert alone and all(row.name and row.op and row.where for row in alone)
    assert all(row.microseconds is None or row.microseconds >= 0 for row in alone)
    for rows in found.values():
        assert [(row.name, row.op, row.integer) for row in rows] == [(row.name, row.op, row.integer) for row in alone]


def without_one(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(list(inputs.items())[:1])


def of_another_type(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float64) for name, array in inputs.items()}


def of_another_shape(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([array, array], axis=1) for name, array in inputs.items()}


def of_two_lengths(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array[: 2 + number] for number, (name, array) in enumerate(inputs.items())}


def of_none(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array[:0] for name, array in inputs.items()}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_one, "2 inputs, 1 were given"),
        (of_another_type, "given float64"),
        (of_another_shape, "given .* of shape"),
        (of_two_lengths, "different numbers of samples"),
        (of_none, "shape"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_before_they_reach_it(
    made: Artefact, spoil: Any, message: str, here: Device
) -> None:
    with pytest.raises(DeviceError, match=message) as error:
        here.outputs(made.candidate, spoil(made.inputs))
    assert error.value.where == str(made.candidate.path) and error.value.remedy


def test_a_broken_file_is_its_own_message_in_one_line(made: Artefact, here: Device) -> None:
    made.candidate.path.write_bytes(b"\x08\x99nothing that anyone reads")
    with pytest.raises(DeviceError) as error:
        here.interface(made.candidate)
    assert error.value.where == str(made.candidate.path)
    assert error.value.cause and "\n" not in error.value.cause
    assert runtime(made.candidate.runtime).distribution in error.value.remedy
    made.candidate.path.unlink()
    with pytest.raises(DeviceError, match="no such artefact"):
        here.interface(made.candidate)


def test_options_that_it_does_not_have_are_refused(made: Artefact, here: Device) -> None:
    for options in ({"precision": "int3"}, {"kernels": "of another runtime"}, {"speed": "high"}):
        with pytest.raises(DeviceError, match="option"):
            here.interface(Candidate(made.candidate.path, made.candidate.runtime, options))


def test_where_it_is_missing_its_package_is_named(made: Artefact, tmp_path: Path, here: Device) -> None:
    info = runtime(made.candidate.runtime)
    start = tmp_path / "start.py"
    start.write_text(
        f"import runpy, sys\nfor m in {info.modules!r}: sys.modules[m] = None\n"
        "sys.argv = sys.argv[1:]\nsys.exit(runpy.run_path(sys.argv[0], run_name='__main__'))\n"
    )
    bare = Device("bare", False, run_here, runner=PythonWorker([here.runner.python[0], str(start)]))  # type: ignore[attr-defined]
    with pytest.raises(DeviceError, match=info.distribution) as error:
        bare.environment(info.name)
    assert (f"edgeq[{info.extra}]" if info.extra else f"pip install {info.distribution}") in error.value.remedy
