"""The end of a run: which build is the best, what the verdict is, and the files that say so."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import BaseModel

from edgeq.data.dataset import Dataset
from edgeq.devices import Candidate, Inputs
from edgeq.errors import EdgeqError
from edgeq.files import atomic_write, sha256_file, write_json
from edgeq.lock import Golden, versions_now, write_lock
from edgeq.records.schema import Build, Report
from edgeq.records.summary import RECOGNIZABLE, likeness_text, speedup
from edgeq.records.wording import bytes_text, seconds_text, times_text
from edgeq.registry.schema import Target
from edgeq.report.html import write_html
from edgeq.report.junit import write_junit
from edgeq.version import __version__

GOLDEN_SAMPLES = 4

VERSIONED = (
    *("torch", "numpy", "onnx", "onnxruntime", "openvino"),
    *("ai-edge-litert", "litert-torch", "tflite-micro", "ethos-u-vela"),
)


class Described(Protocol):
    """A model, as far as a report tells of it."""

    @property
    def source(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def parameters(self) -> int: ...
    @property
    def macs(self) -> int: ...


class Samples(Protocol):
    """Data, as far as a report tells of it; `len` counts samples."""

    @property
    def source(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def recipe(self) -> str: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Built:
    """One format on its way into the report.

    Attributes:
        build: the report's part.
        plan: None where the format failed.
        outputs: the artefact's raw outputs on the evaluation samples; empty where it was not run.
        steps: per output, one quantization step in real units, None for float.
        error: what the format failed with.
        sample: the artefact with one sample, where it can be timed.
    """

    build: Build
    plan: BaseModel | None
    outputs: list[np.ndarray]
    steps: list[float | None]
    error: EdgeqError | None = None
    sample: tuple[Candidate, Inputs] | None = None


def best_build(builds: Sequence[Build]) -> tuple[Build, str]:
    """The build to keep, and why: fewest failed gates first, then lowest latency where it was measured (in turns with
    the others, where it was), then size."""
    able = [b for b in builds if b.error is None]

    def rank(build: Build) -> tuple[int, int, float, int]:
        failed = sum(not gate.passed for gate in build.gates)
        latency = build.seconds_in_turns or (build.speed.artifact.p50 if build.speed else float("inf"))
        return failed, not build.validated, latency, build.size_bytes

    best = min(able, key=rank)
    if len(able) == 1:
        return best, "the only format that was built"
    if best.seconds_in_turns:
        others = sorted((b.seconds_in_turns, b.format) for b in able if b.seconds_in_turns and b is not best)
        beside = ", ".join(f"{form} {times_text(seconds / best.seconds_in_turns)}" for seconds, form in others)
        return best, f"{seconds_text(best.seconds_in_turns)} in turns with the others: {beside} of that"
    if best.speed:
        return best, f"fastest of {len(able)} formats: {seconds_text(best.speed.artifact.p50)}"
    return best, f"smallest of {len(able)} formats: {bytes_text(best.size_bytes)}"


def conclude(
    model: Described,
    target: Target,
    profile: str | None,
    builds: Sequence[Build],
    *,
    keep_all: bool,
    warnings: Sequence[str],
    data: Mapping[str, Samples],
    seconds: Mapping[str, float],
) -> Report:
    """The report of a run.

    Args:
        builds: every format that was tried.
        keep_all: every build must hold the limits, not only the best.
        data: samples by role.
        seconds: where the time went.
    """
    best, why = best_build(builds)
    counted = list(builds) if keep_all else [best]
    failed = [f"{b.format}: {g.name}" for b in counted for g in b.gates if not g.passed]
    failed += [f"{b.format}: not built: {b.error.splitlines()[0]}" for b in counted if b.error]
    verdict = "failed" if failed else "passed" if best.validated else "not validated"
    return Report(
        edgeq=__version__,
        model=model.source,
        model_hash=model.sha256,
        model_kind=model.kind,
        parameters=model.parameters,
        macs=model.macs,
        target=target.name,
        profile=profile,
        verdict=verdict,  # type: ignore[arg-type]
        verdict_text=_verdict_text(best, failed),
        chosen=best.format,
        chosen_because=why,
        builds=list(builds),
        warnings=list(dict.fromkeys(warnings)),
        data={
            key: value
            for role, samples in data.items()
            for key, value in (
                (f"{role}", samples.source),
                (f"{role}_samples", len(samples)),
                (f"{role}_sha256", samples.sha256),
                *([(f"{role}_recipe", samples.recipe)] if samples.recipe else ()),
            )
        },
        environment=_environment(),
        seconds={name: round(spent, 3) for name, spent in seconds.items()},
    )


def write_build(
    folder: Path, report: Report, built: Sequence[Built], evaluation: Dataset | None, *, keep_all: bool
) -> None:
    """Writes plans, report, golden vectors and lock beside the artefacts.

    Where one format was to be kept, the files of the others are removed; the report still tells of them.
    """
    made = [b for b in built if b.build.error is None]
    kept = [b for b in made if keep_all or b.build.format == report.chosen]
    # formats may share files, such as a tokenizer
    for name in _files(made) - _files(kept):
        (folder / name).unlink()
    plans: dict[str, str] = {}
    files: list[str] = []
    for one in kept:
        assert one.plan is not None
        name = "plan.json" if one.build.format == report.chosen else f"plan.{one.build.format}.json"
        write_json(folder / name, one.plan)
        plans[one.build.format] = sha256_file(folder / name)
        files += [name, *one.build.files, *one.build.sources]
    write_reports(folder, report)
    run = [b for b in kept if b.outputs]
    golden = None
    if run and evaluation is not None:
        golden = Golden(
            inputs=evaluation.first(GOLDEN_SAMPLES),
            outputs={b.build.format: [o[:GOLDEN_SAMPLES] for o in b.outputs] for b in run},
            devices={b.build.format: b.build.device for b in run},
            steps={b.build.format: b.steps for b in run},
        )
    data, recipes = (
        {key.removesuffix(end): str(value) for key, value in report.data.items() if key.endswith(end)}
        for end in ("_sha256", "_recipe")
    )
    write_lock(
        folder,
        model=report.model_hash,
        data=data,
        recipes=recipes,
        plans=plans,
        files=files,
        versions=versions_now(VERSIONED),
        golden=golden,
    )


def _files(built: Sequence[Built]) -> set[str]:
    return {name for one in built for name in (*one.build.files, *one.build.sources)}


def write_reports(folder: Path, report: Report) -> None:
    """The report for programs, for people and for continuous integration."""
    atomic_write(folder / "report.json", report.model_dump_json(indent=2) + "\n")
    write_html(report, folder / "report.html")
    write_junit(report, folder / "report.junit.xml")


def _verdict_text(best: Build, failed: Sequence[str]) -> str:
    if failed:
        told = f"{len(failed)} limit{'s' if len(failed) > 1 else ''} missed ({', '.join(failed)})"
        gate = next((g for g in best.gates if g.name == RECOGNIZABLE and not g.passed), None)
        return told if gate is None else f"{told}: {gate.reason.partition('; remedy')[0]}"
    if not best.validated:
        return f"{best.format} exported, not validated: {best.not_validated_because}"
    parts = []
    if best.accuracy and best.accuracy.drop:
        drop = best.accuracy.drop
        change = -drop.value if best.accuracy.higher_is_better else drop.value
        moved = f"changes by {change:+.2f} {best.accuracy.unit}" if abs(drop.value) >= 0.005 else "is unchanged"
        parts.append(f"{best.accuracy.metric} {moved}")
    elif best.accuracy and (likeness := likeness_text(best.accuracy)):
        parts.append(likeness)
    faster = speedup(best)
    if faster is not None and not best.emulated:
        parts.append(f"{times_text(faster)} as fast as the best float")
    parts.append(bytes_text(best.size_bytes))
    return f"{best.format} on {best.device}{' (emulated)' if best.emulated else ''}: {', '.join(parts)}"


def _environment() -> dict[str, str]:
    return {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"} | versions_now(
        VERSIONED
    )
