"""Whether a build is still what it was: its files, its versions, and its answers to the golden inputs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from edgeq.devices import Candidate, open_device
from edgeq.errors import UsageError
from edgeq.lock import (
    GOLDEN_NAME,
    Drift,
    Lock,
    changed_files,
    changed_versions,
    drift,
    read_golden,
    read_lock,
    versions_now,
)
from edgeq.planning.plan import Plan, run_options
from edgeq.progress import Clock, Progress, Silent
from edgeq.report.conclude import VERSIONED


@dataclass(frozen=True)
class Verification:
    """What differs from the lock.

    Attributes:
        files_changed: names of files whose bytes differ or that are missing.
        versions_changed: by package, the version then and now.
        drifts: by format, how far the answers to the golden inputs moved.
        unchecked: by format, why its answers were not checked.
    """

    files_changed: list[str]
    versions_changed: dict[str, tuple[str, str]]
    drifts: dict[str, Drift]
    unchecked: dict[str, str]

    @property
    def ok(self) -> bool:
        """Files are unchanged and every artefact that was run gives the same bits."""
        return not self.files_changed and all(d.bit_equal for d in self.drifts.values())

    def lines(self) -> list[str]:
        """For people."""
        found = [f"changed or missing: {name}" for name in self.files_changed]
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
        UsageError: no build, or its lock is damaged.
        DeviceError: the device or the runtime failed.
    """
    folder = Path(build)
    lock = read_lock(folder)
    changes = changed_files(folder, lock)
    broken = [change.name for change in changes]
    versions = {c.name: (c.then, c.now) for c in changed_versions(lock, versions_now(VERSIONED))}
    drifts: dict[str, Drift] = {}
    unchecked = {form: "it was not run when it was built" for form in lock.plans if form not in lock.golden}
    clock = Clock(progress or Silent())
    golden = None if GOLDEN_NAME in broken else read_golden(folder, lock)
    for form, kept in lock.golden.items():
        plan = _plan(folder, lock, form)
        missing = [name for name in broken if name in _files(plan)]
        if golden is None or missing:
            unchecked[form] = f"{missing[0] if missing else GOLDEN_NAME} is not what was built"
            continue
        with clock.stage(f"verify {form}") as steps:
            where = open_device(device or kept.device)
            artifact = Candidate(folder / _files(plan)[0], plan.runtime, run_options(plan.float_precision))
            measured = where.outputs(artifact, golden.inputs, steps)
        drifts[form] = drift(golden.outputs[form], measured, golden.steps[form])
    return Verification(broken, versions, drifts, unchecked)


def _plan(folder: Path, lock: Lock, form: str) -> Plan:
    for path in (folder / f"plan.{form}.json", folder / "plan.json"):
        if path.is_file():
            plan = Plan.model_validate(json.loads(path.read_text(encoding="utf-8")))
            if plan.format == form:
                return plan
    raise UsageError(
        f"the build has no plan for {form}", where=str(folder), remedy="build again with `edgeq deploy --overwrite`"
    )


def _files(plan: Plan) -> list[str]:
    return {"onnx": ["model.onnx"], "openvino": ["model.xml", "model.bin"], "tflite": ["model.tflite"]}[plan.format]
