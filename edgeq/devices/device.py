"""A device: a place where artefacts run. All work goes through one worker process a job; devices differ in how a folder
gets there and how Python is started on it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeq.data.place import Place
from edgeq.errors import DeviceError, UsageError
from edgeq.progress import Progress, Silent
from edgeq.records.schema import Placement
from edgeq.registry.schema import RuntimeName
from edgeq.runtimes import RuntimeInfo, runtime

WORKER = Path(__file__).with_name("worker.py")

Inputs = Mapping[str, NDArray[Any]]
"""Arrays by the model's input names, in the dtype that the artefact wants, each of shape [samples, ...]."""

Files = Mapping[str, Path | Place]
"""The same in files: `.npy`, or a place within a file. They are linked to the job's folder where that can be done."""


@dataclass(frozen=True)
class Candidate:
    """An artefact that can be run.

    Attributes:
        path: its file; companions (`.bin`, external data) are found beside it.
        runtime: what runs it.
        options: `precision` (float32; in OpenVINO also bfloat16, float16) for the operators that stayed in float;
            `kernels` in LiteRT (xnnpack, builtin, reference).
    """

    path: Path
    runtime: RuntimeName
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Port:
    """An input or output of an artefact.

    Attributes:
        names: those it answers to, best first.
        shape: -1 where any length goes.
        dtype: numpy's name.
        scale: of the quantized values, where the file says; real = scale * (integer - zero_point).
        zero_point: likewise.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    scale: float | None
    zero_point: int | None


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs of an artefact, in the model's order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True)
class ColdStart:
    """A fresh process, from import to the first answer. Files may be in the page cache already.

    Attributes:
        import_seconds: the runtime's own import.
        load_seconds: from file to a model that is ready.
        first_seconds: the first inference.
        baseline_bytes: resident memory of interpreter, numpy and runtime before the artefact was touched.
        peak_bytes: the most that was ever resident.
    """

    import_seconds: float
    load_seconds: float
    first_seconds: float
    baseline_bytes: int
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """What the artefact costs: loading and the first inference."""
        return self.load_seconds + self.first_seconds

    @property
    def artifact_bytes(self) -> int:
        """What the artefact added to the process."""
        return self.peak_bytes - self.baseline_bytes


class Exit(NamedTuple):
    """How a worker ended: its exit status, negative for a signal, what it wrote to standard error, and for how many
    seconds it had said nothing when it was ended for that."""

    status: int
    stderr: str
    silent: float | None = None


Run = Callable[[Path, Callable[[str], None]], Exit]
"""Runs `worker.py job.json` with a folder as working directory, hands on its lines of output, and leaves the files that
it wrote in that same folder. The folder holds everything that the job needs: a device elsewhere copies it there, runs,
and copies the new files back."""


class Started(Protocol):
    """A worker that was started before there is a job for it: it imports its runtime, and waits."""

    def run(self, folder: Path, on_line: Callable[[str], None]) -> Exit:
        """Does a job, as `Run` says; the only one."""

    def end(self) -> None:
        """Without a job."""


@dataclass(frozen=True)
class Device:
    """A place where artefacts run.

    Attributes:
        name: as given to `open_device`.
        emulated: the arithmetic is the device's, time and memory are not.
        run: how a worker is started there.
        missing: the error for a runtime that is not installed there.
        facts: what the host knows of the device better than a worker there can.
        shares_host: its processes run on this machine, and as many at once as one likes.
        start: starts a worker ahead of its job, where that can be done.
    """

    name: str
    emulated: bool
    run: Run
    missing: Callable[[RuntimeInfo], DeviceError]
    facts: Mapping[str, str] = field(default_factory=dict)
    shares_host: bool = False
    start: Callable[[RuntimeName], Started] | None = None
    _environments: dict[str, dict[str, str]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _started: dict[str, list[Started]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process by its name."""
        from edgeq.devices import open_device

        return open_device, (self.name,)

    def outputs(
        self, artifact: Candidate, inputs: Inputs | Files, progress: Progress | None = None, *, threads: int = 0
    ) -> list[NDArray[Any]]:
        """Run every sample.

        Args:
            inputs: [samples, ...] each.
            threads: 0 for every core of the device.

        Returns:
            One array per output in the model's order, [samples, ...], in the artefact's own dtype.

        Raises:
            DeviceError: the runtime refused the artefact or the arrays, or crashed.
        """
        found = self._outputs(artifact, inputs, progress, threads)
        assert found is not None
        return found

    def outputs_within(
        self,
        artifact: Candidate,
        inputs: Inputs | Files,
        wanted: NDArray[np.int64],
        most: int,
        order: NDArray[np.int64],
        progress: Progress | None = None,
    ) -> list[NDArray[Any]] | None:
        """Run every sample, unless too many answers are wrong: None once it is known that they are.

        Args:
            wanted: [samples], where the largest value of the first output should be.
            most: so many may be elsewhere.
            order: [samples], their indices in the order in which they are run.

        Raises:
            DeviceError: the runtime refused the artefact or the arrays, or crashed.
        """
        decides = {"wanted": wanted.tolist(), "most": most, "order": order.tolist()}
        return self._outputs(artifact, inputs, progress, 0, **decides)

    def _outputs(
        self, artifact: Candidate, inputs: Inputs | Files, progress: Progress | None, threads: int, **decides: Any
    ) -> list[NDArray[Any]] | None:
        with self._job("outputs", {"artifact": (artifact, inputs)}, threads, progress, **decides) as (folder, result):
            return None if result["missed"] else [np.load(folder / name) for name in result["files"]]

    def latency(
        self,
        artifacts: Mapping[str, Candidate],
        inputs: Inputs,
        progress: Progress | None = None,
        *,
        own_inputs: Mapping[str, Inputs] | None = None,
        rounds: int = 100,
        seconds: float = 1e9,
        fewest: int = 20,
        warmup: int = 10,
        threads: int = 1,
    ) -> dict[str, NDArray[np.float64]]:
        """Time single calls of several artefacts of one runtime, in turns in one process.

        In each round every artefact makes one call that is not counted and one that is; feeding and fetching are
        outside of the clock, garbage collection is off, and the order turns round every round.

        Args:
            artifacts: by name, all of one runtime.
            inputs: a sample or a few, used in turn.
            own_inputs: by name, for artefacts that want others (integers instead of floats).
            rounds: no more than that.
            seconds: after so long no further round begins, but there are `fewest` at least.

        Returns:
            By name, [rounds made] seconds; the same index is the same round.

        Raises:
            DeviceError: the device is emulated, the runtime refused or crashed.
            UsageError: the artefacts are not of one runtime.
        """
        self._refuse_emulated("time is not latency")
        pairs = {name: (artifact, (own_inputs or {}).get(name, inputs)) for name, artifact in artifacts.items()}
        job = self._job(
            "latency", pairs, threads, progress, rounds=rounds, seconds=seconds, fewest=fewest, warmup=warmup
        )
        with job as (_, result):
            return {name: np.array(runs) for name, runs in result["seconds"].items()}

    def placement(self, artifact: Candidate, inputs: Inputs, *, threads: int = 1, runs: int = 5) -> list[Placement]:
        """Where every operator ran, from the runtime's own account of one sample. Emulated devices give no times.

        Args:
            runs: profiled calls behind each duration, after one that is thrown away where the runtime allows it.

        Raises:
            DeviceError: the runtime refused the artefact or the arrays, or crashed.
        """
        return self.placements({"artifact": (artifact, inputs)}, threads=threads, runs=runs)["artifact"]

    def placements(
        self,
        artifacts: Mapping[str, tuple[Candidate, Inputs]],
        progress: Progress | None = None,
        *,
        threads: int = 1,
        runs: int = 5,
    ) -> dict[str, list[Placement]]:
        """The same of several artefacts of one runtime with an input each, one after the other in one process."""
        with self._job("placement", artifacts, threads, progress, runs=runs) as (_, result):
            info = runtime(next(iter(artifacts.values()))[0].runtime)
            found = {name: info.placements(rows) for name, rows in result["rows"].items()}
        if self.emulated:
            return {name: [p.model_copy(update={"microseconds": None}) for p in rows] for name, rows in found.items()}
        return found

    def cold_start(self, artifact: Candidate, inputs: Inputs, *, threads: int = 1, runs: int = 3) -> ColdStart:
        """The cost of the first answer, in fresh processes.

        Args:
            runs: processes; every figure is the median over them.

        Raises:
            DeviceError: the device is emulated, the runtime refused or crashed.
        """
        self._refuse_emulated("time and memory are not the device's")
        found: list[dict[str, float]] = []
        for _ in range(runs):
            with self._job("cold", {"artifact": (artifact, inputs)}, threads) as (_, result):
                found.append(result)
        middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
        return ColdStart(
            import_seconds=middle["import_seconds"],
            load_seconds=middle["load_seconds"],
            first_seconds=middle["first_seconds"],
            baseline_bytes=int(middle["baseline_bytes"]),
            peak_bytes=int(middle["peak_bytes"]),
        )

    def interface(self, artifact: Candidate) -> Interface:
        """Inputs and outputs as the runtime reports them.

        Raises:
            DeviceError: the runtime refused the artefact, or crashed.
        """
        with self._job("interface", {"artifact": (artifact, {})}, 1) as (_, result):
            found = result["interface"]
        return Interface(*(tuple(_port(p) for p in found[key]) for key in ("inputs", "outputs")))

    def environment(self, name: RuntimeName) -> dict[str, str]:
        """Versions of runtime, Python and numpy, the CPU with its relevant instruction sets, the usable cores. It is
        asked once for each runtime.

        Raises:
            DeviceError: the runtime is not installed on the device, or is broken.
        """
        if name not in self._environments:
            with self._job("environment", {}, 0, name=name) as (_, result):
                self._environments[name] = {**result["environment"], **self.facts}
        return self._environments[name]

    def know(self, name: RuntimeName, environment: Mapping[str, str]) -> None:
        """Spares `environment` the question: this is what a runtime says, as an earlier run was told."""
        self._environments[name] = dict(environment)

    def expect(self, name: RuntimeName, jobs: int = 1) -> None:
        """So many jobs in a runtime will follow soon: their workers are started, and import it meanwhile.

        For use within `workers_ahead`.
        """
        if self.start is not None:
            waiting = self._started.setdefault(name, [])
            while len(waiting) < jobs:
                waiting.append(self.start(name))

    def dismiss(self) -> None:
        """Ends the workers that were started ahead and not needed."""
        for waiting in self._started.values():
            while waiting:
                waiting.pop().end()

    def _refuse_emulated(self, why: str) -> None:
        if self.emulated:
            raise DeviceError(
                f"{self.name} is emulated: its {why}",
                remedy="measure on the device itself, or model it from a profile and label it so",
            )

    @contextmanager
    def _job(
        self,
        task: str,
        artifacts: Mapping[str, tuple[Candidate, Inputs | Files]],
        threads: int,
        progress: Progress | None = None,
        *,
        name: RuntimeName | None = None,
        **settings: Any,
    ) -> Iterator[tuple[Path, dict[str, Any]]]:
        names = {name} if name else {candidate.runtime for candidate, _ in artifacts.values()}
        if len(names) != 1:
            raise UsageError(f"one process runs one runtime, not {sorted(map(str, names))}")
        info = runtime(str(names.pop()))
        listen = progress or Silent()
        with tempfile.TemporaryDirectory(prefix="edgeq-job-") as temporary:
            folder = Path(temporary)
            job = {"runtime": info.name, "task": task, "threads": threads, "stop_at_eof": True, **settings}
            try:
                shutil.copy(WORKER, folder / "worker.py")
                job["artifacts"] = _stage(folder, artifacts, info)
                (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
            except OSError as error:
                raise DeviceError(
                    f"the job's files cannot be written to {temporary}: {error.strerror}",
                    where=str(error.filename or ""),
                    remedy="free some space there, or point TMPDIR elsewhere",
                ) from error
            # where the import itself is timed, it must not have been made
            waiting = self._started.get(info.name) if task != "cold" else None
            run = waiting.pop(0).run if waiting else self.run
            ended = run(folder, lambda line: _pass_on(line, listen))
            paths = {key: str(candidate.path) for key, (candidate, _) in artifacts.items()}
            yield folder, self._result(folder, ended, info, paths)

    def _result(self, folder: Path, ended: Exit, info: RuntimeInfo, paths: Mapping[str, str]) -> dict[str, Any]:
        try:
            result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise _ended(self.name, ended, " ".join(paths.values())) from None
        error = result.get("error")
        if error is None:
            return result
        if error["kind"] == "missing":
            raise self.missing(info)
        remedy = "check the arrays against what the artefact takes"
        if error["kind"] != "input":
            remedy = (
                f"the message is {info.distribution}'s own: check that the file is whole and that this version reads it"
            )
        raise DeviceError(error["message"], where=paths.get(error["artifact"] or "", self.name), remedy=remedy)


@contextmanager
def workers_ahead(devices: Iterable[Device | None]) -> Iterator[None]:
    """Within it, devices may expect jobs (see `Device.expect`); those that are not there are skipped."""
    try:
        yield
    finally:
        for device in devices:
            if device is not None:
                device.dismiss()


def _stage(
    folder: Path, artifacts: Mapping[str, tuple[Candidate, Inputs | Files]], info: RuntimeInfo
) -> dict[str, Any]:
    """Put artefacts and inputs into the job's folder; returns the job's account of them."""
    written: dict[int, str | dict[str, Any]] = {}
    staged: dict[str, Any] = {}
    for number, (name, (candidate, inputs)) in enumerate(artifacts.items()):
        if not candidate.path.is_file():
            raise DeviceError("there is no such artefact", where=str(candidate.path))
        place = folder / f"artifact{number}"
        for file in dict.fromkeys((candidate.path, *info.companions(candidate.path))):
            if file.is_file():
                target = place / file.relative_to(candidate.path.parent)
                target.parent.mkdir(parents=True, exist_ok=True)
                _link_or_copy(file, target)
        for array in inputs.values():
            if id(array) not in written:
                name_there = f"input{len(written)}.npy"
                written[id(array)] = name_there
                if isinstance(array, Path):
                    _link_or_copy(array, folder / name_there)
                elif isinstance(array, Place):
                    _link_or_copy(array.path, folder / name_there)
                    values = {"offset": array.offset, "dtype": array.dtype, "shape": list(array.shape)}
                    written[id(array)] = {"file": name_there, **values}
                else:
                    np.save(folder / name_there, array, allow_pickle=False)
        staged[name] = {
            "path": f"{place.name}/{candidate.path.name}",
            "options": dict(candidate.options),
            "inputs": {key: written[id(array)] for key, array in inputs.items()},
        }
    return staged


def _link_or_copy(file: Path, target: Path) -> None:
    try:
        os.link(file.resolve(), target)
    except OSError:  # another file system, or links are not allowed
        shutil.copyfile(file, target)


def _pass_on(line: str, progress: Progress) -> None:
    # Runtimes write to standard output too.
    if line.startswith('{"progress"'):
        done, total = json.loads(line)["progress"]
        progress.step(done, total)


def _port(fields: Mapping[str, Any]) -> Port:
    return Port(
        names=tuple(fields["names"]),
        shape=tuple(fields["shape"]),
        dtype=fields["dtype"],
        scale=fields["scale"],
        zero_point=fields["zero_point"],
    )


_REMEDIES = {
    signal.SIGKILL: "most often the system was out of memory: free some, or run fewer samples",
    signal.SIGILL: "the runtime uses instructions that this CPU does not have: install a build for it",
}


def _ended(device: str, ended: Exit, where: str) -> DeviceError:
    if ended.silent is not None:
        return DeviceError(
            f"the process that runs artefacts on {device} did not finish one call in {ended.silent / 60:.3g} minutes",
            where=where,
            remedy="look for a loop in the artefact that does not end; where it is only slow, give more minutes in "
            "EDGEQ_PATIENCE",
        )
    lines = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
    last = f": {lines[-1]}" if lines else ""
    how, remedy = f"ended with status {ended.status}", "the device needs Python 3.8 or newer with numpy"
    if ended.status < 0:
        names = {s.value: s.name for s in signal.Signals}
        how = f"was ended by {names.get(-ended.status, f'signal {-ended.status}')}"
        crashed = "the runtime crashed on this artefact: try another version of it, and report it to its makers"
        remedy = next((text for number, text in _REMEDIES.items() if number == -ended.status), crashed)
    return DeviceError(
        f"the process that runs artefacts on {device} {how} and left no result{last}", where=where, remedy=remedy
    )
