"""A link through a shell on the device: `sh`, `tar`, `sha256sum`, `timeout` and `dd` are all that has to be there.

A lease is held for as long as a job takes. It is a shell there that hears of this process every few seconds. When it
hears nothing any more, for whatever reason, it ends the job and removes its folder. There is one folder, so that a
device does one job at a time, and what a reboot has left is found.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shlex
import tarfile
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from edgeq.devices.link import Exit, Link
from edgeq.devices.local import patience
from edgeq.errors import DeviceError

BEAT = 5.0
"""Seconds between two signs of life."""

SILENCE = 30
"""Seconds without one, after which the device gives a job up."""

TRIES = 3
"""Of taking the files there whole."""

CHUNK = 1 << 16

AGAIN = "look at the link, and run it again: what is finished is not done again"

ROOM = "free some space there, or name another folder: ?folder=/data/tmp behind its name"

TOLD = 1 << 16
"""Bytes of what a command wrote to standard error that are kept: the last ones."""

LEASE = """
for tool in timeout dd tar sha256sum; do
    command -v $tool > /dev/null || { echo "it has no $tool" >&2; exit 1; }
done
base=${1:-${TMPDIR:-/tmp}}; there=$base/edgeq-job
boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)
umask 077
held() {
    holder=$(cat "$there/.holder" 2>/dev/null) || { sleep 1; holder=$(cat "$there/.holder" 2>/dev/null) || return 1; }
    [ "${holder#* }" = "$boot" ] && kill -0 "${holder%% *}" 2>/dev/null
}
until mkdir "$there" 2>/dev/null; do
    if [ ! -e "$there" ]; then mkdir "$there"; exit 1; fi
    if held; then echo busy; sleep 1
    else mv "$there" "$there.$$" && rm -rf "$there.$$" || exit 1; fi
done
end() { kill -9 "-$(cat "$there/.pid" 2>/dev/null)" 2>/dev/null || kill -9 "$(cat "$there/.pid")" 2>/dev/null
    rm -rf "$there"; }
trap end EXIT
trap 'exit 1' HUP INT TERM PIPE
echo "$$ $boot" > "$there/.holder" || exit 1
echo "$there"
while [ -n "$(timeout "$2" dd bs=1 count=1 2>/dev/null)" ]; do :; done
"""
"""Says `busy` while another job is there, then the folder; it holds that until nothing comes in any more."""

RUN = """
cd "$1" || exit 1
shift
echo 1000 > /proc/self/oom_score_adj  # what else the device does is dearer
[ "$1" = - ] || ulimit -v "$1" || exit 1
shift
command -v setsid > /dev/null || setsid() { exec "$@"; }
exec 3<&0
setsid "$@" <&3 3<&- &
echo $! > .pid
wait $!
"""
"""Starts a command as the first of a group of its own, so that all that it starts can be ended."""

KILL = 'kill -9 "-$(cat "$1/.pid")" 2> /dev/null || kill -9 "$(cat "$1/.pid")"'

SIGNALLED = 128
"""What a shell says of a command that a signal ended, less its number."""


class Process(NamedTuple):
    """A command on the device.

    Attributes:
        ended: waits for it; its exit status, None where the connection broke. A signal is its number below zero, or
            128 above it, as shells say it.
    """

    stdin: Any
    stdout: Any
    stderr: Any
    ended: Callable[[], Awaitable[int | None]]


Start = Callable[[str], Awaitable[Process]]
"""Starts what a shell there makes of a line."""

Connect = Callable[[], AbstractAsyncContextManager[Start]]
"""Reaches the device. What it raises is a DeviceError."""


def over_shell(name: str, connect: Connect, base: str = "", memory: int | None = None) -> Link:
    """A link (docs/links.md).

    Args:
        name: of the device, for messages.
        base: folder there that the job's own one is made in; empty for what `TMPDIR` says there.
        memory: bytes of address space that the command may take.
    """

    def link(folder: Path, command: Sequence[str], on_line: Callable[[str], None]) -> Exit:
        return asyncio.run(_job(name, connect, base, memory, folder, command, on_line))

    return link


async def told(start: Start, script: str, *words: str) -> tuple[int | None, str, str]:
    """What a script says: its exit status, standard output and standard error.

    Raises:
        asyncio.TimeoutError: it has not ended in time.
    """

    async def whole() -> tuple[int | None, str, str]:
        process = await start(shlex.join(["sh", "-c", script, "edgeq", *words]))
        process.stdin.write_eof()
        out, errors = await asyncio.gather(process.stdout.read(), process.stderr.read())
        return await process.ended(), _text(out), _text(errors)

    return await asyncio.wait_for(whole(), patience())


async def _job(
    name: str,
    connect: Connect,
    base: str,
    memory: int | None,
    folder: Path,
    command: Sequence[str],
    on_line: Callable[[str], None],
) -> Exit:
    async with connect() as start, _leased(start, name, base) as there:
        try:
            sent = await _send(start, name, there, folder, on_line)
            ended = await _run(start, name, there, command, memory, on_line)
            await _fetch(start, name, there, folder, sent)
        except asyncio.TimeoutError:
            raise silent(name) from None
        return ended


@asynccontextmanager
async def _leased(start: Start, name: str, base: str) -> AsyncIterator[str]:
    """The job's folder on the device."""
    process = await start(shlex.join(["sh", "-c", LEASE, "edgeq", base, str(SILENCE)]))
    beats = asyncio.create_task(_beat(process))
    busy = asyncio.Event()
    try:
        line = await asyncio.wait_for(_free(process, busy), patience())
        if not line:
            said = _text(await process.stderr.read()).strip()
            raise DeviceError(f"no folder can be made on it: {_first(said)}", where=name, remedy=ROOM)
        yield line
    except asyncio.TimeoutError:
        if not busy.is_set():
            raise silent(name) from None
        cause = f"another job has kept it busy for {patience() / 60:.3g} minutes"
        raise DeviceError(cause, where=name, remedy="wait for that one, or end it") from None
    finally:
        beats.cancel()
        with suppress(OSError, asyncio.TimeoutError):
            process.stdin.write_eof()
            await asyncio.wait_for(process.ended(), BEAT)  # until the folder is gone


async def _free(process: Process, busy: asyncio.Event) -> str:
    while (line := _text(await process.stdout.readline()).strip()) == "busy":
        busy.set()
    return line


async def _beat(process: Process) -> None:
    with suppress(OSError):  # the job hears of a line that broke by itself
        while True:
            process.stdin.write(b".")
            await asyncio.sleep(BEAT)


async def _send(start: Start, name: str, there: str, folder: Path, on_line: Callable[[str], None]) -> Mapping[str, str]:
    """Takes all files there, again if what arrived is not what was sent.

    Returns:
        SHA-256 by name.
    """
    for _ in range(TRIES):
        process = await start(f"tar -xf - -C {shlex.quote(there)}")
        reading = asyncio.create_task(process.stderr.read())
        sent = await _pack(process, folder, on_line)
        errors = await asyncio.wait_for(reading, patience())
        status = await asyncio.wait_for(process.ended(), patience())
        if status is None:
            raise _broken(name)
        if status:
            _, room, _ = await told(start, 'df -Pk "$1"', there)
            free = next((f", where {line.split()[3]} kB are free" for line in room.splitlines()[1:2]), "")
            cause = f"the job's files cannot be written there{free}: {_first(_text(errors))}"
            raise DeviceError(cause, where=name, remedy=ROOM)
        arrived = Counter((await _sums(start, name, there)).values())
        if not Counter(sent.values()) - arrived:
            return sent
    raise DeviceError(
        f"the job's files arrived changed, {TRIES} times", where=name, remedy="look at its storage and at the link"
    )


async def _pack(process: Process, folder: Path, on_line: Callable[[str], None]) -> dict[str, str]:
    """Writes an archive of a folder to a process, as far as that takes it; SHA-256 by name."""
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    total, done = sum(path.stat().st_size for path in files.values()), 0
    sent: dict[str, str] = {}
    with suppress(ConnectionError):  # how it ended tells why
        for key, path in files.items():
            info, digest = tarfile.TarInfo(key), hashlib.sha256()
            info.size, info.mode = path.stat().st_size, 0o700
            process.stdin.write(info.tobuf())
            with path.open("rb") as file:
                while (chunk := file.read(CHUNK)) and not process.stdin.is_closing():
                    digest.update(chunk)
                    process.stdin.write(chunk)
                    await asyncio.wait_for(process.stdin.drain(), patience())
                    done += len(chunk)
                    on_line(json.dumps({"progress": [done, total]}))
            process.stdin.write(bytes(-info.size % tarfile.BLOCKSIZE))
            sent[key] = digest.hexdigest()
        process.stdin.write(bytes(2 * tarfile.BLOCKSIZE))
        process.stdin.write_eof()
    return sent


async def _run(
    start: Start,
    name: str,
    there: str,
    command: Sequence[str],
    memory: int | None,
    on_line: Callable[[str], None],
) -> Exit:
    most = "-" if memory is None else str(memory >> 10)
    process = await start(shlex.join(["sh", "-c", RUN, "edgeq", there, most, *command]))
    errors = asyncio.create_task(_end_of(process.stderr))
    quiet = None
    try:
        while line := await asyncio.wait_for(process.stdout.readline(), patience()):
            on_line(_text(line))
    except asyncio.TimeoutError:
        quiet = patience()
        await told(start, KILL, there)
    status = await asyncio.wait_for(process.ended(), patience())
    if status is None:
        raise _broken(name)
    status = SIGNALLED - status if status > SIGNALLED else status
    await told(start, 'rm -f "$1/.pid"', there)  # so that the lease kills nothing that has its number by then
    return Exit(status, await asyncio.wait_for(errors, patience()), quiet)


async def _fetch(start: Start, name: str, there: str, folder: Path, sent: Mapping[str, str]) -> None:
    """Brings back what is new there."""
    sums = {key: one for key, one in (await _sums(start, name, there)).items() if key not in sent}
    if not sums:
        return
    process = await start(shlex.join(["tar", "-cf", "-", "-C", there, "--", *sums]))
    process.stdin.write_eof()
    with tempfile.TemporaryFile() as packed:
        while chunk := await asyncio.wait_for(process.stdout.read(CHUNK), patience()):
            packed.write(chunk)
        if await asyncio.wait_for(process.ended(), patience()) != 0:
            raise _broken(name)
        packed.seek(0)
        _unpack(packed, folder, sums, name)


def _unpack(packed: IO[bytes], folder: Path, sums: Mapping[str, str], name: str) -> None:
    """Only what is whole, and was asked for, and all of it or nothing."""
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        try:
            with tarfile.open(fileobj=packed) as archive:
                archive.extractall(beside, [one for one in archive if one.name in sums], filter="data")
        except tarfile.TarError as error:
            raise DeviceError(f"its answers came back changed: {error}", where=name, remedy=AGAIN) from error
        for key, digest in sums.items():
            path = Path(beside, key)
            if path.is_symlink() or not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                raise DeviceError(f"{key} came back changed", where=name, remedy=AGAIN)
        for key in sums:
            target = folder / key
            target.parent.mkdir(parents=True, exist_ok=True)
            Path(beside, key).replace(target)


async def _sums(start: Start, name: str, there: str) -> dict[str, str]:
    """SHA-256 of the files there, by name."""
    script = 'cd "$1" && find . -type f ! -name ".*" -exec sha256sum {} +'
    status, out, errors = await told(start, script, there)
    if status is None:
        raise _broken(name)
    if status:
        raise DeviceError(f"its files cannot be read: {_first(errors)}", where=name, remedy=AGAIN)
    pairs = (line.lstrip("\\").partition(" ") for line in out.splitlines())
    found = {key.strip().removeprefix("*").removeprefix("./"): digest for digest, _, key in pairs}
    for key in found:
        if not key or PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts or Path(key).is_absolute():
            raise DeviceError(f"it names a file outside of its folder: {key!r}", where=name, remedy="do not trust it")
    return found


def silent(name: str) -> DeviceError:
    """The error for a device that does not answer in time."""
    return DeviceError(
        f"it has said nothing for {patience() / 60:.3g} minutes",
        where=name,
        remedy="look at what runs there; where it is only slow, give more minutes in EDGEQ_PATIENCE",
    )


def _broken(name: str) -> DeviceError:
    return DeviceError("the connection to it broke", where=name, remedy=AGAIN)


async def _end_of(stream: Any) -> str:
    kept = b""
    while chunk := await stream.read(CHUNK):
        kept = (kept + chunk)[-TOLD:]
    return _text(kept)


def _text(said: bytes) -> str:
    return said.decode("utf-8", "replace")


def _first(said: str) -> str:
    return next((line.strip() for line in said.splitlines() if line.strip()), "it does not say why")
