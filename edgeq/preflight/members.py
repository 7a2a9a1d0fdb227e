"""The CPUs that an artefact may meet in the field, by how its target is executed: those whose kernels differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from edgeq.registry.schema import Target


class Member(NamedTuple):
    """One CPU, or one way to compute.

    Attributes:
        device: as `edgeq.devices.open_device` takes it.
        about: what is special about its arithmetic.
        options: what the runtime is told there (see `edgeq.devices.Candidate`).
        runtime: the only one that has these options; every runtime if empty.
    """

    name: str
    device: str
    about: str
    options: Mapping[str, str] = {}
    runtime: str = ""


ARM = (
    Member("cortex-a76", "qemu://arm64?cpu=cortex-a76", "emulated: NEON with the dot product"),
    Member("cortex-a53", "qemu://arm64?cpu=cortex-a53", "emulated: NEON without the dot product"),
    Member("neoverse-v1", "qemu://arm64?cpu=neoverse-v1", "emulated: NEON with i8mm"),
)

X86 = (
    Member("exact", "local", "this machine, with exact sums, as VNNI has them", {"sums": "exact"}, "onnxruntime"),
    Member("local", "local", "this machine"),
    Member("haswell", "qemu://x86_64?cpu=Haswell", "emulated: AVX2 without VNNI, which saturates at 16 bits"),
)

FAMILIES: dict[str, tuple[Member, ...]] = {"local": X86, "qemu-x86_64": X86, "qemu-aarch64": ARM}
"""By a target's `execution`; the first that can be reached is what the others are compared with."""


def members_of(target: Target, runtime: str) -> list[Member]:
    """Of a target's family, those that can run files of a runtime."""
    return [one for one in FAMILIES.get(target.execution, ()) if one.runtime in ("", runtime)]
