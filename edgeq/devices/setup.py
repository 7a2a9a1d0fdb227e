"""Builds emulated machines: an emulator, and for Arm a Debian root with Python and the runtimes' aarch64 wheels.

Everything is fetched by apt and pip from the places that this system already uses, into folders of its own. The
system's apt state is never changed and nothing is installed on the system; root is not needed.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgeq.devices.qemu import (
    DEFAULT_CPU,
    EMULATOR,
    Machine,
    device_on,
    devices_folder,
    read_machine,
    wanted_packages,
)
from edgeq.errors import DeviceError, UsageError
from edgeq.progress import Progress, Silent
from edgeq.runtimes import on_cpus

QEMU_WANTED = 10
"""Before this version the emulator shows the host's /proc/cpuinfo, in which the runtimes look for Arm features."""

QEMU_SUITE = {"bullseye": "trixie", "bookworm": "trixie"}
"""Debian releases whose own qemu-user is too old, and the one to take it from. Its binaries are static."""

ROOT_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6", "libgomp1")

_OLDEST_GLIBC = 17
_NETWORK = "the network and the system's own Debian mirror are needed"


def set_up(kind: str, progress: Progress | None = None, *, force: bool = False) -> Path:
    """Build a machine, or leave the one that is there if it has the versions that are installed here.

    It is built beside its place and renamed when it has run the runtimes, so that it is there whole or not at all.

    Args:
        kind: `arm64` or `x86_64`.
        force: build anew even so.

    Returns:
        The machine's folder.

    Raises:
        DeviceError: this is no Debian system with apt, or a step failed; says which.
        UsageError: there is no such kind.
    """
    if kind not in EMULATOR:
        raise UsageError(f"no device {kind!r} can be set up", remedy=f"one of {', '.join(EMULATOR)}")
    progress = progress or Silent()
    home = devices_folder()
    final, partial = home / kind, home / f".{kind}.partial"
    packages = wanted_packages(kind)
    with _alone(home, kind):
        there = read_machine(final)
        if there is not None and there.packages == packages and not force:
            progress.note(f"{final} is there already")
            return final
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            _build(Machine(kind, partial, packages), progress)
            # A folder cannot be renamed onto a filled one.
            shutil.rmtree(final, ignore_errors=True)
            os.rename(partial, final)
        except OSError as error:
            raise DeviceError(
                f"the machine cannot be written: {error.strerror}",
                where=str(error.filename or final),
                remedy="about 600 MB are needed; EDGEQ_HOME chooses another place",
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    progress.note(f"{final} is ready")
    return final


def _build(machine: Machine, progress: Progress) -> None:
    """Fill a machine's folder and prove that it runs."""
    release = debian_release()
    if machine.kind == "x86_64" and platform.machine() != "x86_64":
        raise DeviceError(f"it runs this machine's own Python, which is for {platform.machine()}")
    work = machine.folder / "work"
    steps = 4

    progress.note(f"fetching an emulator of version {QEMU_WANTED} or newer")
    _fetch_emulator(work / "emulator", machine.emulator, release)
    progress.step(1, steps)

    if machine.kind == "arm64":
        progress.note(f"fetching a Debian {release} root for arm64")
        apt = Apt(work / "root", release, release, "arm64")
        for package in apt.fetch_with_dependencies(ROOT_PACKAGES):
            _run(["dpkg-deb", "-x", str(package), str(machine.folder / "root")], "unpacking the root")
        progress.step(2, steps)
        wheels = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
        progress.note(f"fetching aarch64 wheels: {wheels}")
        _install_wheels(machine)
    progress.step(3, steps)

    shutil.rmtree(work)
    facts = {"kind": machine.kind, "packages": dict(machine.packages), "release": release}
    (machine.folder / "machine.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    _prove(machine, progress)
    progress.step(4, steps)


def _prove(machine: Machine, progress: Progress) -> None:
    """Start every runtime on the machine."""
    device = device_on(machine, DEFAULT_CPU[machine.kind])
    for info in on_cpus():
        if not machine.has(info):
            progress.note(f"it goes without {info.distribution}")
            continue
        found = device.environment(info.name)
        if found["machine"] != {"arm64": "aarch64"}.get(machine.kind, machine.kind):
            raise DeviceError(f"the emulator runs {found['machine']} instead of {machine.kind}")


def _fetch_emulator(work: Path, target: Path, release: str) -> None:
    apt = Apt(work, release, QEMU_SUITE.get(release, release), native_architecture())
    _run(["dpkg-deb", "-x", str(apt.fetch("qemu-user")), str(work / "unpacked")], "unpacking the emulator")
    shutil.move(work / "unpacked/usr/bin" / target.name, target)
    told = _run([str(target), "--version"], "starting the emulator")
    version = re.search(r"version (\d+)\.", told)
    if version is None or int(version[1]) < QEMU_WANTED:
        raise DeviceError(
            f"the emulator that Debian {release} leads to is too old: {told.splitlines()[0]}",
            remedy=f"use a Debian release whose qemu-user is {QEMU_WANTED} or newer",
        )


def _install_wheels(machine: Machine) -> None:
    ask = "import os, sys; print('%d.%d' % sys.version_info[:2], os.confstr('CS_GNU_LIBC_VERSION').split('.')[1])"
    python = machine.python(DEFAULT_CPU[machine.kind])
    version, glibc = _run([*python, "-c", ask], "starting Python on the emulated machine").split()
    # pip has to be told every platform tag that the machine could take: it is not running there.
    tags = [f"manylinux_2_{n}_aarch64" for n in range(int(glibc), _OLDEST_GLIBC - 1, -1)] + ["manylinux2014_aarch64"]
    _run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary=:all:",
            "--target", str(machine.folder / "site"), "--implementation", "cp", "--python-version", version,
            *(word for tag in tags for word in ("--platform", tag)),
            "numpy", *(f"{name}=={version}" for name, version in machine.packages.items()),
        ],
        "installing the runtimes' aarch64 wheels",
        remedy="pip must be there and reach its index, and have aarch64 wheels of the versions that are installed here",
    )  # fmt: skip


class Apt:
    """apt with sources, lists, cache and package state of its own, for one release and architecture."""

    def __init__(self, folder: Path, own_release: str, release: str, architecture: str) -> None:
        self.archives = folder / "cache/archives"
        for place in ("sources", "state/lists/partial", "cache/archives/partial"):
            (folder / place).mkdir(parents=True)
        (folder / "state/status").touch()
        for name, text in renamed_sources(_system_sources(), own_release, release).items():
            (folder / "sources" / name).write_text(text, encoding="utf-8")
        settings = {
            "Dir::State": folder / "state",
            "Dir::State::status": folder / "state/status",
            "Dir::Cache": folder / "cache",
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": folder / "sources",
            "APT::Architecture": architecture,
            "APT::Update::Error-Mode": "any",  # a list that could not be fetched is no mere warning here
            "APT::Sandbox::User": "",  # the account apt would download as may not enter this folder
        }
        # Hooks of the system would act on the system's own state.
        hooks = ("APT::Update::Pre-Invoke", "APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success")
        lines = [f'{key} "{value}";' for key, value in settings.items()]
        lines += [f"#clear {key};" for key in (*hooks, "APT::Architectures")]
        (folder / "apt.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.command = ["apt-get", "-q", "-y", "-c", str(folder / "apt.conf")]
        _run([*self.command, "update"], f"reading the package lists of Debian {release}", remedy=_NETWORK)

    def fetch(self, package: str) -> Path:
        """Download one package without what it depends on."""
        _run([*self.command, "download", package], f"downloading {package}", remedy=_NETWORK, folder=self.archives)
        return next(self.archives.glob(f"{package}_*.deb"))

    def fetch_with_dependencies(self, packages: Sequence[str]) -> list[Path]:
        """Download packages and everything that they depend on."""
        command = [*self.command, "install", "--download-only", "--no-install-recommends", *packages]
        _run(command, f"downloading {', '.join(packages)}", remedy=_NETWORK)
        return sorted(self.archives.glob("*.deb"))


def renamed_sources(sources: Mapping[str, str], own: str, wanted: str) -> dict[str, str]:
    """A system's apt sources, made to speak of another release.

    Entries for other suites (makers' own repositories) are left out, and so are limits to architectures.

    Args:
        sources: contents by file name, `.list` (one line an entry) or `.sources` (stanzas).
        own: the release that they name, such as `bookworm`.
        wanted: the release to put in its place.
    """
    found = {}
    for name, text in sources.items():
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        entries = lines if name.endswith(".list") else re.split(r"\n\s*\n", "\n".join(lines))
        kept = [_renamed(entry, own, wanted) for entry in entries if _names(entry, own)]
        if kept:
            found[name] = ("\n" if name.endswith(".list") else "\n\n").join(kept) + "\n"
    return found


def _names(entry: str, release: str) -> bool:
    return re.search(rf"(?<!\S){re.escape(release)}(-\S+)?(?!\S)", entry) is not None


def _renamed(entry: str, own: str, wanted: str) -> str:
    entry = re.sub(r"(?im)^Architectures:.*\n?", "", entry)
    entry = re.sub(r"\barch=[^\s\]]+ ?", "", entry).replace("[]", "")
    return re.sub(rf"(?<!\S){re.escape(own)}(?=(-\S+)?(?!\S))", wanted, entry)


def _system_sources() -> dict[str, str]:
    places = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    return {p.name: p.read_text(encoding="utf-8") for p in places if p.suffix in (".list", ".sources") and p.is_file()}


def debian_release() -> str:
    """The code name of the system's release.

    Raises:
        DeviceError: it is no Debian system, or lacks apt or dpkg.
    """
    lacking = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    try:
        lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    fields = {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}
    if lacking or fields.get("ID") != "debian" or "VERSION_CODENAME" not in fields:
        raise DeviceError(
            f"emulated machines are built with Debian's apt; this is {fields.get('PRETTY_NAME', sys.platform)}"
            + (f" without {' and '.join(lacking)}" if lacking else ""),
            remedy="set it up on a Debian system or in a Debian container, and copy its folder here",
        )
    return fields["VERSION_CODENAME"]


def native_architecture() -> str:
    return _run(["dpkg", "--print-architecture"], "asking for the architecture").strip()


def _run(command: Sequence[str], doing: str, *, remedy: str = "", folder: Path | None = None) -> str:
    """Run a step of the set-up and return its output.

    Raises:
        DeviceError: it failed, with the last thing that it said.
    """
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise DeviceError(f"{doing} failed: {error}", remedy=remedy) from error
    if done.returncode != 0:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise DeviceError(f"{doing} failed: {said[-1] if said else f'status {done.returncode}'}", remedy=remedy)
    return done.stdout


@contextmanager
def _alone(home: Path, kind: str) -> Iterator[None]:
    """Only one set-up at a time. The lock goes with the process, however it ends."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = open(home / f".{kind}.lock", "w")  # noqa: SIM115
    except OSError as error:
        raise DeviceError(
            f"devices cannot be kept here: {error.strerror}", where=str(home), remedy="set EDGEQ_HOME to another place"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DeviceError("another set-up of this device is running", where=str(home)) from None
        yield
