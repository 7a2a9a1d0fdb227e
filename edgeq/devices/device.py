"""A device: a place where artefacts run. All work is jobs: the link takes them there, and the runner does them."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.devices.artifact import Candidate, ColdStart, Files, Inputs, Interface, Port
from edgeq.devices.job import stage, without_result
from edgeq.devices.link import Link, PythonWorker, Runner, Started
from edgeq.errors import DeviceError, UsageError
from edgeq.progress import Progress, Silent
from edgeq.records.schema import Placement, Sustained, Window
from edgeq.runtimes import RuntimeInfo, runtime


@dataclass(frozen=True)
class Device:
    """A place where artefacts run.

    Attributes:
        name: as given to `open_device`.
        emulated: the arithmetic is the device's, time and memory are not.
        link: how jobs get there.
        missing: the error for a runtime that is not installed there.
        runner: what does them.
        facts: what the host knows of the device better than a worker there can.
        quick: it is emulated at this machine's own pace, so that nothing is left out.
        shares_host: its processes run on this machine, and as many at once as one likes.
        start: starts a worker ahead of its job, where that can be done.
    """

    name: str
    emulated: bool
    link: Link
    missing: Callable[[RuntimeInfo], DeviceError] = RuntimeInfo.missing
    runner: Runner = field(default_factory=PythonWorker)
    facts: Mapping[str, str] = field(default_factory=dict)
    quick: bool = False
    shares_host: bool = False
    start: Callable[[str], Started] | None = None
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
        with self.job("outputs", {"artifact": (artifact, inputs)}, threads, progress, **decides) as (folder, result):
            return None if result["missed"] else [np.load(folder / _within(name)) for name in result["files"]]

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
        self.refuse_emulated("time is not latency")
        pairs = {name: (artifact, (own_inputs or {}).get(name, inputs)) for name, artifact in artifacts.items()}
        job = self.job(
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
        with self.job("placement", artifacts, threads, progress, runs=runs) as (_, result):
            found = {name: [Placement(**row) for row in rows] for name, rows in result["rows"].items()}
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
        self.refuse_emulated("time and memory are not the device's")
        found: list[dict[str, float]] = []
        for _ in range(runs):
            with self.job("cold", {"artifact": (artifact, inputs)}, threads) as (_, result):
                found.append(result)
        return ColdStart.median_of(found)

    def arena(self, artifact: Candidate, inputs: Inputs) -> int:
        """Bytes of the arena that one call uses, in a runtime that has one.

        Raises:
            DeviceError: the runtime has none, refused the artefact or crashed.
        """
        with self.job("arena", {"artifact": (artifact, inputs)}, 1) as (_, result):
            return int(result["arena_bytes"])

    def sustained(
        self, artifact: Candidate, inputs: Inputs, seconds: float, progress: Progress | None = None, *, threads: int = 1
    ) -> Sustained:
        """Calls an artefact without a rest, and tells how its latency went, and what that took of energy.

        Args:
            inputs: samples, used in turn.

        Raises:
            DeviceError: the device is emulated, the runtime refused or crashed.
        """
        self.refuse_emulated("time is not latency")
        with self.job("sustain", {"artifact": (artifact, inputs)}, threads, progress, seconds=seconds) as (_, result):
            found = result["sustained"]
        windows = [Window(**one) for one in found["windows"]]
        tenth = max(1, len(windows) // 10)
        first, last = (statistics.median(one.median for one in some) for some in (windows[:tenth], windows[-tenth:]))
        calls = sum(one.calls for one in windows)
        health = found["health"]
        return Sustained(
            windows=windows,
            throttled=last / first,
            joules={name: value / calls for name, value in found["joules"].items()},
            megahertz=health.get("megahertz", []),
            governors=health.get("governors", []),
        )

    def interface(self, artifact: Candidate) -> Interface:
        """Inputs and outputs as the runtime reports them.

        Raises:
            DeviceError: the runtime refused the artefact, or crashed.
        """
        with self.job("interface", {"artifact": (artifact, {})}, 1) as (_, result):
            found = result["interface"]
        return Interface(*(tuple(_port(p) for p in found[key]) for key in ("inputs", "outputs")))

    def environment(self, name: str) -> dict[str, str]:
        """Versions of runtime, Python and numpy, the CPU with its relevant instruction sets, the usable cores. It is
        asked once for each runtime.

        Raises:
            DeviceError: the runtime is not installed on the device, or is broken.
        """
        if name not in self._environments:
            with self.job("environment", {}, 0, name=name) as (_, result):
                self._environments[name] = {**result["environment"], **self.facts}
        return self._environments[name]

    def health(self) -> dict[str, Any]:
        """What it says of its cores, clocks, temperature, and room now (see `edgeq.on_device.health`).

        Raises:
            DeviceError: it cannot be asked.
        """
        with self.job("health", {}, 0, name="onnxruntime") as (_, result):  # no runtime takes part
            found: dict[str, Any] = result["health"]
            return found

    def know(self, name: str, environment: Mapping[str, str]) -> None:
        """Spares `environment` the question: this is what a runtime says, as an earlier run was told."""
        self._environments[name] = dict(environment)

    def expect(self, name: str, jobs: int = 1) -> None:
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

    def refuse_emulated(self, why: str) -> None:
        """Raises:
        DeviceError: the device is emulated.
        """
        if self.emulated:
            raise DeviceError(
                f"{self.name} is emulated: its {why}",
                remedy="measure on the device itself, or model it from a profile and label it so",
            )

    @contextmanager
    def job(
        self,
        task: str,
        artifacts: Mapping[str, tuple[Candidate, Inputs | Files]],
        threads: int,
        progress: Progress | None = None,
        *,
        name: str | None = None,
        hear: Callable[[str], None] | None = None,
        **settings: Any,
    ) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Does a job of the worker's (see `edgeq.on_device.worker`).

        Args:
            task: one that the worker knows.
            artifacts: by name, with the arrays of each; all of one runtime.
            threads: 0 for every core of the device.
            name: of the runtime, where there is no artefact.
            hear: receives each line of the worker's output as it comes.
            settings: what else the job says.

        Yields:
            The folder with the files that the worker wrote, and its answer.

        Raises:
            DeviceError: the worker's own error, or none came back.
            UsageError: the artefacts are not of one runtime.
        """
        names = {name} if name else {candidate.runtime for candidate, _ in artifacts.values()}
        if len(names) != 1:
            raise UsageError(f"one process runs one runtime, not {sorted(map(str, names))}")
        info = runtime(str(names.pop()))
        listen = progress or Silent()
        with tempfile.TemporaryDirectory(prefix="edgeq-job-") as temporary:
            folder = Path(temporary)
            job = {"task": task, "threads": threads, "emulated": self.emulated, "stop_at_eof": True, **settings}
            try:
                staged = stage(folder, artifacts, info)
                command = self.runner.prepare(folder, {**job, "artifacts": staged}, info)
            except OSError as error:
                raise DeviceError(
                    f"the job's files cannot be written to {temporary}: {error.strerror}",
                    where=str(error.filename or ""),
                    remedy="free some space there, or point TMPDIR elsewhere",
                ) from error
            lines: list[str] = []

            def on_line(line: str) -> None:
                lines.append(line)
                _pass_on(line, listen)
                if hear is not None:
                    hear(line)

            # where the import itself is timed, it must not have been made
            waiting = self._started.get(info.name) if task not in ("cold", "peak") else None
            try:
                ended = waiting.pop(0).run(folder, on_line) if waiting else self.link(folder, command, on_line)
            except (OSError, ValueError, SubprocessError) as error:
                cause = f"the link to it failed: {type(error).__name__}: {error}"
                raise DeviceError(cause, where=self.name, remedy="look whether the device is there") from error
            paths = {key: str(candidate.path) for key, (candidate, _) in artifacts.items()}
            try:
                result = self.runner.result(folder, lines)
                if result is None:
                    raise without_result(self.name, ended, " ".join(paths.values()))
                yield folder, self._checked(result, info, paths)
            except (AttributeError, EOFError, LookupError, OSError, TypeError, ValueError) as error:
                what = "was not brought back" if isinstance(error, FileNotFoundError) else "cannot be read"
                cause = f"its answer {what}: {type(error).__name__}: {error}"
                remedy = "look at the link to it, and at what does the jobs there"
                raise DeviceError(cause, where=self.name, remedy=remedy) from error

    def _checked(self, result: dict[str, Any], info: RuntimeInfo, paths: Mapping[str, str]) -> dict[str, Any]:
        error = result.get("error")
        if error is None:
            return result
        if error["kind"] == "missing":
            raise self.missing(info)
        remedy = "check the arrays against what the artefact takes"
        if error["kind"] == "device":
            remedy = "name another one with --device"
        elif error["kind"] != "input":
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


def _pass_on(line: str, progress: Progress) -> None:
    # Runtimes write to standard output too.
    if line.startswith('{"progress"'):
        with suppress(ValueError):  # cut off: how the worker ended tells more
            done, total = json.loads(line)["progress"]
            progress.step(done, total)


def _within(name: str) -> str:
    """A file beside the answer, by the name that the device gives it."""
    if Path(name).name != name:
        raise ValueError(f"{name!r} is no file of the job")
    return name


def _port(fields: Mapping[str, Any]) -> Port:
    return Port(
        names=tuple(fields["names"]),
        shape=tuple(fields["shape"]),
        dtype=fields["dtype"],
        scale=fields["scale"],
        zero_point=fields["zero_point"],
    )
