"""Integers that a checkpoint has already, kept where a runtime can hold them: nothing is rounded a second time.

The float file names matrices otherwise than the checkpoint, and joins some of its layers into one: a matrix is found
again by what its rows are.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.hugging_face.folder import CONFIG, HfFolder
from edgeq.language.checkpoints.formats import layout_of
from edgeq.language.checkpoints.layer import Grid
from edgeq.language.checkpoints.unpack import Packed, dequantized, digest
from edgeq.language.decoder import Decoder, Weight, read_decoder
from edgeq.language.float_onnx import refuse_another, write_float
from edgeq.language.plan import DecoderPlan, choices
from edgeq.methods.matrices import joined
from edgeq.numerics import QParams, Scheme
from edgeq.numerics.weights import QuantizedWeight
from edgeq.registry.schema import Runtime


@dataclass(frozen=True)
class Kept:
    """A matrix of the float file that is some layers of a packed checkpoint, one under the other."""

    layers: tuple[Packed, ...]

    def fits(self, scheme: Scheme) -> bool:
        """Whether a scheme holds these integers and scales as they are."""
        return all(_fits(layer, scheme) for layer in self.layers)

    def weight(self, scheme: Scheme) -> QuantizedWeight:
        """The integers in a scheme that fits."""
        return joined([_fitted(layer.grid(), scheme) for layer in self.layers if layer.grid is not None])


def _fits(layer: Packed, scheme: Scheme) -> bool:
    facts = layer.facts
    if facts is None or scheme.group is None or scheme.levels is not None or scheme.narrow:
        return False
    return (
        (facts.group % scheme.group == 0 or facts.group >= layer.columns)
        and scheme.width >= facts.bits
        and (facts.middle and scheme.signed if scheme.symmetry == "symmetric" else not scheme.signed)
        and (facts.half or not scheme.half_scales)
    )


def _fitted(grid: Grid, scheme: Scheme) -> QuantizedWeight:
    assert scheme.group is not None
    columns = grid.integers.shape[1]
    groups = -(-columns // scheme.group)
    of = np.arange(groups) * scheme.group // grid.group
    scale, zero = grid.scale[:, of], grid.zero_point[:, of]
    integers: NDArray[Any] = grid.integers.astype(np.int16)
    if scheme.symmetry == "symmetric":
        middle = 1 << (grid.bits - 1)
        integers, zero = integers - middle, zero - middle
    filled = np.repeat(zero, scheme.group, axis=1).astype(np.int16)  # behind the last column: what stands for zero
    filled[:, :columns] = integers
    kind = np.int8 if scheme.signed else np.uint8
    q = QParams(scheme, scale.reshape(-1).astype(np.float32), zero.reshape(-1).astype(np.int32), 0)
    return QuantizedWeight(filled.astype(kind), q)


def has_integers(folder: HfFolder) -> bool:
    """Whether a folder's weights are integers that could be kept, as far as its config tells.

    Raises:
        UnsupportedError: they are packed in a way that is not read.
    """
    layout = layout_of(folder.config, str(folder.path))
    return layout is not None and layout.grids


def float_decoder(folder: HfFolder, scratch: Path) -> Decoder:
    """The float ONNX file of a folder, with what its checkpoint has of integers.

    Raises:
        UsageError: a tensor is damaged.
        UnsupportedError: the weights are packed in a way that is not read, or the model cannot be handled.
    """
    unpacked, layers = dequantized(folder, scratch)
    out = scratch / "float"
    out.mkdir()
    decoder = read_decoder(write_float(unpacked, out))
    decoder = replace(decoder, unread=refuse_another(unpacked, decoder))
    if not layers:
        return decoder
    shutil.copyfile(unpacked.path / CONFIG, out / CONFIG)  # a build's own folder has no packed weights to tell of
    shutil.rmtree(unpacked.path)
    return replace(decoder, kept=_found(decoder, layers))


def _found(decoder: Decoder, layers: Sequence[Packed]) -> dict[str, Kept]:
    """By initializer, the layers that it is made of."""
    by_first: dict[tuple[int, str], list[Packed]] = {}
    for layer in layers:
        by_first.setdefault((layer.columns, layer.first), []).append(layer)
    found = {}
    for weight in decoder.weights:
        mine = _layers(decoder, weight, by_first)
        if mine is not None:
            found[weight.name] = Kept(tuple(mine))
    return found


def _layers(decoder: Decoder, weight: Weight, by_first: Mapping[tuple[int, str], list[Packed]]) -> list[Packed] | None:
    matrix = decoder.matrix(weight)
    found: list[Packed] = []
    at = 0
    while at < weight.rows:
        near = by_first.get((weight.columns, digest(matrix[at : at + 1])), [])
        layer = next((one for one in near if digest(matrix[at : at + one.rows]) == one.whole), None)
        if layer is None:
            return None
        found.append(layer)
        at += layer.rows
    return found


def keeping(plan: DecoderPlan, decoder: Decoder, runtime: Runtime) -> DecoderPlan:
    """A plan in which matrices whose integers the runtime can hold are stored as that."""

    def choice(weight: Weight) -> str:
        held = decoder.kept.get(weight.name)
        fitting = {} if held is None else {
            name: one.scheme for name, one in choices(weight, runtime).items() if held.fits(one.scheme)
        }  # fmt: skip
        # no more bits and scales than there are; where there are several, what the runtime prefers
        least = min(fitting, key=lambda name: (fitting[name].width, -(fitting[name].group or 0)), default=None)
        return least or plan.matrices[weight.name].choice

    matrices = {
        weight.name: plan.matrices[weight.name].model_copy(update={"choice": choice(weight)})
        for weight in decoder.weights
    }
    return plan.model_copy(update={"matrices": matrices})


def rounded_again(decoder: Decoder, plan: DecoderPlan, schemes: Mapping[str, Scheme], format: str) -> list[str]:
    """A warning where integers of the checkpoint are not kept by a plan that means to."""
    again = [
        name for name, held in decoder.kept.items() if name in schemes and not held.fits(schemes[name])
    ] if plan.method == "kept" else []  # fmt: skip
    if not again:
        return []
    told = ", ".join(sorted({plan.matrices[name].choice for name in again}))
    return [f"{format}: {len(again)} of {len(decoder.kept)} packed matrices are rounded a second time, to {told}: the "
            f"runtime has nothing that holds them as they are"]  # fmt: skip
