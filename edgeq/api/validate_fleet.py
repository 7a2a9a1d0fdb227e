"""Measures an artefact on several devices, side by side: one report, with a column a device."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from edgeq.api.validate import ValidateRequest, find_artifact, float_for, judge_on, read_subject
from edgeq.devices import Device, open_device
from edgeq.errors import DeviceError, UsageError
from edgeq.files import scratch_folder
from edgeq.lock import Array
from edgeq.progress import Clock, Progress, Silent
from edgeq.records.devices import DevicesReport, Unreached
from edgeq.records.schema import Report


def validate_fleet(request: ValidateRequest, devices: Sequence[str]) -> DevicesReport:
    """Accuracy and latency of an artefact on each of several devices.

    Devices of their own work side by side. Those that share this machine take turns: a time that is taken beside other
    work is none.

    Args:
        request: its device is not heeded.
        devices: their names.

    Raises:
        UsageError: wrong arguments or data.
    """
    if twice := {name for name in devices if devices.count(name) > 1}:
        raise UsageError(f"{', '.join(sorted(twice))} is named twice", remedy="name each device once")
    progress = request.progress or Silent()
    path, target = find_artifact(request.artifact, request.target)
    found: dict[str, Device | DeviceError] = {}
    with ThreadPoolExecutor(max(1, len(devices))) as pool:
        for name, opened in zip(devices, pool.map(_opened, devices), strict=True):
            found[name] = opened
    there = {name: one for name, one in found.items() if isinstance(one, Device)}
    results: dict[str, Report | DeviceError] = {n: one for n, one in found.items() if isinstance(one, DeviceError)}
    lanes = [[name for name, one in there.items() if one.shares_host]]
    lanes += [[name] for name, one in there.items() if not one.shares_host]
    clock = Clock(progress)
    with scratch_folder() as scratch:
        subject, answers = read_subject(request, path, target, scratch, clock), dict[str, list[Array]]()
        beside = {name: float_for(one, subject, answers, clock) for name, one in there.items()}

        def judge(lane: list[str]) -> None:
            for name in lane:
                try:
                    results[name] = judge_on(there[name], subject, beside[name], Clock(_OnDevice(progress, name)))
                except DeviceError as error:
                    results[name] = error

        with ThreadPoolExecutor(len(lanes)) as pool:
            list(pool.map(judge, lanes))
    return DevicesReport(
        artifact=path.name,
        reports={name: one for name in devices if isinstance(one := results[name], Report)},
        unreached={
            name: Unreached(cause=one.cause, remedy=one.remedy)
            for name in devices
            if isinstance(one := results[name], DeviceError)
        },
    )


def _opened(name: str) -> Device | DeviceError:
    try:
        return open_device(name)
    except DeviceError as error:
        return error


class _OnDevice(Silent):
    """Tells the stages of one device of several."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name = progress, name

    def start(self, stage: str) -> None:
        self._progress.start(f"{self._name}: {stage}")

    def step(self, done: int, total: int) -> None:
        self._progress.step(done, total)

    def end(self, stage: str, seconds: float) -> None:
        self._progress.end(f"{self._name}: {stage}", seconds)

    def note(self, text: str) -> None:
        self._progress.note(f"{self._name}: {text}")
