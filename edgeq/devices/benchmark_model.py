"""A device without Python: LiteRT's own `benchmark_model` does the jobs, as far as it can.

It is started once for each sample, and once for each time that is taken. What a model takes and gives is read on this
machine. Where operators ran it does not say.

Its command line: https://ai.google.dev/edge/litert/models/measurement
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.devices.artifact import Candidate, Port
from edgeq.devices.local import open_local
from edgeq.on_device import worker
from edgeq.runtimes import RuntimeInfo

_NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
TIMES = re.compile(rf"Init: {_NUMBER}, First inference: {_NUMBER}, .*Inference \(avg\): {_NUMBER}\b")
MEMORY = re.compile(rf"Memory footprint delta .*overall={_NUMBER}")

TOLD = "grep -e Inference -e Memory log"

KERNELS = {"xnnpack": "true", "builtin": "false"}
"""What `--use_xnnpack` is for the option `kernels`."""

SCRIPT = """
program=$1
shift
run() {
    "$program" "$@" > log 2>&1 && return
    tail -n 3 log >&2
    exit 1
}
"""

ENVIRONMENT = """
echo "machine=$(uname -m)"
echo "system=$(uname -s) $(uname -r)"
echo "cpu=$(getprop ro.product.model 2> /dev/null) $(getprop ro.soc.model 2> /dev/null)"
echo "cpu_isa=$(sed -n 's/^Features[^:]*: //p;s/^flags[^:]*: //p' /proc/cpuinfo | head -n 1)"
"""


@dataclass(frozen=True)
class BenchmarkModel:
    """Runs `.tflite` files by LiteRT's benchmark.

    Attributes:
        program: where it lies on the device.
    """

    program: str

    def prepare(self, folder: Path, job: Mapping[str, Any], info: RuntimeInfo) -> Sequence[str]:
        try:
            lines = _script(folder, job, info)
        except worker.WorkerError as error:
            told = {"kind": error.kind, "type": "WorkerError", "message": str(error), "artifact": None}
            (folder / "result.json").write_text(json.dumps({"error": told}), encoding="utf-8")
            return ["true"]
        (folder / "job.sh").write_text(SCRIPT + "".join(f"{line}\n" for line in lines), encoding="utf-8")
        return ["sh", "job.sh", self.program]

    def result(self, folder: Path, lines: Sequence[str]) -> dict[str, Any] | None:
        if (folder / "result.json").is_file():
            found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            return found
        told = json.loads((folder / "told.json").read_text(encoding="utf-8"))
        said = "\n".join(lines)
        if told["task"] == "outputs":
            return _outputs(folder, **told["about"])
        if told["task"] == "environment":
            return _environment(said)
        times = [[float(value) / 1e6 for value in one] for one in TIMES.findall(said)]
        return _latency(times, **told["about"]) if told["task"] == "latency" else _cold(times, said)


def _script(folder: Path, job: Mapping[str, Any], info: RuntimeInfo) -> list[str]:
    """The lines that do a job, with all that they read in the folder."""
    task = job["task"]
    if task in ("health", "sustain") or task in worker.DECODING:
        raise worker.WorkerError("input", f"benchmark_model cannot tell {task!r}: that wants Python on the device")
    if info.name != "litert":
        raise worker.WorkerError("input", f"benchmark_model runs .tflite files, and none of {info.distribution}")
    models = {name: _Model(folder, one, job["threads"]) for name, one in job["artifacts"].items()}
    first = next(iter(models.values()), None)
    known: dict[str, Any] | None = None
    about: dict[str, Any] = {}
    lines = [ENVIRONMENT]
    if task == "placement":
        known = {"rows": {name: [] for name in models}}
    elif first is not None and task == "interface":
        known = {"interface": {"inputs": _told(first.inputs), "outputs": _told(first.outputs)}}
    elif first is not None and task == "outputs":
        calls = first.calls.total
        about = {"calls": calls, "ports": _told(first.outputs), "written": first.written}
        runs = [f"{first.run(call, warm=0)} --output_filepath=output{call}.raw" for call in range(calls)]
        lines = [line for at, run in enumerate(runs) for line in (run, _progress(at + 1, calls))]
    elif task == "latency":
        ways = (list(models), list(models)[::-1])
        about["turns"] = turns = [name for index in range(job["fewest"]) for name in ways[index % 2]]
        runs = [models[name].run(0, warm=job["warmup"]) for name in turns]
        lines = [line for at, run in enumerate(runs) for line in (run, TOLD, _progress(at + 1, len(turns)))]
    elif first is not None:
        lines = [first.run(0, warm=1), TOLD]
    if known is not None:
        (folder / "result.json").write_text(json.dumps(known), encoding="utf-8")
        return []
    (folder / "told.json").write_text(json.dumps({"task": task, "about": about}), encoding="utf-8")
    return lines


class _Model:
    """An artefact of a job, and the files that its calls read."""

    def __init__(self, folder: Path, staged: Mapping[str, Any], threads: int) -> None:
        kernels = staged["options"].get("kernels", "xnnpack")
        if kernels not in KERNELS:
            raise worker.WorkerError("input", f"benchmark_model has no {kernels} kernels")
        interface = open_local().interface(Candidate(folder / staged["path"], "litert"))
        self.inputs, self.outputs = ([_plain(port) for port in some] for some in (interface.inputs, interface.outputs))
        self.first, self.written = _places(folder / staged["path"], self.inputs, self.outputs)
        arrays = {name: worker.mapped(one, str(folder)) for name, one in staged["inputs"].items()}
        self.calls = worker.bind(self.inputs, arrays, by_order=True) if arrays else worker.Binding(0, lambda call: [])
        self._folder, self._path = folder, staged["path"]
        self._flags = [f"--graph={staged['path']}", f"--use_xnnpack={KERNELS[kernels]}", "--min_secs=0"]
        self._flags += ["--warmup_min_secs=0", "--num_runs=1", *([f"--num_threads={threads}"] if threads else [])]

    def run(self, call: int, warm: int) -> str:
        """The line that makes one call."""
        arrays = self.calls.call(call)
        arrays = [arrays[place] for place in self.first]
        files = []
        for place, array in enumerate(arrays):
            files.append(f"{Path(self._path).parent}.{call}.{place}.raw")
            array.tofile(self._folder / files[-1])
        names = [f"input{place}" for place in range(len(arrays))]
        told = [
            f"--warmup_runs={warm}",
            f"--input_layer={','.join(names)}",
            f"--input_layer_shape={':'.join(','.join(map(str, array.shape)) for array in arrays)}",
            f"--input_layer_value_files={','.join(map(':'.join, zip(names, files, strict=True)))}",
        ]
        return shlex.join(["run", *self._flags, *told])


def _environment(said: str) -> dict[str, Any] | None:
    told = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    if "machine" not in told:
        return None
    isa = " ".join(name for name in worker.ISA if name in told["cpu_isa"].split())
    own = {"runtime": "benchmark_model", "runtime_version": "unknown", "python": "none", "numpy": "none"}
    return {"environment": {**own, **told, "cpu": told["cpu"].strip(), "cpu_isa": isa}}


def _latency(times: Sequence[Sequence[float]], turns: Sequence[str]) -> dict[str, Any] | None:
    """Seconds of the call that each turn has counted."""
    if len(times) != len(turns) or not all(taken > 0 for _, _, taken in times):
        return None
    found: dict[str, list[float]] = {name: [] for name in turns}
    for name, (_, _, taken) in zip(turns, times, strict=True):
        found[name].append(taken)
    return {"seconds": found}


def _cold(times: Sequence[Sequence[float]], said: str) -> dict[str, Any] | None:
    """Its memory is counted from where the program had started."""
    memory = MEMORY.search(said)
    if len(times) != 1 or memory is None:
        return None
    load, first, _ = times[0]
    found = {"import_seconds": 0.0, "load_seconds": load, "first_seconds": first}
    return {**found, "baseline_bytes": 0, "peak_bytes": int(float(memory[1]) * (1 << 20))}


def _outputs(
    folder: Path, calls: int, ports: Sequence[dict[str, Any]], written: Sequence[int]
) -> dict[str, Any] | None:
    """Each call's outputs lie in one file, one after the other.

    Args:
        written: the places of `ports` in the order in which the program writes them.
    """
    found: list[list[NDArray[Any]]] = [[] for _ in ports]
    for call in range(calls):
        path = folder / f"output{call}.raw"
        raw = path.read_bytes() if path.is_file() else b""
        for place in written:
            shape = [max(1, length) for length in ports[place]["shape"]]
            kind = np.dtype(ports[place]["dtype"])
            size = int(np.prod(shape)) * kind.itemsize
            if len(raw) < size:
                return None
            found[place].append(np.frombuffer(raw[:size], kind).reshape(shape))
            raw = raw[size:]
        if raw:
            return None
    names = [f"output{place}.npy" for place in range(len(ports))]
    for name, values in zip(names, found, strict=True):
        np.save(folder / name, np.concatenate(values))
    return {"files": names, "missed": False}


def _told(ports: Sequence[worker.Port]) -> list[dict[str, Any]]:
    return [port._asdict() for port in ports]


def _places(path: Path, *ends: Sequence[worker.Port]) -> list[list[int]]:
    """Of inputs and of outputs: the places among the ports that the file's own order goes through."""
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.Model.GetRootAs(path.read_bytes()).Subgraphs(0)
    own = (graph.InputsAsNumpy(), graph.OutputsAsNumpy())
    named = [[graph.Tensors(index).Name().decode() for index in some] for some in own]
    return [
        [next(at for at, port in enumerate(ports) if name in port.names) for name in names]
        for names, ports in zip(named, ends, strict=True)
    ]


def _plain(port: Port) -> worker.Port:
    return worker.Port(**{**asdict(port), "names": list(port.names), "shape": list(port.shape)})


def _progress(done: int, total: int) -> str:
    return f"echo '{json.dumps({'progress': [done, total]})}'"
