"""Devices that are reached by Android's debug bridge: `adb://SERIAL`, as `adb devices` lists them.

`adb://` alone is the only one there is. `adb` does the talking, from the path or from the package adbutils.
"""

from __future__ import annotations

import asyncio
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from edgeq.devices.device import Device
from edgeq.devices.over_shell import Process, Start
from edgeq.devices.remote import asked, remote, split
from edgeq.errors import DeviceError, MissingExtraError, UsageError

FOLDER = "/data/local/tmp"
"""Where Android's shell may write, and start programs."""

REMEDIES = {
    "unauthorized": "unlock it, and allow debugging from this computer",
    "offline": "plug it in again, or: adb reconnect",
    "more than one": "name one of `adb devices`: adb://SERIAL",
}
"""By what adb says."""


def open_adb(rest: str) -> Device:
    """A device by what its name has behind `adb://`.

    Raises:
        UsageError: that is no serial number.
        DeviceError: it is not there, or does not allow debugging.
        MissingExtraError: adb is not installed.
    """
    name = f"adb://{rest}"
    address, options = split(name, rest)
    if address.path.strip("/"):
        raise UsageError(f"cannot read {name!r}", remedy="adb://SERIAL, as `adb devices` lists it")
    connect = partial(_connected, name, [_adb(), *(["-s", address.netloc] if address.netloc else [])])
    device = remote(name, connect, replace(options, folder=options.folder or FOLDER))
    _, told, _ = asyncio.run(asked(name, connect, "getprop ro.boot.qemu"))
    return replace(device, emulated=True, facts={"emulator": "Android's"}) if told.strip() == "1" else device


def _adb() -> str:
    if found := shutil.which("adb"):
        return found
    try:
        from adbutils import adb_path
    except ModuleNotFoundError as error:
        raise MissingExtraError("adbutils", "adb") from error
    return str(adb_path())


@asynccontextmanager
async def _connected(name: str, adb: Sequence[str]) -> AsyncIterator[Start]:
    server = await asyncio.create_subprocess_exec(adb[0], "start-server", stdout=DEVNULL, stderr=DEVNULL)
    await server.wait()
    state = await _state(adb)
    if state != "device":
        remedy = next((way for word, way in REMEDIES.items() if word in state), "look whether `adb devices` lists it")
        raise DeviceError(f"it cannot be reached: {state}", where=name, remedy=remedy)

    async def start(line: str) -> Process:
        process = await asyncio.create_subprocess_exec(*adb, "shell", "-T", line, stdin=PIPE, stdout=PIPE, stderr=PIPE)

        async def ended() -> int | None:
            status = await process.wait()
            if status and await _state(adb) != "device":
                return None
            return status

        return Process(process.stdin, process.stdout, process.stderr, ended)

    yield start


async def _state(adb: Sequence[str]) -> str:
    """`device`, or what is wrong with it."""
    process = await asyncio.create_subprocess_exec(*adb, "get-state", stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
    out, errors = await process.communicate()
    said = (out or errors).decode("utf-8", "replace").strip().splitlines()
    return said[0].removeprefix("error: ") if said else "adb does not say why"
