"""What a tool's process is given and gives back: `python -m peer_tools.TOOL JOB.json`, answered by a `result.json`.

A tool is one function from a `Job` to a file: it wraps what is its own work in `job.timed(STAGE)`, so that importing
the tool counts for none.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sample = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Job:
    """One artefact that is to be made.

    Attributes:
        model: the exported program, a `.pt2` file.
        calibration: an `.npz` of arrays [N, ...] by input name.
        out: the file that a runtime opens first.
        format: `onnx`, `openvino` or `tflite`.
        precision: `w8a8`, or `w4a8`: 4-bit weights in every layer but the first and the last.
        target: of edgeq.
        options: of the tool.
        seconds: what its stages took.
    """

    model: Path
    calibration: Path
    out: Path
    format: str
    precision: str = "w8a8"
    target: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Counts what is done in it."""
        began = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began

    def arrays(self) -> Sample:
        """All calibration samples, [N, ...] by input name."""
        with np.load(self.calibration) as data:
            return {name: data[name] for name in data.files}

    def samples(self) -> list[Sample]:
        """The calibration samples, [1, ...] each."""
        return self.batches(1)

    def batches(self, size: int) -> list[Sample]:
        """The calibration samples, so many together; the last of them may be fewer."""
        arrays = self.arrays()
        count = len(next(iter(arrays.values())))
        return [{name: array[i : i + size] for name, array in arrays.items()} for i in range(0, count, size)]

    def text(self) -> str:
        """As JSON, for `read_job`."""
        return json.dumps(asdict(self), default=str)


def read_job(path: Path) -> Job:
    content = json.loads(path.read_text(encoding="utf-8"))
    return Job(**{**content, **{name: Path(content[name]) for name in ("model", "calibration", "out")}})


def carry_out(tool: Callable[[Job], None], distribution: str) -> None:
    """Does the job that the command line names.

    Args:
        distribution: the package whose version is told.
    """
    path = Path(sys.argv[1])
    job = read_job(path)
    tool(job)
    result = {"seconds": job.seconds, "peak_bytes": peak_bytes(), "version": version(distribution)}
    path.with_name("result.json").write_text(json.dumps(result), encoding="utf-8")


def peak_bytes() -> int:
    """The most that was ever resident in this process. Not getrusage: on Linux its maximum survives exec, so that a
    small process that a large one started would report that one's memory."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii", errors="replace"))
    assert found is not None
    return 1024 * int(found[1])
