"""A TFLite file as an exported program that answers as LiteRT does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeq.errors import UnsupportedError, UsageError
from edgeq.frontends.examples import Given, in_order, sized
from edgeq.frontends.loaded import Loaded
from edgeq.frontends.original import Original, compare
from edgeq.frontends.tflite import file
from edgeq.frontends.tflite.graph import grid_of, network_of
from edgeq.frontends.trace import from_module

KIND = "TFLite"

ORIGINAL = Original("LiteRT", "edgeq.frontends.tflite.answers")

_DTYPES = {
    "float32": torch.float32, "float16": torch.float32, "int64": torch.int64, "int32": torch.int32,
    "uint8": torch.uint8, "bool": torch.bool,
}  # fmt: skip


def read_tflite(path: Path, given: Given) -> Loaded:
    """The program of a file; it keeps the file's names of inputs, outputs and layers, and the order of their axes.

    Raises:
        UsageError: it is damaged, or does not say how large its inputs are.
        UnsupportedError: an operator is not computed here, or the answers are others than LiteRT's.
    """
    model = file.parse(path)
    graph = model.subgraphs[0]
    inputs, outputs = ([graph.tensors[int(place)] for place in places] for places in (graph.inputs, graph.outputs))
    if not inputs:
        raise UnsupportedError("it takes no inputs", where=path.name, remedy="export a network that takes some")
    names, written = _names(model, graph)
    network = network_of(model, path)
    free = all(_sizes(one)[:1] == [None] for one in (*inputs, *outputs))
    if not given.tensors:
        given = Given(tuple(_example(one, name, path.name) for one, name in zip(inputs, names, strict=True)), names)
    tensors = in_order(given, names, path.name)
    _check_sizes(inputs, names, tensors, path.name)
    grids = [grid_of(one) for one in graph.tensors]
    spread = [_spread(one, tensor) for one, tensor in zip(inputs, tensors, strict=True)]
    compare(ORIGINAL, path, network, tuple(spread), rounds=any(grid is not None for grid in grids))
    loaded = from_module(network, Given(tensors, ()), path.name, free=free)
    notes = []
    if any(grid_of(one) is not None for one in (*inputs, *outputs)):
        notes.append("its inputs and outputs are integers: here they are the numbers that these stand for")
    return replace(loaded, kind=KIND, input_names=names, output_names=written, notes=(*notes, *loaded.notes))


def _names(model: Any, graph: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of inputs and outputs: those of the signature, where there is one, and each another."""
    said: dict[int, str] = {}
    signatures = model.signatureDefs or []
    if len(signatures) == 1:
        named = (*(signatures[0].inputs or ()), *(signatures[0].outputs or ()))
        said = {one.tensorIndex: file.text(one.name) for one in named}
    found: list[str] = []
    for place in (*graph.inputs, *graph.outputs):
        name = said.get(int(place)) or file.text(graph.tensors[int(place)].name) or f"tensor_{int(place)}"
        free, number = name, 1
        while free in found:
            free, number = f"{name}_{number}", number + 1
        found.append(free)
    count = len(graph.inputs)
    return tuple(found[:count]), tuple(found[count:])


def _sizes(tensor: Any) -> list[int | None]:
    said = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    return [int(size) if size >= 0 else None for size in (said if said is not None else ())]


def _dtype(tensor: Any, name: str, where: str) -> torch.dtype:
    kind = file.types()[tensor.type]
    if grid_of(tensor) is not None:
        return torch.float32
    if kind not in _DTYPES:
        raise UnsupportedError(
            f"the input {name!r} is {kind}", where=where, remedy="export the model with inputs in float32 or integers"
        )
    return _DTYPES[kind]


def _example(tensor: Any, name: str, where: str) -> torch.Tensor:
    sizes = _sizes(tensor)
    if None in sizes[1:]:
        shown = "x".join(str(size or "?") for size in [sizes[0] or 1, *sizes[1:]])
        raise UsageError(
            f"the file leaves open how large the input {name!r} is ({shown})",
            where=where,
            remedy="give all its sizes, such as --input 1x224x224x3",
        )
    return sized(sizes, _dtype(tensor, name, where), name, where)


def _check_sizes(inputs: list[Any], names: tuple[str, ...], tensors: tuple[torch.Tensor, ...], where: str) -> None:
    for one, name, tensor in zip(inputs, names, tensors, strict=True):
        sizes, dtype = _sizes(one), _dtype(one, name, where)
        fits = len(sizes) == tensor.dim() and all(a in (None, b) for a, b in zip(sizes, tensor.shape, strict=True))
        if not fits or dtype != tensor.dtype:
            raise UsageError(
                f"the input {name!r} is {[size or 'free' for size in sizes]} {dtype}, not {list(tensor.shape)} "
                f"{tensor.dtype}",
                where=where,
                remedy="give the sizes that the file has; what it says itself need not be given",
            )


def _spread(tensor: Any, example: torch.Tensor) -> torch.Tensor:
    """As large as what the grid of an input reaches: noise around 1 may be less than one step of it."""
    grid = grid_of(tensor)
    return example if grid is None else torch.full_like(example, float(np.max(grid[0])) * 50)
