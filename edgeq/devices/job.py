"""A job for a device: its folder before it runs, and what is wrong where nothing came of it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.data.place import Place
from edgeq.devices.artifact import Candidate, Files, Inputs
from edgeq.devices.link import Exit
from edgeq.errors import DeviceError
from edgeq.runtimes import RuntimeInfo


def stage(folder: Path, artifacts: Mapping[str, tuple[Candidate, Inputs | Files]], info: RuntimeInfo) -> dict[str, Any]:
    """Put artefacts and inputs into the job's folder; returns the job's account of them."""
    written: dict[int, str | dict[str, Any]] = {}
    staged: dict[str, Any] = {}
    for number, (name, (candidate, inputs)) in enumerate(artifacts.items()):
        if not candidate.path.is_file():
            raise DeviceError("there is no such artefact", where=str(candidate.path))
        place = folder / f"artifact{number}"
        for file in dict.fromkeys((candidate.path, *info.companions(candidate.path))):
            if file.is_file():
                target = place / file.relative_to(candidate.path.parent)
                target.parent.mkdir(parents=True, exist_ok=True)
                _link_or_copy(file, target)
        for array in inputs.values():
            if id(array) not in written:
                name_there = f"input{len(written)}.npy"
                written[id(array)] = name_there
                if isinstance(array, Path):
                    _link_or_copy(array, folder / name_there)
                elif isinstance(array, Place):
                    _link_or_copy(array.path, folder / name_there)
                    values = {"offset": array.offset, "dtype": array.dtype, "shape": list(array.shape)}
                    written[id(array)] = {"file": name_there, **values}
                else:
                    np.save(folder / name_there, array, allow_pickle=False)
        staged[name] = {
            "path": f"{place.name}/{candidate.path.name}",
            "options": dict(candidate.options),
            "inputs": {key: written[id(array)] for key, array in inputs.items()},
        }
    return staged


def _link_or_copy(file: Path, target: Path) -> None:
    try:
        os.link(file.resolve(), target)
    except OSError:  # another file system, or links are not allowed
        shutil.copyfile(file, target)


_REMEDIES = {
    signal.SIGKILL: "most often the system was out of memory: free some, or run fewer samples",
    signal.SIGILL: "the runtime uses instructions that this CPU does not have: install a build for it",
}


def without_result(device: str, ended: Exit, where: str) -> DeviceError:
    if ended.silent is not None:
        return DeviceError(
            f"the process that runs artefacts on {device} did not finish one call in {ended.silent / 60:.3g} minutes",
            where=where,
            remedy="look for a loop in the artefact that does not end; where it is only slow, give more minutes in "
            "EDGEQ_PATIENCE",
        )
    lines = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
    last = f": {lines[-1]}" if lines else ""
    how, remedy = (
        f"ended with status {ended.status}",
        "what does the jobs there is Python 3.8 or newer with numpy, or the program that was named",
    )
    if ended.status < 0:
        names = {s.value: s.name for s in signal.Signals}
        how = f"was ended by {names.get(-ended.status, f'signal {-ended.status}')}"
        crashed = "the runtime crashed on this artefact: try another version of it, and report it to its makers"
        remedy = next((text for number, text in _REMEDIES.items() if number == -ended.status), crashed)
    return DeviceError(
        f"the process that runs artefacts on {device} {how} and left no result{last}", where=where, remedy=remedy
    )
