"""Work in processes and on a Ray cluster: the same results to the bit, and what happens when a worker dies."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import engine_work
import numpy as np
import pytest
import torch
import trained_model

from edgeq.calibration.calibrate import calibrate
from edgeq.calibration.calibration import Calibration
from edgeq.cli.app import run
from edgeq.devices import Device, open_device
from edgeq.engine import LOCAL, Engine, open_engine
from edgeq.engine.task import SENT, Sent
from edgeq.errors import DeviceError, EdgeqError, MissingExtraError, UnsupportedError, UsageError
from edgeq.export.artifact import Exporter
from edgeq.export.audit import AuditError
from edgeq.frontends.load import load
from edgeq.limits import Limits
from edgeq.lowering.assign import FLOAT
from edgeq.lowering.choices import ladder, uniform
from edgeq.lowering.space import Space
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.planning.costs import table as costs_module
from edgeq.planning.costs.builds import build_all, probing_plans
from edgeq.planning.costs.timing import Observed
from edgeq.planning.planner import plan
from edgeq.planning.proof import proving as proving_module
from edgeq.planning.sensitivity.damages import measure_alone, measure_sensitivity
from edgeq.planning.sensitivity.value import contenders
from edgeq.plans.plan import Plan
from edgeq.progress import Silent
from edgeq.registry.load import load_target

RUNTIME = load_target("x86-avx512").runtimes
ENGINES = ["processes", "ray"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_model.make(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engines() -> Iterator[Callable[[str], Engine]]:
    """Engines of two workers by name, each started once for all tests."""
    with contextlib.ExitStack() as stack:
        paths = stack.enter_context(pytest.MonkeyPatch.context())
        paths.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]))

        @cache
        def started(name: str) -> Engine:
            if name == "ray" and find_spec("ray") is None:
                pytest.skip("the ray extra is not installed")
            return stack.enter_context(open_engine("ray" if name == "ray" else None, 2))

        yield started


@pytest.fixture
def engine(request: pytest.FixtureRequest, engines: Callable[[str], Engine]) -> Engine:
    return engines(request.param)


both = pytest.mark.parametrize("engine", ENGINES, indirect=True)


# --- the call itself --------------------------------------------------------------------------------


@both
def test_results_come_in_order_from_other_processes_on_one_thread_each(engine: Engine) -> None:
    class Steps(Silent):
        def __init__(self) -> None:
            self.seen: list[tuple[int, int]] = []

        def step(self, done: int, total: int) -> None:
            self.seen.append((done, total))

    factor, steps = torch.ones(3), Steps()
    found = engine.map(engine_work.scaled, (i for i in range(5)), factor, progress=steps)
    assert [value for value, _, _ in found] == [0.0, 3.0, 6.0, 9.0, 12.0]
    assert {threads for _, threads, _ in found} == {1}
    assert os.getpid() not in {worker for _, _, worker in found}
    assert steps.seen == [(i, 5) for i in range(1, 6)]


@both
def test_an_error_comes_back_as_it_was_raised_and_the_next_work_runs(engine: Engine) -> None:
    with pytest.raises(UnsupportedError) as raised:
        engine.map(engine_work.refuse, range(4))
    assert (raised.value.cause, raised.value.remedy, raised.value.where) == ("two", "take three", "here")
    with pytest.raises(MissingExtraError, match="package"):
        engine.map(engine_work.strange, range(1))
    with pytest.raises(EdgeqError, match="Odd: cannot travel"):
        engine.map(engine_work.local_class, range(1))
    assert engine.map(engine_work.refuse, [1, 3]) == [1, 3]


@both
def test_a_worker_that_is_killed_gives_an_error_with_a_remedy_and_the_next_work_runs(engine: Engine) -> None:
    raised: list[BaseException] = []

    def work() -> None:
        with pytest.raises(DeviceError) as caught:
            engine.map(engine_work.die, range(3))
        raised.append(caught.value)

    beside = threading.Thread(target=work, daemon=True)  # a hang would fail, not block
    beside.start()
    beside.join(120)
    (error,) = raised
    assert isinstance(error, DeviceError) and "worker" in error.cause and "memory" in error.remedy
    assert engine.map(engine_work.refuse, [1, 3]) == [1, 3]


@both
def test_what_cannot_be_sent_says_so(engine: Engine) -> None:
    with pytest.raises(UnsupportedError, match="cannot be sent"):
        engine.map(lambda item: item, [1])


def test_what_is_shared_is_sent_once_and_forgotten_in_turn() -> None:
    sent: list[bytes] = []
    dropped: list[int] = []

    def send(content: bytes) -> int:
        sent.append(content)
        return len(sent)

    kept = Sent(send, dropped.append)
    values = [[number] for number in range(SENT + 1)]
    assert kept.handles(values[:2]) == kept.handles(values[:2]) == (1, 2)
    for value in values[2:]:
        kept.handles([values[0], value])
    assert len(sent) == SENT + 1 and dropped == [2]
    assert kept.handles([[0]]) != kept.handles([values[0]])  # equal is not the same
    assert kept.handles([values[1]]) == (SENT + 3,)


@pytest.mark.parametrize(
    "error", [AuditError("layer a", "other weights"), MissingExtraError("p", "x"), UsageError("a", where="b")]
)
def test_errors_survive_pickling(error: EdgeqError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error)


def test_wrong_engines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(kind: type[EdgeqError], **given: object) -> str:
        with pytest.raises(kind) as raised, open_engine(**given):  # type: ignore[arg-type]
            pass
        return str(raised.value)

    assert "1 or more" in refused(UsageError, workers=0)
    assert "choose ray" in refused(UsageError, name="dask")
    if find_spec("ray") is not None:
        assert "ray://host:port" in refused(UsageError, name="ray://nowhere")
        assert "leave --workers away" in refused(UsageError, name="ray://127.0.0.1:9", workers=2)
        assert "nothing answers" in refused(DeviceError, name="ray://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "edgeq[ray]" in refused(MissingExtraError, name="ray")


def test_the_command_line_refuses_them_too(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["plan", str(files / "model.pt2"), "--target", "x86-avx512", "--calib", str(files / "calib.npz"),
             "--eval", str(files / "eval.npz")]  # fmt: skip
    assert run([*given, "--workers", "0"]) == 2
    assert run([*given, "--engine", "dask"]) == 2
    assert "there is no engine 'dask'" in capsys.readouterr().err


# --- processes end with their parent ----------------------------------------------------------------

PARENT = """
import sys, engine_work
from edgeq.engine import open_engine
from edgeq.cli import signals
if __name__ == "__main__":
    signals.install()
    with open_engine(workers=2) as engine:
        print(*{worker for _, _, worker in engine.map(engine_work.scaled, range(8), __import__("torch").ones(1))})
        sys.stdout.flush()
        engine.map(engine_work.wait, range(2))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_parent(number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "TMPDIR": str(tmp_path)},
        start_new_session=True,
    )
    assert parent.stdout is not None
    workers = [int(word) for word in parent.stdout.readline().split()]
    assert workers and all(alive(worker) for worker in workers)
    time.sleep(0.5)
    parent.send_signal(number)
    parent.wait(timeout=60)
    deadline = time.monotonic() + 60
    while any(alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(worker) for worker in workers)
    if number is signal.SIGINT:
        assert not list(tmp_path.glob("edgeq-*"))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- what is computed does not depend on where ------------------------------------------------------


def test_a_model_that_was_sent_is_the_same_model(files: Path) -> None:
    model = load(files / "model.pt2")
    again: Model = pickle.loads(pickle.dumps(model))
    assert again.fingerprint == model.fingerprint and again.inputs == model.inputs
    assert [g.name for g in again.groups] == [g.name for g in model.groups]
    x = [torch.randn(3, 1, 16, 16)]
    assert torch.equal(model.run([x])[0][0], again.run([x])[0][0])


def test_names_in_capitals_survive_the_journey() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.SPP = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1, bias=False), torch.nn.BatchNorm2d(3))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.SPP(image)

    model = load(Net().eval(), example=(torch.randn(1, 2, 4, 4),))
    again: Model = pickle.loads(pickle.dumps(model))
    assert again.fingerprint == model.fingerprint


@cache
def prepared(path: Path) -> tuple[Model, dict[str, np.ndarray], Calibration]:
    model = load(path / "model.pt2")
    inputs = {"image": np.load(path / "calib.npz")["image"]}
    return model, inputs, calibrate(model, inputs)


def everything(where: Engine, form: str, files: Path, folder: Path) -> tuple[object, object, dict[str, object]]:
    """What is measured and built for a format: losses, losses alone, and by probing plan its files and choices."""
    runtime = next(r for r in RUNTIME if r.format == form)
    model, inputs, calibration = prepared(files)
    options = ladder(model, runtime, calibration.histograms)
    alternatives = {
        name: quantize_model(model, runtime, calibration, choices=uniform(options, name))
        for name in dict.fromkeys(c for offered in options.values() for c in offered if c != FLOAT)
    }
    found = measure_sensitivity(model, inputs, alternatives, None, where)
    wanted = contenders({(g, c): v for g, costs in found.weights.items() for c, v in costs.items()})
    assert wanted
    plans = probing_plans(Space(model, runtime, options))
    built = build_all(model, runtime, calibration, plans, Exporter(model, folder), folder, Silent(), where)
    digests = {
        name: [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(b.candidate.path.parent.iterdir())]
        for name, b in built.items()
    }
    choices = {name: (b.choices, b.size) for name, b in built.items()}
    return found, measure_alone(model, inputs, alternatives, wanted, where), {**digests, **choices}


@cache
def everything_here(form: str, files: Path) -> tuple[object, object, dict[str, object]]:
    return everything(LOCAL, form, files, Path(tempfile.mkdtemp(dir=files)))


@both
@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_sensitivities_and_built_files_are_the_same_to_the_bit(
    engine: Engine, form: str, files: Path, tmp_path: Path
) -> None:
    if form == "openvino":
        pytest.importorskip("openvino")
    assert everything(engine, form, files, tmp_path) == everything_here(form, files)


def test_a_cluster_elsewhere_returns_the_files_themselves(
    engines: Callable[[str], Engine], files: Path, tmp_path: Path
) -> None:
    """As for a cluster that is joined, whose workers do not see this machine's folders."""
    runtime = next(r for r in RUNTIME if r.format == "onnx")
    model, _, calibration = prepared(files)
    plans = {"preferred": uniform(ladder(model, runtime, calibration.histograms))}
    exporter = Exporter(model, tmp_path)
    found = []
    for here in (True, False):
        folder = tmp_path / f"here{here}"
        folder.mkdir()

        class Seen:
            workers = 2
            map = staticmethod(engines("processes").map)

        where = Seen()
        where.here = here  # type: ignore[attr-defined]
        built = build_all(model, runtime, calibration, plans, exporter, folder, Silent(), where)  # type: ignore[arg-type]
        found.append(built["preferred"].candidate.path.read_bytes())
    assert found[0] == found[1]


@both
def test_the_plan_is_the_same_given_the_same_times(
    engine: Engine, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times are made up, from the choices alone; everything else is measured. No worker may be at work by then."""

    def times(model: Model, built: dict[str, object], *_: object) -> list[Observed]:
        assert not busy
        return [Observed(b.choices, seconds := made_up(b.choices), sum(seconds.values())) for b in built.values()]  # type: ignore[attr-defined]

    def latencies(_: object, choices: dict[str, str]) -> tuple[float, dict[str, float]]:
        assert not busy
        return sum(made_up(choices).values()), {"float32": 1e-3}

    busy: list[int] = []
    spread = threading.Lock()

    class Watched:
        here, workers = engine.here, engine.workers

        def map(self, *given: object, **options: object) -> list[object]:
            with spread:
                busy.append(1)
                try:
                    return engine.map(*given, **options)  # type: ignore[arg-type]
                finally:
                    busy.pop()

    monkeypatch.setattr(costs_module, "observe", times)
    monkeypatch.setattr(proving_module, "_latencies", latencies)
    monkeypatch.setenv("EDGEQ_CACHE", "off")

    assert planned(Watched(), files) == planned_here(files)  # type: ignore[arg-type]


def planned(where: Engine, files: Path) -> Plan:
    return plan(
        files / "model.pt2",
        target="x86-avx512",
        calibration=files / "calib.npz",
        evaluation=files / "eval.npz",
        format="onnx",
        limits=Limits.parse(max_drop="1%"),
        engine=where,
    )


@cache
def planned_here(files: Path) -> Plan:
    """Once for all engines, whose tests make the same times up."""
    return planned(LOCAL, files)


def made_up(choices: dict[str, str]) -> dict[str, float]:
    cost = {
        "w8a8": 1.0,
        "w4a8": 1.5,
        "w2a8": 1.6,
        "a8": 1.2,
        "w8": 2.0,
        "w4": 2.1,
        "w4asym": 2.1,
        "w2": 2.2,
        "w4codebook": 2.1,
        "w2codebook": 2.2,
        "w8a8dyn": 1.3,
        "w4a8dyn": 1.4,
        FLOAT: 2.0,
    }
    return {name: 1e-5 * cost[choice] * (1 + i % 3) for i, (name, choice) in enumerate(choices.items())}


@both
def test_answers_are_the_same_whoever_shares_the_samples_out(engine: Engine, files: Path, tmp_path: Path) -> None:
    from edgeq.data.load import load_data
    from edgeq.devices import Candidate
    from edgeq.evaluation.measure import answers, ends_of
    from edgeq.evaluation.reference import reference_outputs

    runtime = next(r for r in RUNTIME if r.format == "onnx")
    model, _, calibration = prepared(files)
    data = load_data(str(files / "eval.npz"), model.inputs, role="evaluation")
    quantized = quantize_model(model, runtime, calibration)
    path = Exporter(model, tmp_path).write(quantized, tmp_path)[0]
    reference, ends = reference_outputs(model, data, Silent()), ends_of(model, quantized)
    device = open_device("local")
    jobs: list[str] = []

    def counted(folder: Path, command: Sequence[str], on_line: Callable[[str], None]) -> object:
        jobs.append(folder.name)
        return device.link(folder, command, on_line)

    watched: Device = replace(device, link=counted)  # type: ignore[arg-type]
    given = (data, reference, ends, Silent())
    alone = answers(Candidate(path, runtime.name), watched, *given)
    assert len(jobs) == 1
    shared = answers(Candidate(path, runtime.name), watched, *given, engine)
    assert len(jobs) == 1, "the samples were not shared out"
    assert alone is not None and shared is not None
    assert all(np.array_equal(a, b) for a, b in zip(alone, shared, strict=True))
    elsewhere = answers(Candidate(path, runtime.name), replace(watched, shares_host=False), *given, engine)
    assert elsewhere is not None and np.array_equal(elsewhere[0], alone[0])
    assert len(jobs) == 2
