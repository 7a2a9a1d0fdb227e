"""What the host knows about a runtime: data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from edgeq.errors import DeviceError, MissingExtraError


def stands_alone(path: Path) -> list[Path]:
    """The further files of a model file that has none."""
    return []


@dataclass(frozen=True)
class RuntimeInfo:
    """One runtime, as the host sees it (docs/runtimes.md).

    Attributes:
        name: as in target files.
        distribution: the package to install; its modules are `modules`, any one of which will do.
        extra: the extra of edgeq that brings it, or None where edgeq itself depends on it, or it is another's.
        suffixes: of the files it loads, its own format first.
        on_device: the file that calls it, which is copied to a device beside the worker (see `edgeq.on_device.worker`).
        companions: the further files that a model file needs beside it.
        precisions: of what stays in float, each with the word that the runtime's account of a device's capabilities has
            where it is served; empty for one that any device serves.
        timed_alone: whether layers are timed in files of their own, because its profile has no times.
        elsewhere: whether it is for other processors than CPUs, so that a machine is not asked for it.
        accelerator: where its account says that operators ran that did not fall back to the CPU; empty where it runs
            all of them in one place.
        beside: packages that it needs on a device and that pip does not bring with it.
        remark: what a report has to say of every result.
        arena: whether all that a model needs beside its file lies in an arena whose size is set beforehand.
    """

    name: str
    distribution: str
    modules: tuple[str, ...]
    extra: str | None
    suffixes: tuple[str, ...]
    on_device: Path
    companions: Callable[[Path], list[Path]] = stands_alone
    precisions: Mapping[str, str] = field(default_factory=lambda: {"float32": ""})
    timed_alone: bool = False
    elsewhere: bool = False
    accelerator: str = ""
    arena: bool = False
    beside: tuple[str, ...] = ()
    remark: str = ""

    def available(self) -> bool:
        """Whether it is installed here."""
        return any(find_spec(module) is not None for module in self.modules)

    def version(self) -> str | None:
        """The installed version, or None."""
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return None

    def missing(self) -> DeviceError:
        """The error that says how to install it here."""
        if self.extra is not None:
            return MissingExtraError(self.distribution, self.extra)
        return DeviceError(
            f"this needs the package {self.distribution!r}, which is not installed",
            remedy=f"pip install {self.distribution}",
        )

    def baselines(self, environment: Mapping[str, str]) -> dict[str, dict[str, str]]:
        """Float variants by name, as options of an artefact.

        Args:
            environment: what it said of the device.
        """
        has = environment.get("capabilities", "").split()
        return {name: {"precision": name} for name, word in self.precisions.items() if not word or word in has}
