"""The link through a shell, over a real OpenSSH server where there is one, with the faults that links have."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
import trained_model

from edgeq.api.deploy import deploy
from edgeq.devices import open_device, over_shell, qemu, ssh
from edgeq.devices.link import Exit
from edgeq.errors import DeviceError, UsageError
from edgeq.limits import Limits
from edgeq.planning.planner import plan

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

asyncssh = pytest.importorskip("asyncssh")
if SSHD is None:
    pytest.skip("there is no sshd: apt-get install openssh-server", allow_module_level=True)


class Proxy:
    """Between host and device: hands on so many bytes to the device, then cuts the line, or falls silent."""

    def __init__(self, port: int, most: float, silent: bool = False) -> None:
        self._to, self._left, self._silent = port, most, silent
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._open = [self._listening]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                here, _ = self._listening.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self._to))
            self._open += [here, there]
            for source, target, counted in ((here, there, True), (there, here, False)):
                threading.Thread(target=self._hand_on, args=(source, target, counted), daemon=True).start()

    def _hand_on(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        while True:
            try:
                data = source.recv(1 << 14)
                if counted:
                    self._left -= len(data)
                if self._left < 0 and self._silent:
                    continue
                if not data or self._left < 0:
                    break
                target.sendall(data)
            except OSError:
                break
        for one in (source, target):
            _end(one)

    def cut(self) -> None:
        for one in self._open:
            _end(one)


def _end(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


class Board:
    """A device on this machine behind a real sshd, with a home, a known host and a key of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs = folder, folder / "jobs"
        self.jobs.mkdir()
        ssh = folder / "home/.ssh"
        ssh.mkdir(parents=True, mode=0o700)
        for key in (folder / "host", ssh / "id_ed25519"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        config = folder / "config"
        config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host'}\nStrictModes no\nPidFile none\n"
            f"AuthorizedKeysFile {ssh / 'id_ed25519.pub'}\nUsePAM no\nSetEnv PATH={os.environ['PATH']}\n"
        )
        self.log = folder / "log"
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        self.server = subprocess.Popen([str(SSHD), "-D", "-f", str(config), "-E", str(self.log)])
        self.know(self.port)
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                break
            except OSError:
                time.sleep(0.05)

    def know(self, port: int) -> None:
        key = (self.folder / "host.pub").read_text().split()
        with (self.folder / "home/.ssh/known_hosts").open("a") as file:
            file.write(f"[127.0.0.1]:{port} {key[0]} {key[1]}\n")

    def name(self, port: int | None = None, **options: str) -> str:
        told = {"python": sys.executable, "folder": str(self.jobs), **options}
        return f"ssh://127.0.0.1:{port or self.port}?" + "&".join(f"{key}={value}" for key, value in told.items())

    def through(self, proxy: Proxy) -> str:
        self.know(proxy.port)
        return self.name(proxy.port)

    def left(self) -> list[str]:
        """What is on the device still, once it had the time to notice."""
        for _ in range(100):
            if not any(self.jobs.iterdir()):
                break
            time.sleep(0.05)
        return [path.name for path in self.jobs.iterdir()]


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    board = Board(tmp_path)
    monkeypatch.setenv("EDGEQ_HOME", str(qemu.devices_folder().parent))
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    yield board
    board.server.kill()
    board.server.wait()


def run(name: str, folder: Path, script: str, on_line: Callable[[str], None] = lambda line: None) -> Exit:
    return open_device(name).link(folder, ["sh", "-c", script], on_line)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    (folder / "artifact0").mkdir(parents=True)
    (folder / "artifact0/a model.bin").write_bytes(os.urandom(3_000_000))
    (folder / "job.json").write_text("{}")
    return folder


def test_takes_files_there_and_new_ones_back(board: Board, job: Path) -> None:
    said: list[str] = []
    script = "cat 'artifact0/a model.bin' > copy; mkdir sub; echo new > sub/file; echo hello; echo oh >&2; exit 3"
    assert run(board.name(), job, script, said.append) == Exit(3, "oh\n")
    assert (job / "copy").read_bytes() == (job / "artifact0/a model.bin").read_bytes()
    assert (job / "sub/file").read_text() == "new\n"
    assert said[-1] == "hello\n" and '{"progress"' in said[0]
    assert not board.left()


def test_a_signal_is_told(board: Board, job: Path) -> None:
    assert run(board.name(), job, "kill -SEGV $$").status == -signal.SIGSEGV
    assert not board.left()


def test_the_worker_answers_as_here(board: Board) -> None:
    name = board.name()
    there, here = open_device(name).environment("onnxruntime"), open_device("local").environment("onnxruntime")
    assert there == here
    assert not open_device(name).emulated
    assert not board.left()


def test_unknown_host_keys_are_refused(board: Board) -> None:
    (board.folder / "home/.ssh/known_hosts").write_text("")
    with pytest.raises(DeviceError, match="host key is not known") as caught:
        open_device(board.name())
    assert "fingerprint" in caught.value.remedy


def test_changed_host_keys_are_refused(board: Board) -> None:
    known = board.folder / "home/.ssh/known_hosts"
    own = (board.folder / "home/.ssh/id_ed25519.pub").read_text().split()
    known.write_text(f"[127.0.0.1]:{board.port} {own[0]} {own[1]}\n")
    with pytest.raises(DeviceError, match="host key is not known"):
        open_device(board.name())


def test_a_key_that_is_not_let_in(board: Board) -> None:
    (board.folder / "home/.ssh/id_ed25519").unlink()
    with pytest.raises(DeviceError, match="does not let you in"):
        open_device(board.name())


def test_nobody_there(board: Board) -> None:
    board.server.kill()
    board.server.wait()
    with pytest.raises(DeviceError, match="cannot be reached"):
        open_device(board.name())


def test_no_python_there(board: Board) -> None:
    with pytest.raises(DeviceError, match="does not run there") as caught:
        open_device(board.name(python="/no/python"))
    assert "?python=" in caught.value.remedy


@pytest.mark.parametrize("wrong", ["", "host:a", "user:secret@host", "host/path", "host?pyton=x", "host?memory=much"])
def test_what_is_no_address(wrong: str) -> None:
    with pytest.raises(UsageError):
        open_device(f"ssh://{wrong}")


@pytest.mark.parametrize("after", [100_000, 1_500_000, 2_900_000])
def test_cut_in_the_transfer(board: Board, job: Path, after: int) -> None:
    proxy = Proxy(board.port, after)
    name = board.through(proxy)
    with pytest.raises(DeviceError) as caught:
        run(name, job, "echo never")
    assert "again" in caught.value.remedy
    assert not board.left()
    assert sorted(path.name for path in job.iterdir()) == ["artifact0", "job.json"]
    assert run(board.name(), job, "echo now > now").status == 0


def test_cut_in_the_run(board: Board, job: Path) -> None:
    proxy = Proxy(board.port, float("inf"))

    def cut(line: str) -> None:
        if line == "running\n":
            proxy.cut()

    with pytest.raises(DeviceError, match="broke"):
        run(board.through(proxy), job, "echo running; echo half > half; exec sleep 1000", cut)
    assert not board.left()
    assert not (job / "half").exists()
    assert not subprocess.run(["pgrep", "-f", "sleep 1000"], capture_output=True).stdout


def test_a_line_that_falls_silent(board: Board, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(over_shell, "SILENCE", 2)
    monkeypatch.setattr(over_shell, "BEAT", 0.5)
    monkeypatch.setitem(ssh.ALIVE, "keepalive_interval", 1)
    name = board.through(Proxy(board.port, 1_000_000, silent=True))
    with pytest.raises(DeviceError, match="broke"):
        run(name, job, "echo never")
    assert not board.left()


def test_what_a_reboot_has_left_is_found(board: Board, job: Path) -> None:
    (board.jobs / "edgeq-job").mkdir()
    (board.jobs / "edgeq-job/large").write_bytes(bytes(100))
    (board.jobs / "edgeq-job/.holder").write_text(f"{os.getpid()} of-another-boot\n")
    assert run(board.name(), job, "ls > there").status == 0
    assert (job / "there").read_text().split() == ["artifact0", "job.json", "there"]
    assert not board.left()


def test_two_at_once_take_turns(board: Board, job: Path, tmp_path: Path) -> None:
    other, ends = tmp_path / "other", []
    other.mkdir()
    script = "[ -e ../busy ] && exit 7; echo > ../busy; sleep 1; rm ../busy"
    name = board.name()
    threads = [threading.Thread(target=lambda at=at: ends.append(run(name, at, script).status)) for at in (job, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == [0, 0]
    assert not board.left()


def test_a_device_that_stays_busy(board: Board, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, started = board.name(), threading.Event()
    first = threading.Thread(target=run, args=(name, job, "echo on; sleep 6", lambda line: started.set()))
    first.start()
    started.wait(20)
    time.sleep(0.5)
    monkeypatch.setenv("EDGEQ_PATIENCE", "0.03")
    with pytest.raises(DeviceError, match="busy"):
        run(name, job, "true")
    monkeypatch.delenv("EDGEQ_PATIENCE")
    first.join()
    assert not board.left()


def test_a_command_that_hangs_is_ended(board: Board, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_PATIENCE", "0.03")
    ended = run(board.name(), job, "sleep 512 & sleep 513")  # with all that it has started
    assert ended.silent == pytest.approx(1.8) and ended.status == -9
    assert not board.left()
    assert not subprocess.run(["pgrep", "-f", "sleep 51[23]"], capture_output=True).stdout


@pytest.mark.parametrize(("tool", "told", "hang"), [("tar", "-cf", 514), ("tar", "-xf", 515), ("sha256sum", "*", 516)])
def test_a_tool_that_hangs_there_ends_in_time(
    shimmed: None, board: Board, job: Path, monkeypatch: pytest.MonkeyPatch, tool: str, told: str, hang: int
) -> None:
    _shim(board, tool, f'case "$1" in {told}) sleep {hang};; *) exec REAL "$@";; esac')
    monkeypatch.setenv("EDGEQ_PATIENCE", "0.03")
    begin = time.monotonic()
    with pytest.raises(DeviceError, match="said nothing for"):
        run(board.name(), job, "echo right > answer")
    assert time.monotonic() - begin < 20
    subprocess.run(["pkill", "-f", f"sleep {hang}"], check=False)
    assert not (job / "answer").exists() and not board.left()


def test_no_room_there(board: Board, job: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")
    try:
        with pytest.raises(DeviceError, match=r"where [0-9]+ kB are free") as caught:
            run(board.name(folder=str(small)), job, "true")
        assert "folder=" in caught.value.remedy
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_folder_that_is_not_there(board: Board, job: Path) -> None:
    with pytest.raises(DeviceError, match="No such file"):
        run(board.name(folder="/no/such"), job, "true")


def test_no_memory_there(board: Board, job: Path) -> None:
    ended = run(board.name(memory="200MB"), job, f"exec {sys.executable} -c 'bytearray(1 << 30)'")
    assert ended.status == 1 and "MemoryError" in ended.stderr
    assert not board.left()


def _shim(board: Board, name: str, script: str) -> None:
    """A program there that stands before the real one."""
    shims = board.folder / "shims"
    shims.mkdir(exist_ok=True)
    (shims / name).write_text(f"#!/bin/sh\n{script.replace('REAL', str(shutil.which(name)))}\n")
    (shims / name).chmod(0o755)


@pytest.fixture
def shimmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}:{os.environ['PATH']}")


FLIP = "dd if=/dev/zero of='artifact0/a model.bin' bs=100 count=1 seek=10 conv=notrunc 2>/dev/null"


def test_files_that_arrive_changed_are_sent_again(shimmed: None, board: Board, job: Path) -> None:
    once = board.folder / "once"
    _shim(
        board,
        "tar",
        f'REAL "$@"; s=$?; case "$1" in -xf) [ -e {once} ] || (cd "$4"; {FLIP}); touch {once};; esac; exit $s',
    )
    assert run(board.name(), job, "cat artifact0/*.bin > copy").status == 0
    assert once.exists()
    assert (job / "copy").read_bytes() == (job / "artifact0/a model.bin").read_bytes()


def test_files_that_always_arrive_changed(shimmed: None, board: Board, job: Path) -> None:
    _shim(board, "tar", f'REAL "$@"; s=$?; case "$1" in -xf) (cd "$4"; {FLIP});; esac; exit $s')
    with pytest.raises(DeviceError, match="arrived changed"):
        run(board.name(), job, "touch never")
    assert not (job / "never").exists()
    assert not board.left()


def test_answers_that_come_back_changed(shimmed: None, board: Board, job: Path) -> None:
    _shim(board, "tar", 'case "$1" in -cf) REAL "$@" | sed s/right/wrong/;; *) exec REAL "$@";; esac')
    with pytest.raises(DeviceError, match="came back changed"):
        run(board.name(), job, "echo right > answer")
    assert not (job / "answer").exists()
    assert not board.left()


def test_an_archive_that_leads_elsewhere(shimmed: None, board: Board, job: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil.tar"
    subprocess.run(["tar", "-cPf", str(evil), "--transform", "s,.*,../escaped,", "/etc/hostname"], check=True)
    _shim(board, "tar", f'case "$1" in -cf) cat {evil};; *) exec REAL "$@";; esac')
    with pytest.raises(DeviceError):
        run(board.name(), job, "echo right > answer")
    assert not (job.parent / "escaped").exists()


@pytest.mark.parametrize("key", ["./../escaped", "./a/../../escaped", "/tmp/escaped"])
def test_names_that_lead_elsewhere_are_refused(shimmed: None, board: Board, job: Path, key: str) -> None:
    """A device that makes up what it holds: the archive itself is as it should be."""
    outside = job.parent / "escaped"
    outside.write_text("of the host")
    _shim(board, "sha256sum", f'REAL "$@"; echo "{hashlib.sha256(b"of the host").hexdigest()}  {key}"')
    with pytest.raises(DeviceError, match="outside of its folder"):
        run(board.name(), job, "echo right > answer")
    assert outside.read_text() == "of the host" and not (job / "answer").exists()


def test_plan_and_deploy_on_an_emulated_arm_machine_are_the_same_over_ssh(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = qemu.read_machine(qemu.devices_folder() / "arm64")
    if machine is None:
        pytest.skip("the emulated machine is not set up: edgeq device setup arm64")
    files = trained_model.make(tmp_path)
    python = quote(shlex.join(machine.python("cortex-a53")))
    known = {"calibration": files / "calib.npz", "evaluation": files / "eval.npz"}
    devices = {"over": board.name(python=python), "here": "qemu://arm64?cpu=cortex-a53"}
    found = {}
    for key, device in devices.items():
        monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / f"cache of {key}"))
        given = {"target": "arm-neon", "format": "tflite", "device": device, **known}
        planned = plan(files / "model.pt2", limits=Limits.parse(max_drop="2%"), **given)  # type: ignore[arg-type]
        assert planned.planned is not None and planned.planned.proof is not None and planned.planned.held
        (build,) = deploy(files / "model.pt2", **given, out=tmp_path / key).builds  # type: ignore[arg-type]
        assert build.emulated and build.speed is None and build.accuracy is not None
        proof = planned.planned.proof
        found[key] = (
            [(layer.name, layer.choice) for layer in planned.layers],
            (proof.score, proof.size),
            (tmp_path / key / "model.tflite").read_bytes(),
            build.accuracy,
        )
    assert found["over"] == found["here"]
    assert not board.left()
