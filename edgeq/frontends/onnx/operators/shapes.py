"""Operators that move values, and those that make some of nothing but a size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from edgeq.frontends.onnx.operators.arithmetic import tensor_of
from edgeq.frontends.onnx.operators.node import Known, Node, Operator, Table, axes, axis, listed, refused, whole

Tensor = torch.Tensor

LARGEST = 1 << 28
"""Values that may be made of a size alone."""


def _reshape(node: Node, given: Any, shape: Known) -> Tensor:
    x, wanted = tensor_of(given), whole(shape)
    if not node.get("allowzero", 0):
        wanted = [x.shape[number] if isinstance(n, int) and n == 0 else n for number, n in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(node: Node, x: Tensor) -> Tensor:
    first = node.get("axis", 1)
    first = first if first == x.dim() else axis(first, x.dim())
    if first == 0:
        return x.reshape(1, -1)
    if first == 1:
        return x.flatten(1) if x.dim() > 1 else x.reshape(-1, 1)
    return x.flatten(first).flatten(0, first - 1) if first < x.dim() else x.reshape(-1, 1)


def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.get("perm") or list(reversed(range(x.dim()))))


def _squeeze(node: Node, x: Tensor, given: Known | None = None) -> Tensor:
    gone = axes(node, given, x.dim())
    if gone is None:
        gone = [number for number, n in enumerate(x.shape) if isinstance(n, int) and n == 1]
    for number in sorted(gone, reverse=True):
        x = x.squeeze(number)
    return x


def _unsqueeze(node: Node, one: Any, given: Known | None = None) -> Tensor:
    x = tensor_of(one)
    new = whole(given) if given is not None else node.get("axes")
    for number in sorted(axis(each, x.dim() + len(new)) for each in new):
        x = x.unsqueeze(number)
    return x


def _concat(node: Node, *parts: Any) -> Tensor:
    tensors = [tensor_of(one) for one in parts]
    return torch.cat(tensors, node.get("axis")) if len(tensors) > 1 else tensors[0]


def _split(node: Node, x: Tensor, sizes: Known | None = None) -> tuple[Tensor, ...]:
    along = axis(node.get("axis", 0), x.dim())
    parts = whole(sizes) if sizes is not None else node.get("split")
    if parts is None:
        count = node.get("num_outputs", node.outputs)
        return torch.split(x, -(-x.shape[along] // count), along)
    return torch.split(x, parts, along)


def _slice(node: Node, x: Tensor, *given: Known | None) -> Tensor:
    starts, ends, along, steps = (*given, *(None,) * 4)[:4]
    first = whole(starts) if starts is not None else node.get("starts")
    last = whole(ends) if ends is not None else node.get("ends")
    numbers = axes(node, along, x.dim()) or list(range(len(first)))
    every = whole(steps) if steps is not None else [1] * len(first)
    for number, a, b, step in zip(numbers, first, last, every, strict=True):
        if step > 0:
            places: list[Any] = [slice(None)] * x.dim()
            places[number] = slice(a, None if isinstance(b, int) and b >= 2**31 - 1 else b, step)
            x = x[tuple(places)]
        else:
            size = int(x.shape[number])
            chosen = list(range(size))[slice(a, b if b >= -size else None, step)]
            x = x.index_select(number, torch.tensor(chosen, dtype=torch.int64))
    return x


def _gather(node: Node, one: Any, index: Any) -> Tensor:
    x = tensor_of(one)
    along = axis(node.get("axis", 0), x.dim())
    if isinstance(index, np.ndarray):
        numbers = [number + x.shape[along] if number < 0 else number for number in whole(index)]
        if index.ndim == 0:
            return x.select(along, numbers[0])
        index = torch.tensor(numbers, dtype=torch.int64).reshape(index.shape)
    if not index.is_floating_point() and along == 0 and x.dim() == 2 and x.is_floating_point():
        return F.embedding(index.long(), x)
    if index.dim() == 1:
        return x.index_select(along, index.long())
    found = x.index_select(along, index.reshape(-1).long())
    return found.reshape([*x.shape[:along], *index.shape, *x.shape[along + 1 :]])


def _gather_elements(node: Node, x: Tensor, index: Tensor) -> Tensor:
    along = axis(node.get("axis", 0), x.dim())
    return torch.gather(x, along, torch.where(index < 0, index + x.shape[along], index).long())


def _gather_nd(node: Node, x: Tensor, index: Tensor) -> Tensor:
    if node.get("batch_dims", 0):
        raise refused("it gathers with axes of a batch")
    places = index.long().movedim(-1, 0)
    return x[tuple(places.unbind(0))]


def _scatter_nd(node: Node, x: Any, index: Any, updates: Any) -> Tensor:
    if node.get("reduction", "none") not in ("none", "add"):
        raise refused(f"it scatters with {node.get('reduction')}")
    places = tuple(tensor_of(index).long().movedim(-1, 0).unbind(0))
    return tensor_of(x).index_put(places, tensor_of(updates), node.get("reduction", "none") == "add")


def _scatter_elements(node: Node, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    along, how = axis(node.get("axis", 0), x.dim()), node.get("reduction", "none")
    if how == "none":
        return torch.scatter(x, along, index.long(), updates)
    names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return torch.scatter_reduce(x, along, index.long(), updates, names[how])


def _expand(node: Node, one: Any, shape: Known) -> Tensor:
    x, wanted = tensor_of(one), whole(shape)
    _refuse_huge(wanted)
    more = len(wanted) - x.dim()
    if more < 0:
        wanted = [1] * -more + wanted
    own = [1] * max(more, 0) + list(x.shape)
    return x.expand([have if isinstance(n, int) and n == 1 else n for n, have in zip(wanted, own, strict=True)])


def _tile(node: Node, one: Any, repeats: Known) -> Tensor:
    x = tensor_of(one)
    _refuse_huge([n * m for n, m in zip(x.shape, whole(repeats), strict=True)])
    return x.repeat(whole(repeats))


def _pad(node: Node, x: Tensor, pads: Known | None = None, value: Known | None = None, along: Any = None) -> Tensor:
    ends = whole(pads) if pads is not None else node.get("pads")
    fill = listed(value)[0] if value is not None else node.get("value", 0.0)
    numbers = axes(node, along, x.dim()) or list(range(x.dim()))
    before, after = [0] * x.dim(), [0] * x.dim()
    for place, number in enumerate(numbers):
        before[number], after[number] = ends[place], ends[place + len(numbers)]
    if any(not isinstance(one, int) for one in (*before, *after)):
        raise refused("how much it pads depends on a size that is free")
    for number, (b, a) in enumerate(zip(before, after, strict=True)):
        if b < 0 or a < 0:  # some is cut off
            first, last = max(-b, 0), max(-a, 0)
            x = x.narrow(number, first, x.shape[number] - first - last)
    before, after = [max(b, 0) for b in before], [max(a, 0) for a in after]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[
        node.get("mode", "constant")
    ]
    padded = [number for number in range(x.dim()) if before[number] or after[number]]
    if not padded:
        return x
    _refuse_huge([n + b + a for n, b, a in zip(x.shape, before, after, strict=True)])
    if mode == "constant":
        first = min(padded)
        pairs = [end for number in reversed(range(first, x.dim())) for end in (before[number], after[number])]
        return F.pad(x, pairs, value=fill)
    if x.dim() < 2 or min(padded) < max(1, x.dim() - 3) or x.dim() - min(padded) > 3:
        raise refused(f"it pads the axes {padded} of a value of {x.dim()} by {node.get('mode')}")
    count = min(3, x.dim() - min(padded))
    count = max(count, x.dim() - 2) if x.dim() > 2 else count
    pairs = [end for number in reversed(range(x.dim() - count, x.dim())) for end in (before[number], after[number])]
    return F.pad(x, pairs, mode=mode)


def _shape(node: Node, x: Tensor) -> Known:
    sizes = list(x.shape)[node.get("start", 0) : node.get("end", None)]
    return objects(sizes)


def objects(values: list[Any]) -> Known:
    """Sizes as an array: of symbols where they are free."""
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def _filled(node: Node, shape: Known) -> Tensor:
    value = node.get("value")
    _refuse_huge(whole(shape))
    filling = tensor_of(np.asarray(value).reshape(())) if value is not None else torch.tensor(0.0)
    return torch.full(whole(shape), filling.item(), dtype=filling.dtype)


def _range(node: Node, start: Known, end: Known, step: Known) -> Tensor:
    a, b, every = (listed(one)[0] for one in (start, end, step))
    if all(isinstance(one, int | float) for one in (a, b, every)):
        _refuse_huge([math.ceil((b - a) / every) if every else LARGEST + 1])
    return torch.arange(a, b, every, dtype=torch.float32 if isinstance(a, float) else torch.int64)


def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    size = node.get("blocksize")
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, size)
    parts = x.reshape(n, size, size, c // (size * size), h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // (size * size), h * size, w * size)


def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    size = node.get("blocksize")
    parts = x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * size * size, h // size, w // size)


def _triangle(node: Node, x: Tensor, offset: Known | None = None) -> Tensor:
    function = torch.triu if node.get("upper", 1) else torch.tril
    return function(x, whole(offset)[0] if offset is not None else 0)


def _one_hot(node: Node, index: Tensor, depth: Known, values: Any) -> Tensor:
    count = whole(depth)[0]
    off, on = tensor_of(values).unbind(0)
    index = tensor_of(index).long()
    hot = torch.where(index < 0, index + count, index).unsqueeze(-1) == torch.arange(count)
    return torch.where(hot, on, off).movedim(-1, node.get("axis", -1))


def _eye_like(node: Node, x: Tensor) -> Tensor:
    rows, columns = x.shape
    on: Tensor = torch.arange(rows).unsqueeze(1) + node.get("k", 0) == torch.arange(columns)
    return on.to(x.dtype)


def _reverse_sequence(node: Node, x: Tensor, lengths: Known) -> Tensor:
    time, batch = node.get("time_axis", 0), node.get("batch_axis", 1)
    rows = []
    for number, length in enumerate(whole(lengths)):
        one = x.select(batch, number)
        along = time if time < batch else time - 1
        rows.append(
            torch.cat(
                [one.narrow(along, 0, length).flip(along), one.narrow(along, length, one.shape[along] - length)], along
            )
        )
    return torch.stack(rows, batch)


def _size(node: Node, x: Tensor) -> Known:
    found = np.empty((), dtype=object)
    found[()] = math.prod(x.shape)
    return found


def _refuse_huge(shape: list[Any]) -> None:
    fixed = math.prod(n for n in shape if isinstance(n, int))
    if fixed > LARGEST or any(isinstance(n, int) and n < -1 for n in shape):
        raise refused(f"it makes a value of the shape {shape} out of little")


SHAPES: Table = {
    "Reshape": Operator(_reshape, frozenset({1})), "Flatten": Operator(_flatten), "Transpose": Operator(_transpose),
    "Squeeze": Operator(_squeeze, frozenset({1})), "Unsqueeze": Operator(_unsqueeze, frozenset({1})),
    "Concat": Operator(_concat), "Split": Operator(_split, frozenset({1})),
    "Slice": Operator(_slice, frozenset({1, 2, 3, 4})), "Gather": Operator(_gather, indices=frozenset({1})),
    "GatherElements": Operator(_gather_elements), "GatherND": Operator(_gather_nd),
    "ScatterND": Operator(_scatter_nd), "ScatterElements": Operator(_scatter_elements),
    "Scatter": Operator(_scatter_elements), "Expand": Operator(_expand, frozenset({1})),
    "Tile": Operator(_tile, frozenset({1})), "Pad": Operator(_pad, frozenset({1, 2, 3})), "Shape": Operator(_shape),
    "Size": Operator(_size), "ConstantOfShape": Operator(_filled, frozenset({0})),
    "Range": Operator(_range, frozenset({0, 1, 2})), "DepthToSpace": Operator(_depth_to_space),
    "SpaceToDepth": Operator(_space_to_depth), "Trilu": Operator(_triangle, frozenset({1})),
    "OneHot": Operator(_one_hot, frozenset({1})), "EyeLike": Operator(_eye_like),
    "ReverseSequence": Operator(_reverse_sequence, frozenset({1})),
}  # fmt: skip
