"""A stand-in for an Android device: it speaks the debug bridge's protocol, and runs its shell's lines on this machine.

Where mksh and toybox are installed, which are Android's shell and tools, these are all that it has.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

HEADER = struct.Struct("<4s5I")
MOST = 1 << 18
BANNER = b"device::ro.product.name=stand-in;ro.product.model=stand-in;ro.product.device=stand-in;features=shell_v2"
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
TOOLS = ("timeout", "tar", "sha256sum", "df", "find", "mkdir", "mv", "rm", "cat", "sleep", "uname", "chmod")


class Android:
    """It listens on a port of its own: `adb connect SERIAL`."""

    def __init__(self, folder: Path) -> None:
        self.jobs = folder / "jobs"
        self.jobs.mkdir()
        self._shell, self._path = self._userland(folder / "bin")
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.serial = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._running: set[asyncio.subprocess.Process] = set()
        self._lines: set[asyncio.StreamWriter] = set()
        threading.Thread(target=self._serve, daemon=True).start()

    @staticmethod
    def _userland(folder: Path) -> tuple[str, str]:
        shell, toybox = shutil.which("mksh"), shutil.which("toybox")
        if shell is None or toybox is None:
            return "sh", os.environ["PATH"]
        folder.mkdir()
        for tool in TOOLS:
            (folder / tool).symlink_to(toybox)
        (folder / "dd").symlink_to(shutil.which("dd") or "dd")  # Android's toybox has it, and Debian's does not
        (folder / "sh").symlink_to(shell)
        (folder / "python3").symlink_to(sys.executable)
        return shell, str(folder)

    def unplug(self) -> None:
        """The cable is pulled: all lines break, and what ran on them hears that."""
        self._loop.call_soon_threadsafe(lambda: [line.transport.abort() for line in self._lines])

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._host, sock=self._listening))
        self._loop.run_forever()

    async def _host(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._lines.add(writer)
        streams: dict[int, _Stream] = {}
        try:
            while True:
                command, first, second, length, _, _ = HEADER.unpack(await reader.readexactly(HEADER.size))
                data = await reader.readexactly(length)
                if command == b"CNXN":
                    _send(writer, b"CNXN", 0x01000001, MOST, BANNER)
                elif command == b"OPEN":
                    service, _, line = data.rstrip(b"\0").partition(b":")
                    if not service.startswith(b"shell,v2"):
                        _send(writer, b"CLSE", 0, first)
                        continue
                    stream = streams[first] = _Stream(writer, first)
                    stream.task = asyncio.ensure_future(stream.run(self._shell, self._path, line.decode()))
                elif second in streams or first in streams:
                    await streams[first].take(command, data)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._lines.discard(writer)
            for stream in streams.values():
                stream.hang_up()
            writer.close()


class _Stream:
    """One line of the shell; of a stream, both ends have the same number here."""

    def __init__(self, writer: asyncio.StreamWriter, number: int) -> None:
        self._writer, self._number = writer, number
        self._ready, self._input = asyncio.Event(), b""
        self._started = asyncio.get_running_loop().create_future()
        self.task: asyncio.Future[None] | None = None

    async def run(self, shell: str, path: str, line: str) -> None:
        process = await asyncio.create_subprocess_exec(
            shell,
            "-c",
            line,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": path},
        )
        self._started.set_result(process)
        _send(self._writer, b"OKAY", self._number, self._number)
        self._ready.set()
        await asyncio.gather(self._hand_on(STDOUT, process.stdout), self._hand_on(STDERR, process.stderr))
        status = await process.wait()
        await self._write(EXIT, bytes([status if status >= 0 else 128 - status]))
        _send(self._writer, b"CLSE", self._number, self._number)

    async def _hand_on(self, kind: int, stream: asyncio.StreamReader | None) -> None:
        assert stream is not None
        while data := await stream.read(1 << 14):
            await self._write(kind, data)

    async def _write(self, kind: int, data: bytes) -> None:
        await self._ready.wait()  # one packet at a time, until it is said to have come
        if not self._writer.is_closing():
            self._ready.clear()
        _send(self._writer, b"WRTE", self._number, self._number, struct.pack("<BI", kind, len(data)) + data)

    async def take(self, command: bytes, data: bytes) -> None:
        if command == b"OKAY":
            self._ready.set()
        elif command == b"CLSE":
            self.hang_up()
        elif command == b"WRTE":
            self._input += data
            process = await self._started
            while len(self._input) >= 5:
                kind, length = struct.unpack_from("<BI", self._input)
                if len(self._input) < 5 + length:
                    break
                payload, self._input = self._input[5 : 5 + length], self._input[5 + length :]
                try:
                    if kind == STDIN:
                        process.stdin.write(payload)
                        await process.stdin.drain()
                    elif kind == CLOSE_STDIN:
                        process.stdin.close()
                except ConnectionError:
                    pass
            _send(self._writer, b"OKAY", self._number, self._number)

    def hang_up(self) -> None:
        self._ready.set()  # what is written from now on goes nowhere
        if self._started.done():
            self._started.result().stdin.close()


def _send(writer: asyncio.StreamWriter, command: bytes, first: int, second: int, data: bytes = b"") -> None:
    if writer.is_closing():
        return
    magic = int.from_bytes(command, "little") ^ 0xFFFFFFFF
    writer.write(HEADER.pack(command, first, second, len(data), sum(data) & 0xFFFFFFFF, magic) + data)
