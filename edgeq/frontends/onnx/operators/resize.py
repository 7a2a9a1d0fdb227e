"""Images made larger or smaller."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from edgeq.frontends.onnx.operators.node import Known, Node, Operator, Table, axes, listed, refused, whole

Tensor = torch.Tensor

_SMOOTH = {("linear", 3): "linear", ("linear", 4): "bilinear", ("linear", 5): "trilinear", ("cubic", 4): "bicubic"}

_ROUND: dict[str, Callable[[float], int]] = {
    "round_prefer_floor": lambda place: math.ceil(place - 0.5), "floor": math.floor, "ceil": math.ceil,
    "round_prefer_ceil": lambda place: math.floor(place + 0.5),
}  # fmt: skip


def _resize(node: Node, x: Tensor, _: Any = None, scales: Known | None = None, sizes: Known | None = None) -> Tensor:
    numbers = axes(node, None, x.dim()) or list(range(x.dim()))
    wanted, factors = list(x.shape), [1.0] * x.dim()
    if sizes is not None and sizes.size:
        if node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise refused("it keeps the aspect ratio")
        for number, size in zip(numbers, whole(sizes), strict=True):
            if size is not x.shape[number]:
                wanted[number], factors[number] = size, _ratio(size, x.shape[number])
    elif scales is not None and scales.size:
        for number, factor in zip(numbers, listed(scales), strict=True):
            if factor != 1:
                wanted[number], factors[number] = math.floor(x.shape[number] * factor), float(factor)
    if x.dim() < 3 or factors[0] != 1 or factors[1] != 1:
        if all(factor == 1 for factor in factors):
            return x
        raise refused("it resizes the batch or the channels")
    if any(not isinstance(size, int) for size in (*wanted[2:], *x.shape[2:])):
        raise refused("it resizes to a size that is free")
    return _nearest(node, x, wanted, factors) if node.get("mode", "nearest") == "nearest" else _smooth(
        node, x, wanted, factors)  # fmt: skip


def _ratio(size: Any, before: Any) -> float:
    return 1.0 if size == before else size / before


def _nearest(node: Node, x: Tensor, wanted: list[int], factors: list[float]) -> Tensor:
    """By whatever of PyTorch's takes the same pixels; otherwise by their places."""
    places = [_places(node, n, w, f) for n, w, f in zip(x.shape[2:], wanted[2:], factors[2:], strict=True)]
    sizes = list(zip(x.shape[2:], wanted[2:], strict=True))
    if places == [[min(i * n // w, n - 1) for i in range(w)] for n, w in sizes]:
        return F.interpolate(x, wanted[2:], mode="nearest")
    for number, chosen in enumerate(places):
        if chosen != list(range(x.shape[2 + number])):
            x = x.index_select(2 + number, torch.tensor(chosen))
    return x


def _places(node: Node, before: int, after: int, factor: float) -> list[int]:
    """The pixels along one axis that are taken."""
    old = node.op == "Upsample" or node.opset < 11
    round_ = _ROUND["floor" if old else node.get("nearest_mode", "round_prefer_floor")]
    return [min(max(round_(_place(node, i, before, after, factor)), 0), before - 1) for i in range(after)]


def _place(node: Node, i: int, before: int, after: int, factor: float) -> float:
    match _mode(node):
        case "asymmetric":
            return i / factor
        case "half_pixel":
            return (i + 0.5) / factor - 0.5
        case "pytorch_half_pixel":
            return (i + 0.5) / factor - 0.5 if after > 1 else 0.0
        case "align_corners":
            return i * (before - 1) / (after - 1) if after > 1 else 0.0
        case "half_pixel_symmetric":
            return before / 2 * (1 - after / (before * factor)) + (i + 0.5) / factor - 0.5
    raise refused(f"it resizes by coordinates that are {_mode(node)}")


def _mode(node: Node) -> str:
    old = node.op == "Upsample" or node.opset < 11
    return "asymmetric" if old else str(node.get("coordinate_transformation_mode", "half_pixel"))


def _smooth(node: Node, x: Tensor, wanted: list[int], factors: list[float]) -> Tensor:
    kind, how = node.get("mode"), _mode(node)
    kind = "linear" if kind == "bilinear" else kind
    name = _SMOOTH.get((kind, x.dim()))
    if name is None:
        raise refused(f"it resizes by {kind} a value of {x.dim()} axes")
    if kind == "cubic" and (node.get("cubic_coeff_a", -0.75) != -0.75 or node.get("exclude_outside", 0)):
        raise refused("it resizes by another cubic than PyTorch's")
    antialias = bool(node.get("antialias", 0))
    exact = all(abs(n * f - w) < 1e-6 for n, w, f in zip(x.shape[2:], wanted[2:], factors[2:], strict=True))
    if how == "align_corners":
        return F.interpolate(x, wanted[2:], mode=name, align_corners=True, antialias=antialias)
    ones = how == "half_pixel" and any(w == 1 for w in wanted[2:])
    if how in ("half_pixel", "pytorch_half_pixel") and not (ones and how == "pytorch_half_pixel"):
        if exact:
            return F.interpolate(x, wanted[2:], mode=name, align_corners=False, antialias=antialias)
        return F.interpolate(x, scale_factor=factors[2:], mode=name, align_corners=False, antialias=antialias,
                             recompute_scale_factor=False)  # fmt: skip
    if kind != "linear":
        raise refused(f"it resizes by coordinates that are {how}")
    for number, (before, after, factor) in enumerate(zip(x.shape[2:], wanted[2:], factors[2:], strict=True)):
        if before != after:
            x = _between(x, 2 + number, [_place(node, i, before, after, factor) for i in range(after)])
    return x


def _between(x: Tensor, along: int, places: list[float]) -> Tensor:
    """Values between neighbours along one axis."""
    size = x.shape[along]
    held = [min(max(place, 0.0), size - 1.0) for place in places]
    low = [int(place) for place in held]
    share = torch.tensor([place - below for place, below in zip(held, low, strict=True)])
    share = share.reshape([-1 if number == along else 1 for number in range(x.dim())])
    above = [min(below + 1, size - 1) for below in low]
    a, b = (x.index_select(along, torch.tensor(one)) for one in (low, above))
    return a + (b - a) * share


def _upsample(node: Node, x: Tensor, scales: Known | None = None) -> Tensor:
    return _resize(node, x, None, scales if scales is not None else torch.tensor(node.get("scales")).numpy())


def _old_resize(node: Node, x: Tensor, *given: Known | None) -> Tensor:
    return _resize(node, x, None, given[0]) if node.opset < 11 else _resize(node, x, *given)


def _sample(node: Node, x: Tensor, grid: Tensor) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(node.get("mode", "linear"), node.get("mode", "linear"))
    return F.grid_sample(x, grid, mode, node.get("padding_mode", "zeros"), bool(node.get("align_corners", 0)))


RESIZES: Table = {
    "Resize": Operator(_old_resize, frozenset({1, 2, 3})), "Upsample": Operator(_upsample, frozenset({1})),
    "GridSample": Operator(_sample),
}  # fmt: skip
