"""A PyTorch module made small when it is loaded: its linear layers, and tables if asked for, become packed integers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from edgeq.errors import UsageError
from edgeq.methods.hqq import half_quadratic
from edgeq.methods.matrices import as_wanted, joined
from edgeq.methods.method import Wanted
from edgeq.methods.nearest import quantize_weight
from edgeq.methods.scales import rounded
from edgeq.numerics import DType, Scheme
from edgeq.numerics.weights import QuantizedWeight
from edgeq.packed.layers import PackedEmbedding, PackedLinear
from edgeq.packed.weight import PackedWeight

METHODS: dict[str, Callable[[Wanted], QuantizedWeight]] = {"nearest": quantize_weight, "hqq": half_quadratic}
"""Ways to round that need no data."""

_TYPES: dict[str, tuple[DType, DType]] = {
    "int8": ("int8", "uint8"),
    "int4": ("int4", "uint4"),
    "int2": ("int2", "uint2"),
}
"""Of symmetric and of asymmetric integers."""

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_AT_ONCE = 1 << 24
"""Numbers of a matrix that are rounded together."""


def quantize(
    module: nn.Module,
    weights: str = "int4",
    group: int | None = 64,
    *,
    symmetric: bool = True,
    method: str = "nearest",
    skip: Iterable[str] = (),
    embeddings: str | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Packs the weights of a module, of whatever kind. Activations stay in float.

    Layers of exactly the types `torch.nn.Linear` and `torch.nn.Embedding` are packed. Those stay in float that have
    hooks, that no float weight is a parameter of, whose table has a `max_norm`, or whose weight is tied to something
    that stays. Weights that are tied are packed once, as tables are where one of them is a table, and stay tied.

    Args:
        module: its weights are float16, bfloat16, float32 or float64, on any device.
        weights: what linear layers become: `int8`, `int4` or `int2`.
        group: how many numbers of a row share a scale; None for whole rows. Rows need no whole number of groups.
        symmetric: whether all groups have the same zero point.
        method: how weights are rounded: `nearest` or `hqq`.
        skip: names of layers that stay, as patterns such as `lm_head` or `*.gate`.
        embeddings: what tables become; they stay if None.
        inplace: change the module itself, layer by layer, so that memory shrinks on the way; else it stays as it is.

    Returns:
        The module with packed layers; `edgeq.packed_report` tells what that gained and cost. Gradients flow through
        packed layers to their inputs and biases.

    Raises:
        UsageError: an argument says what there is not, nothing is left to pack, or a weight is not finite.
    """
    kinds = _kinds(weights, embeddings, group, symmetric)
    if method not in METHODS:
        raise UsageError(f"there is no method {method!r}", where="method", remedy=f"one of {', '.join(METHODS)}")
    if inplace and type(module) in kinds:
        raise UsageError("a layer cannot take its own place", where="inplace", remedy="leave inplace away")
    tied = list(_tied(module, kinds, _skipped(module, skip)))
    if not tied:
        remedy = "look at the types of its layers, and at skip"
        raise UsageError("there is no layer that could be packed", where=type(module).__name__, remedy=remedy)
    for one in tied:
        if not torch.isfinite(one.weight).all():
            raise UsageError("a weight is not finite", where=one.name, remedy="look at the weights' file")
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in module.modules():
        for name, child in parent._modules.items():
            places.setdefault(id(child), []).append((parent, name))
    memo: dict[int, Any] = {}
    while tied:
        one = tied.pop(0)
        packed = _packed(one, METHODS[method])
        for layer in one.layers:
            new = _layer(layer, packed, keep=inplace)
            if inplace:
                for parent, name in places[id(layer)]:
                    parent._modules[name] = new
            else:
                memo[id(layer)] = new
        del one, layer
    # what is packed already stands in for its layer, so that no float weight is copied only to be dropped
    return module if inplace else copy.deepcopy(module, memo)


class _Tied(NamedTuple):
    """Layers that have the same weight."""

    name: str
    layers: tuple[nn.Module, ...]
    weight: Tensor
    scheme: Scheme


def _kinds(weights: str, embeddings: str | None, group: int | None, symmetric: bool) -> dict[type[nn.Module], Scheme]:
    """By type of layer, what its weights become."""
    if group is not None and (not isinstance(group, int) or isinstance(group, bool) or group < 1):
        raise UsageError(f"groups of {group!r} numbers cannot be", where="group", remedy="such as 32, 64, 128 or None")
    found: dict[type[nn.Module], Scheme] = {}
    for kind, option, name in ((nn.Linear, "weights", weights), (nn.Embedding, "embeddings", embeddings)):
        if name is None:
            continue
        if name not in _TYPES:
            raise UsageError(f"there is no {name!r}", where=option, remedy=f"one of {', '.join(_TYPES)}")
        dtype = _TYPES[name][0 if symmetric else 1]
        symmetry = "symmetric" if symmetric else "asymmetric"
        found[kind] = Scheme(dtype, symmetry, "channel" if group is None else "group", group=group)  # type: ignore[arg-type]
    return found


def _skipped(module: nn.Module, skip: Iterable[str]) -> set[int]:
    patterns = [skip] if isinstance(skip, str) else list(skip)
    named = list(module.named_modules(remove_duplicate=False))
    found: set[int] = set()
    for pattern in patterns:
        matching = {id(one) for name, one in named if fnmatchcase(name, pattern)}
        if not matching:
            raise UsageError(f"no layer is called {pattern!r}", where="skip", remedy="see module.named_modules()")
        found |= matching
    return found


def _tied(module: nn.Module, kinds: dict[type[nn.Module], Scheme], skipped: set[int]) -> Iterator[_Tied]:
    """Layers to pack, together where their weights are tied, in the module's order."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, layer in module.named_modules():
        for parameter in layer._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((name, layer))
    for mine in owners.values():
        name, layer = mine[0]
        if all(type(one) in kinds and id(one) not in skipped and _plain(one) for _, one in mine):
            weight = layer._parameters["weight"]
            if weight is None or owners[id(weight)] is not mine:
                continue  # these have a bias in common, if anything
            table = nn.Embedding if any(type(one) is nn.Embedding for _, one in mine) else nn.Linear
            yield _Tied(name, tuple(one for _, one in mine), weight.detach(), kinds[table])


def _plain(layer: nn.Module) -> bool:
    """Whether a layer does nothing but what its type says."""
    weight = layer._parameters.get("weight")
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return (
        weight is not None
        and weight.dtype in _FLOATS
        and weight.device.type != "meta"
        and weight.numel() > 0
        and not any(hooks)
        and getattr(layer, "max_norm", None) is None
    )


def _packed(one: _Tied, method: Callable[[Wanted], QuantizedWeight]) -> PackedWeight:
    rows, columns = one.weight.shape
    group = min(one.scheme.group or columns, columns)
    half = one.weight.dtype == torch.float16
    scheme = replace(one.scheme, granularity="group", group=group, half_scales=half)
    step = max(1, _AT_ONCE // columns)
    parts = []
    noise = signal = 0.0
    for at in range(0, rows, step):
        matrix = one.weight[at : at + step].to("cpu", torch.float32).numpy()
        wanted = as_wanted(one.name, matrix, scheme)
        part = method(wanted)
        if one.weight.dtype == torch.bfloat16:  # integers of the scale that is kept, not of the one that it is near
            near = torch.from_numpy(part.q.scale).to(torch.bfloat16).float().numpy()
            part = rounded(wanted, replace(part.q, scale=near))
        parts.append(part)
        noise += float(np.square(part.real - wanted.weight, dtype=np.float64).sum())
        signal += float(np.square(wanted.weight, dtype=np.float64).sum())
    return PackedWeight(joined(parts), columns, one.weight, math.sqrt(noise / signal) if signal else 0.0)


def _layer(layer: nn.Module, packed: PackedWeight, *, keep: bool) -> nn.Module:
    new: nn.Module
    if isinstance(layer, nn.Embedding):
        new = PackedEmbedding(packed, layer.padding_idx)
    else:
        bias = layer._parameters.get("bias")
        new = PackedLinear(packed, bias if keep or bias is None else copy.deepcopy(bias))
    return new.train(layer.training)
