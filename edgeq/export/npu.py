"""What goes to an NPU in place of an artefact: compiled for it, with what its compiler says of that."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgeq.export.onnx_names import layer_of
from edgeq.export.vela import estimate, in_words, version
from edgeq.model.model import Model
from edgeq.records.schema import OnNpu
from edgeq.registry.schema import Profile, Runtime, VelaSystem


def compiler_for(runtime: Runtime, profile: Profile | None) -> VelaSystem | None:
    """What its artefacts are compiled for; None where they run as they are, or the profile does not say."""
    return profile.vela if runtime.name == "vela" and profile is not None else None


def compiled(model: Model, labels: Mapping[str, str], path: Path, system: VelaSystem) -> OnNpu:
    """Compiles an artefact, and leaves the outcome beside it.

    Args:
        labels: by each name that the file may give an operator, its layer.

    Raises:
        MissingExtraError: the compiler is not installed.
        UnsupportedError: it cannot compile the file.
    """
    to = path.with_name(f"{path.stem}_vela{path.suffix}")
    said = estimate(path, system, to)
    by_npu, by_cpu = ({layer_of(r.name, labels) for r in said.rows if r.where == where} for where in ("NPU", "CPU"))
    on_cpu = sum(group.macs for group in model.groups if group.name in by_cpu - by_npu)
    return OnNpu(
        file=to.name,
        by=f"Vela {version()}",
        system=in_words(system),
        mac_percent=100 * (1 - on_cpu / model.macs) if model.macs else 0.0,
        operators=said.on_npu,
        left_to_cpu=said.left,
        seconds=said.seconds,
        cycles=said.cycles,
        sram_bytes=said.sram,
        dram_bytes=said.dram,
        flash_bytes=said.flash,
    )
