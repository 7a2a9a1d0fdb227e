"""An artefact of a decoder on its device, beside the float model in the same runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeq.devices import Candidate, Device
from edgeq.devices import decoding as on_device
from edgeq.devices.artifact import ColdStart
from edgeq.devices.decoding import Foretold
from edgeq.evaluation.latency import speed, summarise
from edgeq.hugging_face.folder import HfFolder
from edgeq.language.decoder import Decoder
from edgeq.language.formats import FORMATS
from edgeq.language.perplexity import compared
from edgeq.language.plan import DecoderPlan
from edgeq.language.rounding import Rounded
from edgeq.language.text import Texts
from edgeq.limits import judge as gates
from edgeq.prepare import Aim
from edgeq.progress import Clock
from edgeq.records.schema import Accuracy, Audit, Build, Decoding, Layer, Speed
from edgeq.registry.schema import Runtime
from edgeq.report.conclude import Built
from edgeq.runtimes import RUNTIMES

PROMPT = 128
"""Tokens that a prompt has where it is timed."""

NEW = 16
"""Tokens that are timed one by one, in every round."""

TIMING_SECONDS = 30.0
"""What the rounds may take, unless there are too few."""

ROUNDS, FEWEST = 20, 3


@dataclass(frozen=True)
class Subject:
    """A language model, as far as a report tells of it."""

    folder: HfFolder
    decoder: Decoder

    @property
    def source(self) -> str:
        return self.folder.path.name

    @cached_property
    def sha256(self) -> str:
        return self.folder.sha256

    @property
    def kind(self) -> str:
        return f"Hugging Face folder ({self.folder.architecture})"

    @cached_property
    def parameters(self) -> int:
        return sum(one.rows * one.columns for one in self.decoder.weights)

    @cached_property
    def macs(self) -> int:
        """Of a token."""
        return sum(one.rows * one.columns for one in self.decoder.weights if one.linear)

    @property
    def words(self) -> int:
        return self.folder.count("vocab_size")


class Reference(NamedTuple):
    """The float model in a runtime.

    Attributes:
        path: its file.
        size: bytes of all its files.
        foretold: what it makes of the evaluation texts.
    """

    path: Path
    size: int
    foretold: Foretold


def read_reference(
    decoder: Decoder, runtime: Runtime, aim: Aim, evaluation: Texts, scratch: Path, clock: Clock
) -> Reference:
    """Writes the float model for a runtime, and runs it on the texts."""
    assert aim.device is not None
    with clock.stage("float model"):
        path = float_file(decoder, runtime.format, scratch)
    size = sum((path.parent / name).stat().st_size for name in FORMATS[runtime.format].files)
    return Reference(path, size, foretold(path, runtime, aim.device, evaluation, "float model", clock))


def float_file(decoder: Decoder, form: str, scratch: Path) -> Path:
    """Writes the float model in a format; gives the file that a runtime loads."""
    folder = scratch / f"float-{form}"
    folder.mkdir(exist_ok=True)
    return FORMATS[form].write(decoder, Rounded({}, {}), folder)


def foretold(path: Path, runtime: Runtime, device: Device, evaluation: Texts, stage: str, clock: Clock) -> Foretold:
    """How well a file foretells the texts, in its runtime."""
    with clock.stage(stage) as steps:
        return on_device.negative_log_likelihood(
            device, Candidate(path, runtime.name), evaluation.tokens, first=evaluation.first, progress=steps
        )


class Judged(NamedTuple):
    """What was measured; None where it was not."""

    accuracy: Accuracy | None
    speed: Speed | None
    decoding: Decoding | None
    cold: ColdStart | None
    float_size: int | None
    why_not: str | None

    def built(
        self,
        runtime: Runtime,
        aim: Aim,
        files: Sequence[Path],
        plan: DecoderPlan,
        audit: Audit | None,
        layers: list[Layer],
    ) -> Built:
        """The report's part, held against the limits."""
        sizes = {file.name: file.stat().st_size for file in files}
        emulated = aim.device is not None and aim.device.emulated
        info = RUNTIMES[runtime.name]
        no_speed = self.why_not or ("the device is emulated: its time is no latency" if emulated else None)
        build = Build(
            format=runtime.format,
            runtime=runtime.name,
            runtime_version=info.version() or "not installed",
            device=aim.device.name if aim.device else "none",
            emulated=emulated,
            files=sizes,
            size_bytes=sum(sizes.values()),
            validated=self.accuracy is not None,
            not_validated_because=self.why_not,
            accuracy=self.accuracy,
            speed=self.speed,
            no_speed_because=no_speed,
            decoding=self.decoding,
            peak_memory_bytes=self.cold.peak_bytes if self.cold else None,
            cold_start_seconds=self.cold.seconds if self.cold else None,
            placements=[],
            audit=audit,
            layers=layers,
            gates=gates(
                aim.limits,
                accuracy=self.accuracy,
                speed=self.speed,
                size_bytes=sum(sizes.values()),
                emulated=emulated,
                not_validated_because=self.why_not,
                no_speed_because=no_speed,
            ),
            float_size_bytes=self.float_size,
        )
        return Built(build, plan, [], [])


def judge(
    artifact: Path, reference: Reference, runtime: Runtime, aim: Aim, evaluation: Texts, words: int, clock: Clock
) -> Judged:
    """Perplexity, and where the device has a clock the speed in turns with float."""
    device = aim.device
    assert device is not None
    found = foretold(artifact, runtime, device, evaluation, f"validate {runtime.format}", clock)
    accuracy = compared(reference.foretold, found, words)
    if device.emulated:
        return Judged(accuracy, None, None, None, reference.size, None)
    with clock.stage(f"time {runtime.format}") as steps:
        candidates = {
            "artifact": Candidate(artifact, runtime.name),
            "float32": Candidate(reference.path, runtime.name),
        }
        prompt = evaluation.tokens[0][:PROMPT].tolist()
        context = len(prompt)
        runs = on_device.speed(
            device, candidates, prompt, new=NEW, context=context, rounds=ROUNDS, seconds=TIMING_SECONDS,
            fewest=FEWEST, threads=aim.threads, progress=steps,
        )  # fmt: skip
        # fresh processes, the artefact's and float's
        cold, float_cold = (
            on_device.peak(device, candidates[name], prompt, threads=aim.threads) for name in candidates
        )
    tokens = {name: one.decode for name, one in runs.items()}
    timed = speed(tokens, threads=aim.threads, sizes={"float32": reference.size})
    firsts = {name: summarise(np.asarray(one.prefill)) for name, one in runs.items()}
    decoding = Decoding(
        prompt=len(prompt),
        context=context,
        first_token=firsts["artifact"],
        token=timed.artifact,
        float_first_token=firsts["float32"],
        float_token=timed.baselines[0].latency,
        float_peak_memory_bytes=float_cold.peak_bytes,
    )
    return Judged(accuracy, timed, decoding, cold, reference.size, None)
