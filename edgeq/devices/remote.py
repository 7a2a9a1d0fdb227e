"""A device behind a shell: what its name says of it, and what it says itself when it is opened."""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from edgeq.devices.benchmark_model import BenchmarkModel
from edgeq.devices.device import Device
from edgeq.devices.link import PythonWorker
from edgeq.devices.over_shell import Connect, over_shell, silent, told
from edgeq.errors import DeviceError, UsageError
from edgeq.limits import parse_bytes
from edgeq.runtimes import RuntimeInfo

HELLO = """
uname -m
shift
"$@" -c 'import platform; print(platform.machine())' && "$@" -c 'import numpy'
"""

SAME = ({"x86_64", "i386", "i686"}, {"aarch64", "armv7l", "armv8l"})
"""Machines of which one runs what is made for the other."""


@dataclass(frozen=True)
class Options:
    """What a name says behind its `?`.

    Attributes:
        python: the command that starts Python there.
        benchmark_model: where LiteRT's program of that name lies there, which does the jobs then, without Python.
        folder: where a job's folder is made; where the device says if empty.
        memory: bytes that a worker may take.
    """

    python: tuple[str, ...] = ("python3",)
    folder: str = ""
    memory: int | None = None
    benchmark_model: str = ""


def split(name: str, rest: str) -> tuple[Any, Options]:
    """The address in a name, and its options.

    Args:
        name: the whole, for messages.
        rest: behind the two slashes.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        address = urlsplit(f"//{rest}")
        _ = address.port
        given = dict(parse_qsl(address.query, strict_parsing=True) if address.query else [])
        python = tuple(shlex.split(given.get("python", ""))) or Options.python
    except ValueError as error:
        raise UsageError(
            f"cannot read {name!r}: {error}", remedy="ssh://user@host:22?python=/usr/bin/python3"
        ) from None
    known = [field.name for field in fields(Options)]
    if unknown := given.keys() - set(known):
        raise UsageError(f"{name!r} has no option {', '.join(sorted(unknown))}", remedy=f"one of {', '.join(known)}")
    memory = parse_bytes(given["memory"], "?memory") if "memory" in given else None
    if wrong := [key for key, value in given.items() if not value.isprintable() or "\\" in value]:
        raise UsageError(f"{name!r} has a {wrong[0]} that no shell would keep", remedy="name another one")
    return address, Options(python, given.get("folder", ""), memory, given.get("benchmark_model", ""))


async def asked(name: str, connect: Connect, script: str, *words: str) -> tuple[int | None, str, str]:
    """What a script says there: its status, its output, its errors.

    Raises:
        DeviceError: it cannot be reached, or falls silent.
    """
    async with connect() as start:
        try:
            return await told(start, script, *words)
        except asyncio.TimeoutError:
            raise silent(name) from None


def remote(name: str, connect: Connect, options: Options) -> Device:
    """A device that was reached.

    Raises:
        DeviceError: it cannot be reached, or has neither Python nor the program that was named.
    """

    link = over_shell(name, connect, options.folder, options.memory)
    if options.benchmark_model:
        if asyncio.run(asked(name, connect, '[ -x "$1" ]', options.benchmark_model))[0] != 0:
            remedy = f"put it there, and make it executable: chmod +x {options.benchmark_model}"
            raise DeviceError(f"{options.benchmark_model} is no program there", where=name, remedy=remedy)
        return Device(name, False, link, runner=BenchmarkModel(options.benchmark_model))
    status, out, errors = asyncio.run(asked(name, connect, HELLO, "", *options.python))
    machines = out.split()
    if status != 0 or len(machines) != 2:
        said = errors.strip().splitlines()
        raise DeviceError(
            f"{shlex.join(options.python)} does not run there: {said[-1] if said else f'status {status}'}",
            where=name,
            remedy="install Python 3.8 or newer with numpy, or name another: ?python=/opt/python/bin/python3; "
            "or, for .tflite files, name LiteRT's benchmark: ?benchmark_model=/data/local/tmp/benchmark_model",
        )
    native = machines[0] == machines[1] or any(set(machines) <= one for one in SAME)

    def missing(info: RuntimeInfo) -> DeviceError:
        python = shlex.join(options.python)
        packages = " ".join((info.distribution, *info.beside))
        cause = f"{info.distribution} is not installed there"
        cause += f", or {', '.join(info.beside)}, which it needs" if info.beside else ""
        return DeviceError(cause, where=name, remedy=f"there: {python} -m pip install {packages}")

    return Device(
        name=name,
        emulated=not native,
        link=link,
        missing=missing,
        runner=PythonWorker(options.python),
        facts={} if native else {"emulator": f"of {machines[1]} on {machines[0]}"},
    )
