"""Whether a build is still what it was: its files, its versions, and its answers to the golden inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgeq.devices import Candidate, open_device
from edgeq.errors import UsageError
from edgeq.evaluation.measure import fed_as_told
from edgeq.files import LOCK_NAME
from edgeq.formats import FORMATS
from edgeq.lock import (
    GOLDEN_NAME,
    Damaged,
    Drift,
    changed_files,
    changed_versions,
    drift,
    read_golden,
    read_lock,
    versions_now,
)
from edgeq.plans.plan import Plan, read_plan, run_options
from edgeq.progress import Clock, Progress, Silent
from edgeq.reading import read_json
from edgeq.report.conclude import VERSIONED


@dataclass(frozen=True)
class Verification:
    """What differs from the lock.

    Attributes:
        files_changed: names of files whose bytes differ, that are missing, or that do not hold what they should.
        versions_changed: by package, the version then and now.
        drifts: by format, how far the answers to the golden inputs moved.
        unchecked: by format, why its answers were not checked.
        damaged: by file, what is wrong with its content; these are among `files_changed`.
    """

    files_changed: list[str]
    versions_changed: dict[str, tuple[str, str]]
    drifts: dict[str, Drift]
    unchecked: dict[str, str]
    damaged: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Files are unchanged and whole, and every artefact that was run gives the same bits."""
        return not self.files_changed and all(d.bit_equal for d in self.drifts.values())

    def lines(self) -> list[str]:
        """For people."""
        found = [
            f"damaged: {name}: {self.damaged[name]}" if name in self.damaged else f"changed or missing: {name}"
            for name in self.files_changed
        ]
        found += [
            f"{name}: {then or 'not installed'} then, {now or 'not installed'} now"
            for name, (then, now) in self.versions_changed.items()
        ]
        for form, moved in self.drifts.items():
            if moved.bit_equal:
                found.append(f"{form}: {moved.samples} golden samples, the same bits")
                continue
            steps = "" if moved.max_steps is None else f", {moved.max_steps:.3g} quantization steps"
            answers = "" if moved.top1_changes is None else f", {moved.top1_changes} of {moved.samples} answers changed"
            found.append(f"{form}: answers moved by up to {moved.max_abs:.3g}{steps}{answers}")
        found += [f"{form}: not run: {why}" for form, why in self.unchecked.items()]
        return found


def verify(build: str | Path, *, device: str | None = None, progress: Progress | None = None) -> Verification:
    """Runs the golden inputs through every artefact of a build and compares.

    Args:
        build: folder that `deploy` wrote.
        device: where to run them; the device that gave the golden outputs if not given.

    Raises:
        UsageError: no build, or one of a later edgeq.
        DeviceError: the device or the runtime failed.
    """
    folder = Path(build)
    try:
        lock = read_lock(folder)
    except Damaged as error:
        return Verification([LOCK_NAME], {}, {}, {}, {LOCK_NAME: error.cause})
    changes = changed_files(folder, lock)
    broken = [change.name for change in changes]
    versions = {c.name: (c.then, c.now) for c in changed_versions(lock, versions_now(VERSIONED))}
    drifts: dict[str, Drift] = {}
    unchecked: dict[str, str] = {
        form: "it was not run when it was built" for form in lock.plans if form not in lock.golden
    }
    clock = Clock(progress or Silent())
    damaged = _unreadable_report(folder)
    golden = None
    if GOLDEN_NAME not in broken:
        try:
            golden = read_golden(folder, lock)
        except Damaged as error:
            damaged[GOLDEN_NAME] = error.cause
    for form, kept in lock.golden.items():
        try:
            plan = _plan(folder, form)
        except Damaged as error:
            damaged[error.where] = error.cause
            unchecked[form] = f"{error.where} is not what was built"
            continue
        missing = [name for name in broken if name in FORMATS[plan.format].files]
        if golden is None or missing:
            unchecked[form] = f"{missing[0] if missing else GOLDEN_NAME} is not what was built"
            continue
        with clock.stage(f"verify {form}") as steps:
            where = open_device(device or kept.device)
            first = folder / FORMATS[plan.format].files[0]
            artifact = Candidate(first, plan.runtime, run_options(plan.float_precision))
            given = fed_as_told(golden.inputs, where.interface(artifact).inputs)
            measured = where.outputs(artifact, given, steps)
        try:
            drifts[form] = drift(golden.outputs[form], measured, golden.steps[form])
        except UsageError as error:
            damaged[GOLDEN_NAME] = error.cause
    return Verification([*broken, *sorted(damaged.keys() - {*broken})], versions, drifts, unchecked, damaged)


def _plan(folder: Path, form: str) -> Plan:
    """The plan of a format; `where` of its error is the name of the file.

    Raises:
        Damaged: there is none, or it cannot be read.
    """
    own = folder / f"plan.{form}.json"
    path = own if own.exists() else folder / "plan.json"
    try:
        plan = read_plan(path)
    except UsageError as error:
        raise Damaged(error.cause, where=path.name) from error
    if plan.format != form:
        raise Damaged(f"it is a plan for {plan.format}, not for {form}", where=path.name)
    return plan


def _unreadable_report(folder: Path) -> dict[str, str]:
    """What is wrong with the report. The lock holds no hash of it: it tells what took how long."""
    path = folder / "report.json"
    if not path.exists():
        return {}
    try:
        return {} if isinstance(read_json(path, "a report", ""), dict) else {path.name: "is not a report"}
    except UsageError as error:
        return {path.name: error.cause}
