"""A packed checkpoint as a folder of float weights, written layer by layer."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import UsageError
from edgeq.hugging_face.folder import CONFIG, HfFolder
from edgeq.language.checkpoints.formats import KEYS, layout_of
from edgeq.language.checkpoints.layer import Grid, Layout
from edgeq.language.checkpoints.tensors import Tensors
from edgeq.language.folder import open_folder

if TYPE_CHECKING:
    import torch

SHARD = 1 << 30
"""Bytes of a file of weights, about; and of the weights that are in memory together."""

_BESIDE = (".json", ".jinja", ".txt", ".model")
_INDEX = "model.safetensors.index.json"


class Facts(NamedTuple):
    """What decides whether a runtime holds integers as they are.

    Attributes:
        group, bits: see `Grid`.
        middle: whether all zero points are the middle of the integers.
        half: whether float16 holds all scales.
    """

    group: int
    bits: int
    middle: bool
    half: bool


class Packed(NamedTuple):
    """A layer of the checkpoint, found again by what its weights are.

    Attributes:
        name: of the layer.
        rows, columns: of its weight.
        first: SHA-256 of the first row, float32.
        whole: of all rows.
        facts: about its integers; None where neighbours share no scales.
        grid: reads its integers again; likewise.
    """

    name: str
    rows: int
    columns: int
    first: str
    whole: str
    facts: Facts | None
    grid: Callable[[], Grid] | None


def digest(values: NDArray[np.float32]) -> str:
    """SHA-256 of values."""
    return hashlib.sha256(np.ascontiguousarray(values, np.float32).tobytes()).hexdigest()


def dequantized(folder: HfFolder, scratch: Path) -> tuple[HfFolder, tuple[Packed, ...]]:
    """A folder of float weights in the place of a packed one.

    Args:
        folder: is returned as it is where its weights are float.
        scratch: where a folder `unpacked` is made.

    Returns:
        The folder, and the layers that were packed.

    Raises:
        UsageError: a tensor is missing or damaged, or none is packed.
        UnsupportedError: the weights are packed in a way that is not read.
    """
    layout = layout_of(folder.config, str(folder.path))
    if layout is None:
        return folder, ()
    tensors = Tensors([file for file in folder.weights if file.suffix == ".safetensors"])  # not the index
    layers = [name.removesuffix(layout.mark) for name in tensors.names if name.endswith(layout.mark)]
    if not layers:
        remedy = "copy config.json and the weights from the same model"
        cause = "config.json tells of packed weights, and there are none"
        raise UsageError(cause, where=str(folder.path), remedy=remedy)
    out = scratch / "unpacked"
    out.mkdir()
    for file in folder.path.iterdir():
        if file.is_file() and file.suffix in _BESIDE and file.name not in (CONFIG, _INDEX):
            shutil.copyfile(file, out / file.name)
    config = {key: value for key, value in folder.config.items() if key not in (*KEYS, "torch_dtype")}
    (out / CONFIG).write_text(json.dumps(config | {"dtype": "float32"}, indent=2), encoding="utf-8")
    found: list[Packed] = []
    _write(out, _floats(tensors, layers, layout, found))
    return open_folder(out), tuple(found)


def _floats(
    tensors: Tensors, layers: list[str], layout: Layout, found: list[Packed]
) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of the float model; what is told of packed ones is added to `found`."""
    import torch

    parts = {f"{layer}{part}" for layer in layers for part in layout.parts}
    for name in tensors.names:
        if name not in parts:
            yield name, tensors.tensor(name)
    for layer in layers:
        real, grid = layout.read(tensors, layer)
        facts = None if grid is None else _facts(grid)
        again = None if grid is None else partial(_grid, tensors, layout, layer)
        rows, columns = real.shape
        found.append(Packed(layer, rows, columns, digest(real[:1]), digest(real), facts, again))
        yield f"{layer}.weight", torch.from_numpy(real)


def _facts(grid: Grid) -> Facts:
    middle = bool((grid.zero_point == 1 << (grid.bits - 1)).all())
    with np.errstate(over="ignore"):
        half = bool((grid.scale.astype(np.float16).astype(np.float32) == grid.scale).all())
    return Facts(grid.group, grid.bits, middle, half)


def _grid(tensors: Tensors, layout: Layout, layer: str) -> Grid:
    grid = layout.read(tensors, layer).grid
    assert grid is not None  # it was there before
    return grid


def _write(out: Path, values: Iterator[tuple[str, Any]]) -> None:
    from safetensors.torch import save_file

    index: dict[str, str] = {}
    shard: dict[str, Any] = {}
    files = size = 0

    def flush() -> None:
        nonlocal files, size
        files += 1
        file = f"model-{files:05d}.safetensors"
        save_file(shard, out / file, {"format": "pt"})
        index.update(dict.fromkeys(shard, file))
        shard.clear()
        size = 0

    for name, tensor in values:
        shard[name] = tensor.contiguous()
        size += tensor.numel() * tensor.element_size()
        if size >= SHARD:
            flush()
    if shard:
        flush()
    (out / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}), encoding="utf-8")
