"""What sources can be written from an artefact, by name (`edgeq deploy --emit`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import numpy as np

from edgeq.errors import MissingExtraError, UsageError
from edgeq.export.npu import compiler_for
from edgeq.export.vela import DISTRIBUTION, version
from edgeq.registry.schema import Profile, Runtime


@dataclass(frozen=True)
class Proven:
    """An artefact with the answer that it was seen to give.

    Attributes:
        path: of the file that goes to the device.
        inputs: by name, one sample as the file takes it: [1, ...].
        outputs: by name, its answer.
        arena: bytes that the interpreter used; None where it ran the file before that was compiled.
        profile: of the device.
    """

    path: Path
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    arena: int | None
    profile: Profile | None = None


class Emit(Protocol):
    """The function `emit` of an emitter's module: writes sources beside a file, and returns them.

    Raises:
        UnsupportedError: they cannot hold what the file does.
    """

    def __call__(self, proven: Proven) -> list[Path]: ...


class Emitter(NamedTuple):
    """One of them.

    Attributes:
        runtimes: whose artefacts it is for.
        module: where its function is.
        system: the table of a profile that says what it compiles for; empty where it compiles nothing.
    """

    runtimes: tuple[str, ...]
    module: str
    system: str = ""

    @property
    def emit(self) -> Emit:
        return cast(Emit, import_module(self.module).emit)


EMITTERS = {
    "c": Emitter(("tflite-micro", "vela"), "edgeq.export.emit_c"),
    "context": Emitter(("onnxruntime-qnn",), "edgeq.export.emit_context", "qnn"),
}


def emitter(name: str, runtimes: list[Runtime], profile: Profile | None) -> Emitter:
    """An emitter, if it serves one of the runtimes: asked before any work.

    Raises:
        UsageError: there is no such emitter, or it is not for them.
        MissingExtraError: what compiles for the device is not installed.
    """
    if name not in EMITTERS:
        raise UsageError(f"nothing is emitted as {name!r}", where="--emit", remedy=f"one of {', '.join(EMITTERS)}")
    found = EMITTERS[name]
    able = [runtime for runtime in runtimes if runtime.name in found.runtimes]
    if not able:
        raise UsageError(
            f"{name} is emitted for {' and '.join(found.runtimes)}, not for {', '.join(r.name for r in runtimes)}",
            where="--emit",
            remedy="give a target of theirs (c: mcu-cortex-m, npu-ethos-u; context: npu-hexagon), or leave it away",
        )
    if found.system and getattr(profile, found.system, None) is None:
        raise UsageError(
            "nothing says what it is to be compiled for",
            where=f"--emit {name}",
            remedy=f"give a --profile with a table [{found.system}], as those that edgeq brings have it",
        )
    for runtime in able:
        if compiler_for(runtime, profile) is not None and version() is None:
            raise MissingExtraError(DISTRIBUTION, "ethos-u")
    return found
