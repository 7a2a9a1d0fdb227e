"""Runs artefacts on a device. It is copied there with the files beside it, and the one that knows the runtime and
defines a `RUNTIME`.

    python worker.py JOB.json
    python worker.py --ahead RUNTIME.py       imports it; the job's path comes on a line of standard input, as JSON

Needs Python 3.8 or newer, numpy, and the runtime. Paths in the job are relative to its folder.
The answer is `result.json` in the same folder, written beside and renamed, so that it is either whole or absent.
Progress goes to standard output as lines of JSON, {"progress": [done, total]}, and generated tokens as they come,
{"token": [PROMPT, ID]}; anything else there comes from the runtime.

The job:

    {"runtime": FILE.py,
     "task": "outputs" | "latency" | "sustain" | "placement" | "cold" | "arena" | "interface" | "environment"
             | "health", and of language models "nll" | "loglikelihood" | "generate" | "tokens_per_second" | "peak",
     "threads": N,                             0: every core that this process may use; for outputs, of all calls that
                                               run side by side, one thread each as far as there are enough calls
     "artifacts": {NAME: {"path": FILE,
                          "options": {"precision": ...},            those that the runtime's file lists
                          "inputs": {INPUT: FILE.npy}}},     or {"file", "offset", "dtype", "shape"}: part of a file
     "order": [INDEX, ...],                    for outputs: of the samples, if not one after the other
     "wanted": [CLASS, ...], "most": N,        for outputs, with one sample a call: leave off once the largest value of
                                               the first output was elsewhere more often; then "missed" is true
     "rounds": N, "warmup": N,                 for latency: no more rounds than that,
     "seconds": S, "fewest": N,                and none after so long, but at least so many
     "seconds": S,                             for sustain: how long one artefact is called without a rest
     "first": N,                               for nll, whose input "tokens" is [texts, positions] of integers: the
                                               position whose successor is the first to be scored
     "pairs": [[CONTEXT, CONTINUATION], ...],  for loglikelihood: lists of tokens
     "prompts": [[TOKEN, ...], ...],           for generate,
     "most": N, "stop": [TOKEN, ...],          which ends after so many tokens, or before one of those
     "prompt": [TOKEN, ...],                   for tokens_per_second and peak
     "new": N, "context": N,                   for tokens_per_second: so many tokens are timed, behind so many positions
     "rounds": N, "seconds": S, "fewest": N,   as for latency
     "emulated": true,                         for what stands in for a processor that is not there
     "stop_at_eof": true}                      end when standard input closes: the host is gone

The first axis of every input file counts samples. One call takes one sample, or as many as the model's leading
dimension fixes. A failure is {"error": {"kind", "type", "message", "artifact"}}, where kind is "missing" (the runtime
is not installed), "input" (the arrays do not fit the model), "device" (this is no such one) or "runtime" (what the
runtime itself said).
"""

# ruff: noqa: B905  (zip has no `strict` before Python 3.10)

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import gc
import importlib
import importlib.util
import json
import os
import platform
import queue
import sys
import threading
import time
import traceback
import types
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

if __name__ == "__main__":
    # Nothing beside this file is meant, whatever it is called.
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) != os.path.dirname(os.path.realpath(__file__))]
    # NumPy multiplies nothing in a worker: threads that it keeps for that would only delay the start. It reads this
    # when it is imported.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    # This module, and what lies beside it, by the names that they have where edgeq is installed.
    sys.modules.update({name: types.ModuleType(name) for name in ("edgeq", "edgeq.on_device")})
    sys.modules["edgeq.on_device"].__path__ = [os.path.dirname(os.path.realpath(__file__))]
    sys.modules["edgeq.on_device.worker"] = sys.modules[__name__]

import numpy as np

from edgeq.on_device.health import health, joules, temperature, watts

if TYPE_CHECKING:
    from edgeq.on_device.decoder import Decoder

DECODING = frozenset({"nll", "loglikelihood", "generate", "tokens_per_second", "peak"})
"""The tasks that are about language models."""

ISA = (  # the instruction set extensions that decide which quantized and reduced-precision kernels a runtime has
    "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "fphp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip


class WorkerError(Exception):
    """A failure with a known kind."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Port(NamedTuple):
    """An input or output of a model. `names` are those it answers to, best first; -1 in `shape` is any length."""

    names: List[str]
    shape: List[int]
    dtype: str
    scale: Optional[float]
    zero_point: Optional[int]


class Loaded(NamedTuple):
    """A model that is ready to run. `feed` and `fetch` copy; `invoke` is what latency means. One thread may use it at a
    time; `another` is the same model for another thread."""

    inputs: List[Port]
    outputs: List[Port]
    feed: Callable[[List[np.ndarray]], None]
    invoke: Callable[[], Any]
    fetch: Callable[[], List[np.ndarray]]
    placement: Callable[[], List[Dict[str, Any]]]
    another: Callable[[], Any]  # a Loaded
    arena: Optional[Callable[[], int]] = None  # bytes of its arena that it has used, once it was called


class Setting(NamedTuple):
    """How a model is loaded: with so many threads for each of so many calls side by side, beside other models that are
    loaded already or not, to be profiled or not, and whether an emulation of the processor will do."""

    threads: int
    calls: int
    others: bool
    profile: bool
    emulated: bool = False


class Runtime(NamedTuple):
    """One runtime, as its file defines it.

    `find` imports it and says under which name; a WorkerError of kind "missing" where it is not installed. `load` loads
    an artefact, `options` lists the values that each option of one may have. `environment` says more of the runtime
    than its version. `by_order`: arrays are taken in order where the model knows not one of their names. `alone`:
    models cannot be loaded side by side. `decoder` loads a language model with a cache, where the runtime has such.

    Operators are told by `Loaded.placement` as {"name", "op", "where", "integer", "microseconds"}: `where` is what runs
    it there, `integer` is None where it only moves or converts data, or where the runtime does not say.
    """

    find: Callable[[], Tuple[Any, str]]
    load: Callable[[str, Dict[str, str], Setting], Loaded]
    options: Dict[str, List[str]]
    environment: Callable[[], Dict[str, str]] = dict
    by_order: bool = False
    alone: bool = False
    decoder: Optional[Callable[[str, Dict[str, str], Setting], Decoder]] = None


class Binding(NamedTuple):
    """The calls that a job's arrays make, in the order of the model's inputs."""

    total: int
    call: Callable[[int], List[np.ndarray]]


def runtime_in(path: str) -> Runtime:
    """The runtime that a file defines."""
    spec = importlib.util.spec_from_file_location("edgeq_runtime", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Runtime = module.RUNTIME
    return found


def first_installed(*names: str) -> Tuple[Any, str]:
    """A module, and the name that it was found under: the first of several that is installed."""
    for name in names:
        try:
            return importlib.import_module(name), name
        except ModuleNotFoundError as error:
            # A module inside an installed package that is not found is a broken installation, not a missing one.
            if error.name is None or error.name.split(".")[0] != name.split(".")[0]:
                raise
    raise WorkerError("missing", "none of %s is installed" % ", ".join(name.split(".")[0] for name in names))


def refuse_options(options: Dict[str, str], known: Dict[str, List[str]]) -> None:
    for key, value in options.items():
        if value not in known.get(key, []):
            raise WorkerError("input", "option %s=%s is not one of %s" % (key, value, known.get(key, sorted(known))))


def bind(ports: Sequence[Port], arrays: Dict[str, np.ndarray], by_order: bool) -> Binding:
    """Match arrays to the model's inputs and check them.

    Args:
        ports: the model's inputs.
        arrays: by input name, each of shape (samples, ...): of rows of the model's first axis, or of whole inputs where
            that is fixed.
        by_order: where not one name is known to the model, take the arrays in the order given.
    """
    known = [name for port in ports for name in port.names]
    if len(arrays) != len(ports):
        raise WorkerError("input", "the model has %d inputs, %d were given" % (len(ports), len(arrays)))
    if by_order and not any(name in known for name in arrays):
        ordered = list(arrays.values())
    else:
        ordered = []
        for port in ports:
            match = [name for name in port.names if name in arrays]
            if not match:
                raise WorkerError("input", "no array for input %r; given: %s" % (port.names[0], ", ".join(arrays)))
            ordered.append(arrays[match[0]])
    counts = set()
    widths = []
    for place, (port, array) in enumerate(zip(ports, ordered)):
        width = port.shape[0] if port.shape and port.shape[0] > 0 else 1
        if port.shape and array.ndim == len(port.shape) + 1 and array.shape[1] == port.shape[0]:
            array = ordered[place] = array.reshape(-1, *array.shape[2:])
        one = (width, *array.shape[1:])
        fits = len(one) == len(port.shape) and all(want in (-1, have) for want, have in zip(port.shape, one))
        if array.dtype.name != port.dtype or not fits or len(array) % width or not len(array):
            raise WorkerError(
                "input",
                "input %r wants %s of shape %s, given %s of shape %s with samples first"
                % (port.names[0], port.dtype, port.shape, array.dtype.name, list(array.shape)),
            )
        widths.append(width)
        counts.add(len(array) // width)
    if len(counts) != 1:
        raise WorkerError("input", "the inputs hold different numbers of samples: %s" % sorted(counts))

    def call(index: int) -> List[np.ndarray]:
        return [np.array(a[index * w : (index + 1) * w], order="C") for a, w in zip(ordered, widths)]

    return Binding(counts.pop(), call)


_last_report = [0.0]


def report(done: int, total: int) -> None:
    """Tell the host, ten times a second at most."""
    now = time.monotonic()
    if done == total or now - _last_report[0] > 0.1:
        _last_report[0] = now
        print(json.dumps({"progress": [done, total]}), flush=True)


SIDE_BY_SIDE = 8  # calls at most, each of which has activations of its own


def run_outputs(
    lanes: Sequence[Loaded],
    calls: Binding,
    order: Optional[Sequence[int]] = None,
    wanted: Optional[Sequence[int]] = None,
    most: int = 0,
) -> Tuple[List[str], bool]:
    """Run every sample, as many side by side as there are lanes: threads inside of a call would wait for one another in
    every layer. Writes one file per output, with samples on the first axis, and returns their names, and whether too
    many answers were wrong for the rest to be of interest."""
    ports, files = lanes[0].outputs, []  # type: List[Port], List[np.ndarray]
    turns = list(range(calls.total)) if order is None else order
    wrong = []  # type: List[int]
    free = queue.SimpleQueue()  # type: queue.SimpleQueue[Loaded]
    for lane in lanes:
        free.put(lane)

    def results(lane: Loaded, index: int) -> List[np.ndarray]:
        lane.feed(calls.call(index))
        lane.invoke()
        return [np.atleast_1d(r) for r in lane.fetch()]

    def keep(index: int, found: List[np.ndarray]) -> None:
        for port, file, result in zip(ports, files, found):
            rows = len(file) // calls.total
            if result.shape != (rows, *file.shape[1:]):
                raise WorkerError("runtime", "output %r changes its shape between samples" % port.names[0])
            file[index * rows : (index + 1) * rows] = result
        answer = found[0].reshape(-1)
        # what is no number is told as such, when all is there
        if wanted is not None and int(answer.argmax()) != wanted[index] and np.isfinite(answer).all():
            wrong.append(index)

    def run(some: range) -> int:
        lane = free.get()
        try:
            for at in some:
                if wanted is None or len(wrong) <= most:
                    keep(turns[at], results(lane, turns[at]))
        finally:
            free.put(lane)
        return some.stop

    names = ["output%d.npy" % i for i in range(len(ports))]
    first = results(lanes[0], turns[0])
    for name, one in zip(names, first):
        shape = (calls.total * one.shape[0], *one.shape[1:])
        files.append(np.lib.format.open_memmap(name, "w+", one.dtype, shape))
    keep(turns[0], first)
    report(1, calls.total)
    step = 1 + calls.total // 1000  # handing over every one of many small calls would take longer than they do
    parts = [range(i, min(i + step, calls.total)) for i in range(1, calls.total, step)]
    with concurrent.futures.ThreadPoolExecutor(max_workers=len(lanes)) as pool:
        for done in pool.map(run, parts):
            report(done, calls.total)
    for file in files:
        file.flush()  # type: ignore[attr-defined]
    return names, wanted is not None and len(wrong) > most


def run_latency(
    models: Dict[str, Tuple[Loaded, Binding]], rounds: int, warmup: int, seconds: float, fewest: int
) -> Dict[str, List[float]]:
    """Seconds of one call per round and model. In each round every model has a turn: one call that is not counted,
    which fetches back the caches that the model before it took, then the counted one. Odd rounds go backwards."""
    for loaded, calls in models.values():
        loaded.feed(calls.call(0))
        for _ in range(warmup):
            loaded.invoke()
    found: Dict[str, List[float]] = {name: [] for name in models}
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    for index in range(rounds):
        for name in list(models) if index % 2 == 0 else list(models)[::-1]:
            loaded, calls = models[name]
            loaded.feed(calls.call(index % calls.total))
            loaded.invoke()
            begin = time.perf_counter()
            loaded.invoke()
            found[name].append(time.perf_counter() - begin)
        done, passed = index + 1, time.perf_counter() - start
        last = min(rounds, max(fewest, done, int(done * seconds / passed)))
        report(done, last)
        if done == last:
            break
    gc.enable()
    return found


WINDOWS = 60  # that a long run is told in


def run_sustained(loaded: Loaded, calls: Binding, seconds: float) -> Dict[str, Any]:
    """Calls a model without a rest, and tells how its latency went, and the temperature, and what that took of energy:
    by the counters that there are, or else by sensors that are read after each window."""
    windows: List[Dict[str, Any]] = []
    power: Dict[str, List[float]] = {}
    loaded.feed(calls.call(0))
    loaded.invoke()
    counted, start = joules(), time.perf_counter()
    while len(windows) < WINDOWS and time.perf_counter() - start < seconds:
        begin, times = time.perf_counter(), []  # type: float, List[float]
        while not times or time.perf_counter() - start < (len(windows) + 1) * seconds / WINDOWS:
            loaded.feed(calls.call(len(times) % calls.total))
            before = time.perf_counter()
            loaded.invoke()
            times.append(time.perf_counter() - before)
        for name, value in watts().items():
            power.setdefault(name, []).append(value)
        spent = time.perf_counter() - begin
        windows.append(
            {"seconds": spent, "calls": len(times), "median": float(np.median(times)), "celsius": temperature()}
        )
        report(len(windows), WINDOWS)
    took = time.perf_counter() - start
    used = {name: value - counted[name] for name, value in joules().items() if value >= counted.get(name, value + 1)}
    used.update({name: float(np.mean(values)) * took for name, values in power.items()})
    return {"windows": windows, "joules": used, "health": health()}


def run_placement(loaded: Loaded, calls: Binding, runs: int) -> List[Dict[str, Any]]:
    """The runtime's account of one call that warms up and of `runs` more."""
    loaded.feed(calls.call(0))
    for _ in range(1 + runs):
        loaded.invoke()
    return loaded.placement()


def resident_bytes(peak: bool) -> int:
    """Resident memory of this process. Not getrusage where it can be helped: on Linux its maximum survives exec, so
    that a worker started by a large process would report that one's memory."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        return int(fields["VmHWM" if peak else "VmRSS"].split()[0]) * 1024
    except (OSError, KeyError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def describe_environment(runtime: Runtime, threads: int) -> Dict[str, str]:
    name = runtime.find()[1]
    package = importlib.import_module(name.split(".")[0])
    found = {
        "runtime": name.split(".")[0],
        "runtime_version": str(getattr(package, "__version__", None) or distribution_version(name.split(".")[0])),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "system": platform.system() + " " + platform.release(),
        "threads": str(threads),
    }
    found.update(describe_cpu())
    found.update(runtime.environment())
    return found


def distribution_version(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return "unknown"


def describe_cpu() -> Dict[str, str]:
    """The CPU as the kernel names it, and which of the instruction sets that matter here it has."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            lines = [line.partition(":") for line in file]
    except OSError:
        return {"cpu": platform.processor() or platform.machine(), "cpu_isa": "unknown"}
    fields = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    names = [fields.get("model name", platform.machine())]
    if "CPU part" in fields:  # Arm kernels name the architecture; maker and part tell the core
        names.append("implementer %s part %s" % (fields.get("CPU implementer"), fields["CPU part"]))
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {"cpu": " ".join(names), "cpu_isa": " ".join(flag for flag in ISA if flag in flags)}


def public_ports(loaded: Loaded) -> Dict[str, Any]:
    return {"inputs": [p._asdict() for p in loaded.inputs], "outputs": [p._asdict() for p in loaded.outputs]}


def loading(job: Dict[str, Any], runtime: Runtime, how: Setting) -> Dict[str, Callable[[], Loaded]]:
    """By artefact, what waits until it is loaded, or loads it. Those that will take turns are compiled side by side."""
    artifacts = job["artifacts"]

    def load(name: str) -> Loaded:
        refuse_options(artifacts[name]["options"], runtime.options)
        return runtime.load(artifacts[name]["path"], artifacts[name]["options"], how)

    if job["task"] != "latency" or runtime.alone:
        return {name: functools.partial(load, name) for name in artifacts}
    with concurrent.futures.ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        return {name: future.result for name, future in [(name, pool.submit(load, name)) for name in artifacts]}


def execute(job: Dict[str, Any], ahead: Optional[Runtime], current: List[str]) -> Dict[str, Any]:
    """Do the job. `current[0]` is the artefact at hand, for the message should it fail."""
    task, threads = job["task"], job["threads"] or usable_cores()
    if task == "health":
        return {"health": health()}
    runtime = ahead or runtime_in(job["runtime"])
    begin = time.perf_counter()
    runtime.find()
    import_seconds = time.perf_counter() - begin
    if task == "environment":
        return {"environment": describe_environment(runtime, threads)}

    before = resident_bytes(peak=False)
    inputs = {
        name: {key: mapped(values) for key, values in one["inputs"].items()} for name, one in job["artifacts"].items()
    }
    if task in DECODING:
        from edgeq.on_device.decoder import run  # which needs what is above

        how = Setting(threads, 1, len(inputs) > 1, False, bool(job.get("emulated")))
        known = {"import_seconds": import_seconds, "baseline_bytes": before}
        return run(job, runtime, inputs, how, current, known)
    at_once = 1
    if task == "outputs":
        at_once = max(1, min(threads, SIDE_BY_SIDE, *(len(a) for arrays in inputs.values() for a in arrays.values())))
    others, emulated = task != "placement" and len(inputs) > 1, bool(job.get("emulated"))
    how = Setting(threads // at_once, at_once, others, task == "placement", emulated)
    models: Dict[str, Tuple[Loaded, Binding]] = {}
    rows: Dict[str, List[Dict[str, Any]]] = {}
    begin = time.perf_counter()
    load_seconds = 0.0
    for name, load in loading(job, runtime, how).items():
        current[0] = name
        loaded = load()
        load_seconds = time.perf_counter() - begin
        if task == "interface":
            return {"interface": public_ports(loaded)}
        calls = bind(loaded.inputs, inputs[name], by_order=runtime.by_order)
        if task == "placement":  # one after the other: a model that waits would only fill the memory
            rows[name] = run_placement(loaded, calls, job["runs"])
            report(len(rows), len(job["artifacts"]))
        else:
            models[name] = (loaded, calls)

    if task == "placement":
        return {"rows": rows}
    if task == "latency":
        current[0] = ""
        return {"seconds": run_latency(models, job["rounds"], job["warmup"], job["seconds"], job["fewest"])}
    loaded, calls = models[current[0]]  # these tasks are about one artefact
    if task == "outputs":
        lanes = [loaded] + [loaded.another() for _ in range(how.calls - 1)]
        decides = {key: job[key] for key in ("order", "wanted", "most") if calls.total == len(job.get("wanted", []))}
        files, missed = run_outputs(lanes, calls, **decides)
        return {"files": files, "missed": missed, "interface": public_ports(loaded)}
    if task == "sustain":
        return {"sustained": run_sustained(loaded, calls, job["seconds"])}
    loaded.feed(calls.call(0))
    if task == "arena" and loaded.arena is not None:
        loaded.invoke()
        return {"arena_bytes": loaded.arena()}
    if task == "cold":
        begin = time.perf_counter()
        loaded.invoke()
        first_seconds = time.perf_counter() - begin
        return {
            "import_seconds": import_seconds,
            "load_seconds": load_seconds,
            "first_seconds": first_seconds,
            "baseline_bytes": before,
            "peak_bytes": resident_bytes(peak=True),
        }
    raise WorkerError("input", "unknown task %r" % task)


def mapped(values: Any, folder: str = "") -> np.ndarray:
    """An array of a job, which is read where its file lies: in a folder, or in the one that this process is in."""
    if isinstance(values, dict):
        shape = tuple(values["shape"])
        return np.memmap(os.path.join(folder, values["file"]), np.dtype(values["dtype"]), "r", values["offset"], shape)
    array: np.ndarray = np.load(os.path.join(folder, values), mmap_mode="r")
    return array


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def stop_at_eof() -> None:
    """Leave when the host goes: nobody is left to read the result."""

    def wait() -> None:
        while os.read(0, 4096):  # not sys.stdin, whose lock this thread would hold when the interpreter ends
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def job_to_come(runtime: Runtime) -> Optional[str]:
    """Imports a runtime, then waits for the path of a job; None where the host wants none, or is gone."""
    with contextlib.suppress(Exception):  # told again by the job
        runtime.find()
    line = sys.stdin.readline()
    return json.loads(line) if line else None


def main(arguments: List[str]) -> int:
    # ONNX Runtime's own builds report what they run to its makers, and keep an uploading thread and a database for it.
    # Models are their owners' business, and a measurement wants no uploads beside it. Read when the library is loaded.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    ahead = runtime_in(arguments[1]) if arguments[0] == "--ahead" else None
    job_path = job_to_come(ahead) if ahead else arguments[0]
    if job_path is None:
        return 0
    with open(job_path, encoding="utf-8") as file:
        job = json.load(file)
    os.chdir(os.path.dirname(os.path.abspath(job_path)))
    if job.get("stop_at_eof"):
        stop_at_eof()
    current = [""]
    try:
        result = execute(job, ahead, current)
    except Exception as error:
        traceback.print_exc()
        message = " ".join(str(error).split()) or type(error).__name__
        kind = error.kind if isinstance(error, WorkerError) else "runtime"
        result = {
            "error": {"kind": kind, "type": type(error).__name__, "message": message, "artifact": current[0] or None}
        }
    with open("result.json.part", "w", encoding="utf-8") as file:
        json.dump(result, file)
    os.replace("result.json.part", "result.json")
    return 1 if "error" in result else 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # OpenVINO takes a tenth of a second to take itself apart, and the result is written
