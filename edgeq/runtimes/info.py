"""What the host knows about a runtime: data, and functions that read what the runtime said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeq.errors import DeviceError, MissingExtraError
from edgeq.records.schema import Placement
from edgeq.registry.schema import RuntimeName

Row = Mapping[str, Any]
"""One operator as the worker's `placement` task reports it; the fields differ by runtime."""


@dataclass(frozen=True)
class RuntimeInfo:
    """One runtime, as the host sees it. The code that calls it is in the worker.

    Attributes:
        name: as in target files and worker jobs.
        distribution: the package to install; its modules are `modules`, any one of which will do.
        extra: the extra of edgeq that brings it, or None where edgeq itself depends on it.
        suffixes: of the files it loads, its own format first.
        companions: the further files that a model file needs beside it.
        baselines: float variants by name, as worker options, given what `environment` said of the device.
        placements: operators as the report shows them, from the worker's rows.
    """

    name: RuntimeName
    distribution: str
    modules: tuple[str, ...]
    extra: str | None
    suffixes: tuple[str, ...]
    companions: Callable[[Path], list[Path]]
    baselines: Callable[[Mapping[str, str]], dict[str, dict[str, str]]]
    placements: Callable[[Sequence[Row]], list[Placement]]

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
