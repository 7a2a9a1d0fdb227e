"""An artefact that can be run: its file, what it takes and gives, and what its first answer costs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgeq.data.place import Place

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
        options: what the runtime's file in `edgeq.on_device` lists: `precision` of the operators that stayed in float
            (float32; in OpenVINO also bfloat16, float16); there also `cache`, of what a language model has read, if not
            that (uint8 is OpenVINO's own choice); `kernels` in LiteRT (xnnpack, builtin, reference); `sums` in
            ONNX Runtime (exact, where the CPU would saturate them).
    """

    path: Path
    runtime: str
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

    @classmethod
    def median_of(cls, found: Sequence[Mapping[str, float]]) -> ColdStart:
        """Of several processes, as the worker tells them: every figure is the median over them."""
        middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
        return cls(
            import_seconds=middle["import_seconds"],
            load_seconds=middle["load_seconds"],
            first_seconds=middle["first_seconds"],
            baseline_bytes=int(middle["baseline_bytes"]),
            peak_bytes=int(middle["peak_bytes"]),
        )

    @property
    def seconds(self) -> float:
        """What the artefact costs: loading and the first inference."""
        return self.load_seconds + self.first_seconds

    @property
    def artifact_bytes(self) -> int:
        """What the artefact added to the process."""
        return self.peak_bytes - self.baseline_bytes
