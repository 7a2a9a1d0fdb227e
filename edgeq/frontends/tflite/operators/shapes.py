"""Operators that move values, reduce them, and those that make some of nothing but a size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from edgeq.frontends.tflite.operators.layers import activated
from edgeq.frontends.tflite.operators.node import Known, Node, Operator, Table, refused, whole

Tensor = torch.Tensor

LARGEST = 1 << 28
"""Values that may be made of a size alone."""


def _reshape(node: Node, x: Tensor, shape: Known | None = None) -> Tensor:
    given = shape if shape is not None and shape.size else getattr(node.options, "newShape", None)
    if given is None:
        return x.reshape(())
    return x.reshape(whole(given))


def _squeeze(node: Node, x: Tensor) -> Tensor:
    gone = node.options.squeezeDims
    chosen = whole(gone) if gone is not None and len(gone) else [n for n, size in enumerate(x.shape) if size == 1]
    for number in sorted((one % x.dim() for one in chosen), reverse=True):
        x = x.squeeze(number)
    return x


def _concat(node: Node, *parts: Tensor) -> Tensor:
    return activated(node, torch.cat(parts, node.axis(node.options.axis)))


def _split(node: Node, along: Known, x: Tensor) -> tuple[Tensor, ...]:
    number = whole(along)[0]
    return torch.split(x, x.shape[number] // node.outputs, number)


def _split_v(node: Node, x: Tensor, sizes: Known, along: Known) -> tuple[Tensor, ...]:
    parts, number = whole(sizes), whole(along)[0]
    rest = x.shape[number] - sum(part for part in parts if part >= 0)
    return torch.split(x, [part if part >= 0 else rest for part in parts], number)


def _slice(node: Node, x: Tensor, begin: Known, size: Known) -> Tensor:
    for number, (first, count) in enumerate(zip(whole(begin), whole(size), strict=True)):
        if first or (count != -1 and count is not x.shape[number]):
            x = x.narrow(number, first, x.shape[number] - first if count == -1 else count)
    return x


def strided(options: Any, rank: int, begin: Known, end: Known, step: Known) -> tuple[Any, ...]:
    """What StridedSlice takes, as Python writes it."""
    if options.ellipsisMask or options.newAxisMask:
        raise refused("it slices with an ellipsis or new axes")
    places: list[Any] = []
    for number, (first, last, every) in enumerate(zip(whole(begin), whole(end), whole(step), strict=True)):
        if options.shrinkAxisMask >> number & 1:
            places.append(first)
            continue
        first = None if options.beginMask >> number & 1 else first
        last = None if options.endMask >> number & 1 else last
        places.append(slice(first, last, every))
    return (*places, *(slice(None) for _ in range(rank - len(places))))


def _strided_slice(node: Node, x: Tensor, begin: Known, end: Known, step: Known) -> Tensor:
    places = list(strided(node.options, x.dim(), begin, end, step))
    for number, place in enumerate(places):
        if isinstance(place, slice) and place.step is not None and place.step < 0:
            chosen = list(range(int(x.shape[number])))[place]
            x, places[number] = x.index_select(number, torch.tensor(chosen, dtype=torch.int64)), slice(None)
    return x[tuple(places)]


def _gather(node: Node, x: Tensor, index: Any) -> Tensor:
    along = node.options.axis % max(x.dim(), 1)
    if node.options.batchDims:
        raise refused("it gathers with axes of a batch")
    if isinstance(index, np.ndarray):
        if index.ndim == 0:
            return x.select(along, whole(index)[0])
        index = torch.tensor(whole(index), dtype=torch.int64).reshape(index.shape)
    if along == 0 and x.dim() == 2 and x.is_floating_point():
        return F.embedding(index.long(), x)
    found = x.index_select(along, index.reshape(-1).long())
    return found.reshape([*x.shape[:along], *index.shape, *x.shape[along + 1 :]])


def _embedding(node: Node, index: Tensor, table: Tensor) -> Tensor:
    return F.embedding(index.long(), table)


def _gather_nd(node: Node, x: Tensor, index: Tensor) -> Tensor:
    return x[tuple(index.long().movedim(-1, 0).unbind(0))]


def _pad(node: Node, x: Tensor, ends: Known, value: Known | None = None) -> Tensor:
    filed = np.asarray(ends).reshape(-1, 2).tolist()
    if node.op == "MIRROR_PAD":
        return _mirrored(x, filed, node.options.mode)
    held = [filed[[node.axis(n) for n in range(len(filed))].index(number)] for number in range(len(filed))]
    pairs = [end for pair in reversed(held) for end in pair]
    while pairs and pairs[-2:] == [0, 0]:
        pairs = pairs[:-2]
    if not pairs:
        return x
    return F.pad(x, pairs, value=float(value.reshape(-1)[0]) if value is not None else 0.0)


def _mirrored(x: Tensor, ends: list[list[int]], symmetric: int) -> Tensor:
    for number, (before, after) in enumerate(ends):
        size = int(x.shape[number])
        low = range(before - 1 + (not symmetric), -1 + (not symmetric), -1)
        high = range(size - 1 - (not symmetric), size - 1 - (not symmetric) - after, -1)
        if before or after:
            x = x.index_select(number, torch.tensor([*low, *range(size), *high]))
    return x


def _pack(node: Node, *parts: Tensor) -> Tensor:
    return torch.stack(parts, node.options.axis)


def _broadcast(node: Node, x: Tensor, shape: Known) -> Tensor:
    refuse_huge(whole(shape))
    return x.expand(whole(shape))


def _fill(node: Node, shape: Known, value: Tensor) -> Tensor:
    refuse_huge(whole(shape))
    return value.expand(whole(shape))


def _tile(node: Node, x: Tensor, counts: Known) -> Tensor:
    refuse_huge([n * m for n, m in zip(x.shape, whole(counts), strict=True)])
    return x.repeat(whole(counts))


def _range(node: Node, start: Known, end: Known, step: Known) -> Tensor:
    a, b, every = (one.reshape(-1)[0] for one in (start, end, step))
    if not all(isinstance(one, torch.SymInt) for one in (a, b)):
        refuse_huge([abs(math.ceil((b - a) / every)) if every else LARGEST + 1])
    return torch.arange(a.item(), b.item(), every.item())


def _space_to_batch(node: Node, x: Tensor, block: Known, ends: Known) -> Tensor:
    sizes, pairs = whole(block), np.asarray(ends).reshape(-1, 2).tolist()
    x = F.pad(x, [0] * 2 * (x.dim() - 1 - len(sizes)) + [end for pair in reversed(pairs) for end in pair])
    n, *spatial = x.shape[: 1 + len(sizes)]
    rest = list(x.shape[1 + len(sizes) :])
    split = [part for size, b in zip(spatial, sizes, strict=True) for part in (size // b, b)]
    count = len(sizes)
    order = [2 * i + 2 for i in range(count)] + [0] + [2 * i + 1 for i in range(count)]
    y = x.reshape([n, *split, *rest]).permute([*order, *range(2 * count + 1, 2 * count + 1 + len(rest))])
    return y.reshape([n * math.prod(sizes), *(s // b for s, b in zip(spatial, sizes, strict=True)), *rest])


def _batch_to_space(node: Node, x: Tensor, block: Known, crops: Known) -> Tensor:
    sizes, pairs = whole(block), np.asarray(crops).reshape(-1, 2).tolist()
    count = len(sizes)
    n, *spatial = x.shape[: 1 + count]
    rest = list(x.shape[1 + count :])
    y = x.reshape([*sizes, n // math.prod(sizes), *spatial, *rest])
    order = [count] + [part for i in range(count) for part in (count + 1 + i, i)]
    y = y.permute([*order, *range(2 * count + 1, 2 * count + 1 + len(rest))])
    y = y.reshape([n // math.prod(sizes), *(s * b for s, b in zip(spatial, sizes, strict=True)), *rest])
    for number, (before, after) in enumerate(pairs):
        y = y.narrow(1 + number, before, y.shape[1 + number] - before - after)
    return y


def _reduce(node: Node, x: Tensor, given: Known) -> Tensor:
    filed = sorted({one % x.dim() for one in whole(given)}) if x.dim() else []
    if not filed:
        return x
    keep = bool(node.options.keepDims)
    if node.turned and not keep and filed != [1, 2]:  # what is left would be in another order
        x, node = x.permute(0, 2, 3, 1), node._replace(turned=False)
    over = sorted(node.axis(one) for one in filed)
    if node.op == "REDUCE_PROD":
        for number in reversed(over):
            x = x.prod(number, keepdim=keep)
        return x
    function: Any = {
        "MEAN": torch.mean, "SUM": torch.sum, "REDUCE_MAX": torch.amax, "REDUCE_MIN": torch.amin,
        "REDUCE_ANY": torch.any, "REDUCE_ALL": torch.all,
    }[node.op]  # fmt: skip
    found: Tensor = function(x, over, keepdim=keep)
    return found


def _place(node: Node, x: Tensor, along: Known) -> Tensor:
    function = torch.argmax if node.op == "ARG_MAX" else torch.argmin
    found: Tensor = function(x, whole(along)[0])
    return found.to({2: torch.int32}.get(node.options.outputType, torch.int64))


def _top(node: Node, x: Tensor, count: Known) -> tuple[Tensor, Tensor]:
    values, places = torch.topk(x, whole(count)[0])
    return values, places.to(torch.int32)


def _running_sum(node: Node, x: Tensor, along: Known) -> Tensor:
    number, o = whole(along)[0], node.options
    x = x.flip(number) if o.reverse else x
    y = x.cumsum(number) - x if o.exclusive else x.cumsum(number)
    return y.flip(number) if o.reverse else y


def _one_hot(node: Node, index: Tensor, depth: Known, on: Tensor, off: Tensor) -> Tensor:
    hot = index.unsqueeze(-1) == torch.arange(whole(depth)[0])
    found = torch.where(hot, on, off)
    return found.movedim(-1, node.options.axis)


def _reverse(node: Node, x: Tensor, along: Known) -> Tensor:
    return x.flip(whole(along))


def refuse_huge(shape: list[Any]) -> None:
    """Refuses to make much of little.

    Raises:
        UnsupportedError: it would be.
    """
    if math.prod(n for n in shape if isinstance(n, int)) > LARGEST:
        raise refused(f"it makes a value of the shape {shape} out of little")


SHAPES: Table = {
    "RESHAPE": Operator(_reshape, frozenset({1})), "SQUEEZE": Operator(_squeeze),
    "EXPAND_DIMS": Operator(lambda node, x, along: x.unsqueeze(whole(along)[0]), frozenset({1})),
    "TRANSPOSE": Operator(lambda node, x, order: x.permute(whole(order)), frozenset({1})),
    "CONCATENATION": Operator(_concat, turned="axes"), "SPLIT": Operator(_split, frozenset({0})),
    "SPLIT_V": Operator(_split_v, frozenset({1, 2})), "SLICE": Operator(_slice, frozenset({1, 2})),
    "STRIDED_SLICE": Operator(_strided_slice, frozenset({1, 2, 3})), "GATHER": Operator(_gather),
    "GATHER_ND": Operator(_gather_nd), "EMBEDDING_LOOKUP": Operator(_embedding),
    "PAD": Operator(_pad, frozenset({1}), "axes"), "PADV2": Operator(_pad, frozenset({1, 2}), "axes"),
    "MIRROR_PAD": Operator(_pad, frozenset({1})), "PACK": Operator(_pack),
    "UNPACK": Operator(lambda node, x: torch.unbind(x, node.options.axis)),
    "BROADCAST_TO": Operator(_broadcast, frozenset({1})), "FILL": Operator(_fill, frozenset({0})),
    "TILE": Operator(_tile, frozenset({1})), "RANGE": Operator(_range, frozenset({0, 1, 2})),
    "SPACE_TO_BATCH_ND": Operator(_space_to_batch, frozenset({1, 2})),
    "BATCH_TO_SPACE_ND": Operator(_batch_to_space, frozenset({1, 2})),
    **{name: Operator(_reduce, frozenset({1}), "axes") for name in
       ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "REDUCE_ANY", "REDUCE_ALL")},
    "ARG_MAX": Operator(_place, frozenset({1})), "ARG_MIN": Operator(_place, frozenset({1})),
    "TOPK_V2": Operator(_top, frozenset({1})), "CUMSUM": Operator(_running_sum, frozenset({1})),
    "ONE_HOT": Operator(_one_hot, frozenset({1})), "REVERSE_V2": Operator(_reverse, frozenset({1})),
}  # fmt: skip
