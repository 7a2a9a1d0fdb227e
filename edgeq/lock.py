"""`edgeq.lock`: what a build was made from and what it answered, so that it can be checked later and elsewhere.

The lock holds no time of day and nothing of the machine's paths: the same build gives the same bytes.
"""

from __future__ import annotations

import io
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeq.errors import UsageError
from edgeq.files import LOCK_NAME, atomic_write, sha256_file, write_json
from edgeq.reading import read_json, within
from edgeq.unpacking import check_unpacked

GOLDEN_NAME = "golden.npz"
Array = NDArray[Any]
_Name = Annotated[str, Field(pattern="^[a-z]+$")]


class GoldenFormat(BaseModel):
    """What one artefact answered to the golden inputs, on which device."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str
    outputs: int
    steps: list[float | None]
    """Per output, the size of one quantization step in real units, or None where it is float."""


class Lock(BaseModel):
    """The content of `edgeq.lock`. Hashes are hexadecimal SHA-256."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["edgeq.lock"] = "edgeq.lock"
    schema_version: Literal[1] = 1
    model: str
    data: dict[str, str]
    """Hash by role: calibration, evaluation."""
    recipes: dict[str, str] = {}
    """By role, how edgeq itself made the samples, and can make them again; samples that were given have none."""
    plans: dict[_Name, str]
    """Hash of the plan by format."""
    files: dict[str, str]
    """Hash of each file by its name relative to the build, `golden.npz` included."""
    versions: dict[str, str]
    """Version by package, with `python` and `platform`."""
    golden: dict[_Name, GoldenFormat]
    """By format; empty where no artefact could be run."""


@dataclass(frozen=True)
class Golden:
    """The first samples and an artefact's answers to them.

    Attributes:
        inputs: by input name, [S, ...].
        outputs: by format, per output [S, ...] as the artefact gave them on its device.
        devices: by format, the device that gave them.
        steps: by format, per output the size of one quantization step in real units, or None for float.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Sequence[Array]]
    devices: Mapping[str, str]
    steps: Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Drift:
    """How far answers moved from the golden ones.

    Attributes:
        samples: samples compared.
        bit_equal: every value has the same bits.
        max_abs: largest difference, in the outputs' own units; infinity where one of them is NaN or infinite.
        max_steps: largest difference in quantization steps, over the outputs whose step is known; None if none is.
        top1_changes: samples whose first output has its maximum elsewhere; None where it is no classifier's.
    """

    samples: int
    bit_equal: bool
    max_abs: float
    max_steps: float | None
    top1_changes: int | None


@dataclass(frozen=True)
class Change:
    """One thing that is not as the lock says; `now` is empty where it is missing."""

    name: str
    then: str
    now: str


def write_lock(
    build: Path,
    *,
    model: str,
    data: Mapping[str, str],
    plans: Mapping[str, str],
    files: Sequence[str],
    versions: Mapping[str, str],
    golden: Golden | None = None,
    recipes: Mapping[str, str] | None = None,
) -> Lock:
    """Write `edgeq.lock`, and `golden.npz` beside it where there are golden vectors.

    Args:
        build: the folder of the build; its files are hashed here, so all of them must be written.
        model: hash of the exported model.
        data: hash by role.
        plans: hash by format.
        files: names relative to `build`.
        versions: see `versions_now`.
        golden: None where no artefact could be run.
        recipes: by role, how samples were made that were not given.

    Raises:
        UsageError: a file is missing, the folder is not writable, or the disk is full.
    """
    names = list(files)
    if golden is not None:
        atomic_write(build / GOLDEN_NAME, _pack(golden))
        names.append(GOLDEN_NAME)
    lock = Lock(
        model=model,
        data=dict(sorted(data.items())),
        recipes=dict(sorted((recipes or {}).items())),
        plans=dict(sorted(plans.items())),
        files={name: sha256_file(build / name) for name in sorted(set(names))},
        versions=dict(sorted(versions.items())),
        golden={}
        if golden is None
        else {
            name: GoldenFormat(device=golden.devices[name], outputs=len(outputs), steps=list(golden.steps[name]))
            for name, outputs in sorted(golden.outputs.items())
        },
    )
    write_json(build / LOCK_NAME, lock)
    return lock


def read_lock(build: Path) -> Lock:
    """The lock of a build.

    Raises:
        UsageError: there is none, or it is of a later edgeq.
        Damaged: it cannot be read, was not written by edgeq, or names files outside of the build.
    """
    path = build / LOCK_NAME
    if not build.is_dir():
        raise UsageError("there is no such folder", where=str(build), remedy="give the folder of a build")
    if not path.exists():
        raise UsageError(
            f"there is no {LOCK_NAME} here", where=str(build), remedy="give the --out folder of `edgeq deploy`"
        )
    try:
        content = read_json(path, "a lock", "")
    except UsageError as error:
        raise _damaged(path, f"is not JSON ({error.cause})") from error
    if not isinstance(content, dict) or content.get("kind") != "edgeq.lock":
        raise _damaged(path, "was not written by edgeq")
    if content.get("schema_version") != 1:
        raise UsageError(
            f"is of schema version {content.get('schema_version')}, this edgeq reads 1",
            where=str(path),
            remedy="use the edgeq that made the build, or build again",
        )
    try:
        lock = Lock.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(path, f"is damaged at {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    try:
        for name in lock.files:
            within(build, name, str(path))
    except UsageError as error:
        raise _damaged(path, error.cause) from error
    return lock


def read_golden(build: Path, lock: Lock) -> Golden | None:
    """The golden vectors of a build, or None where it has none.

    Raises:
        Damaged: the file is missing, or holds something else.
    """
    if not lock.golden:
        return None
    path = build / GOLDEN_NAME
    if not path.is_file():
        raise _damaged(path, "there is no such file")
    try:
        with np.load(path, allow_pickle=False) as stored:
            check_unpacked(stored.zip, path.stat().st_size, str(path))
            arrays = {name: stored[name] for name in stored.files}
        return Golden(
            inputs={name.removeprefix("input:"): a for name, a in arrays.items() if name.startswith("input:")},
            outputs={
                name: [arrays[f"output:{name}:{i}"] for i in range(form.outputs)] for name, form in lock.golden.items()
            },
            devices={name: form.device for name, form in lock.golden.items()},
            steps={name: form.steps for name, form in lock.golden.items()},
        )
    except Exception as error:  # a damaged zip fails in many ways
        raise _damaged(path, f"is damaged: {error}") from error


def changed_files(build: Path, lock: Lock) -> list[Change]:
    """Files whose content is not what the lock says; a missing one has an empty `now`."""
    changes = []
    for name, then in lock.files.items():
        path = build / name
        now = sha256_file(path) if path.is_file() else ""
        if now != then:
            changes.append(Change(name, then, now))
    return changes


def changed_versions(lock: Lock, now: Mapping[str, str]) -> list[Change]:
    """Packages whose version differs from the lock's; those it does not name are left out."""
    return [Change(name, then, now.get(name, "")) for name, then in lock.versions.items() if now.get(name, "") != then]


def drift(golden: Sequence[Array], measured: Sequence[Array], steps: Sequence[float | None] = ()) -> Drift:
    """Compare answers to golden ones.

    Args:
        golden: per output [S, ...].
        measured: the same outputs, computed now.
        steps: per output the size of one quantization step, or None.

    Raises:
        UsageError: the number or the shapes of the outputs differ: it is another artefact.
    """
    shapes = [tuple(a.shape for a in arrays) for arrays in (golden, measured)]
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"the golden outputs have the shapes {shapes[0]}, the artefact's {shapes[1]}",
            remedy="this is another artefact than the one that was locked: build again",
        )
    max_abs = 0.0
    max_steps: float | None = None
    for i, (then, now) in enumerate(zip(golden, measured, strict=True)):
        gap = _largest_gap(then, now)
        max_abs = max(max_abs, gap)
        step = steps[i] if i < len(steps) else None
        if step:
            max_steps = max(max_steps or 0.0, gap / step)
    return Drift(
        samples=len(golden[0]) if golden else 0,
        bit_equal=all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(golden, measured, strict=True)),
        max_abs=max_abs,
        max_steps=max_steps,
        top1_changes=_top1_changes(golden[0], measured[0]) if golden else None,
    )


def versions_now(packages: Sequence[str] = ()) -> dict[str, str]:
    """Versions of edgeq, Python, torch, the platform, and the given packages where they are installed."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()}-{platform.machine()}"}
    for package in ("edgeq", "numpy", "torch", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _largest_gap(then: Array, now: Array) -> float:
    if then.size == 0 or np.array_equal(then, now, equal_nan=np.issubdtype(then.dtype, np.inexact)):
        return 0.0
    with np.errstate(invalid="ignore"):
        gap = np.abs(now.astype(np.float64) - then.astype(np.float64))
    return float(np.nan_to_num(gap, nan=np.inf).max())


def _top1_changes(then: Array, now: Array) -> int | None:
    n = len(then)
    if n == 0 or then.ndim < 2 or then.shape[1] < 2 or then[0].size != then.shape[1]:
        return None
    return int((then.reshape(n, -1).argmax(axis=1) != now.reshape(n, -1).argmax(axis=1)).sum())


def _pack(golden: Golden) -> bytes:
    arrays = {f"input:{name}": np.asarray(a) for name, a in sorted(golden.inputs.items())}
    for name, outputs in sorted(golden.outputs.items()):
        arrays |= {f"output:{name}:{i}": np.asarray(a) for i, a in enumerate(outputs)}
    packed = io.BytesIO()
    # numpy stamps its entries with a fixed date, so that equal arrays give equal bytes.
    np.savez(packed, **arrays)  # type: ignore[arg-type]
    return packed.getvalue()


class Damaged(UsageError):
    """A file of a build that does not hold what was written there."""


def _damaged(path: Path, why: str) -> Damaged:
    return Damaged(why, where=str(path), remedy="build again, or restore the folder from where it was copied")
