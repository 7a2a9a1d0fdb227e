"""Weights without their network: found inside a checkpoint, and put into the network that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from edgeq.data.function import call
from edgeq.errors import UsageError
from edgeq.model.check import check_weights

# Where training scripts commonly put the weights inside a checkpoint.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights", "params", "module")
# What wrappers around a network prepend to every name: DataParallel, torch.compile.
_PREFIXES = ("module.", "_orig_mod.")


def is_weights(content: Any) -> bool:
    """Whether it is a dict of tensors by name."""
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items())
    )


def unwrap(content: Any) -> Any:
    """The weights or the module in a checkpoint that holds more than them; anything else as it is."""
    if not isinstance(content, Mapping) or is_weights(content):
        return content
    inside = (content.get(key) for key in _WRAPPERS)
    return next((value for value in inside if isinstance(value, torch.nn.Module) or is_weights(value)), content)


def in_network(
    weights: Mapping[str, torch.Tensor], arch: str | None, where: str
) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """The network that `arch` makes, with these weights in it, and notes on what was assumed.

    Raises:
        UsageError: no `arch`, it makes no network, or not the one of these weights.
        UnsupportedError: the weights are not in float32.
    """
    if arch is None:
        raise UsageError(
            "the file holds weights without the network that they belong to",
            remedy="name the function that builds it, --arch package.module:factory, or give a .pt2",
            where=where,
        )
    check_weights(weights, where)
    module = _build(arch)
    own = module.state_dict()
    notes: tuple[str, ...] = ()
    while prefix := _common_prefix(weights, own):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
        notes += (f"the prefix {prefix!r} was removed from all {len(weights)} names of weights",)
    # Checkpoints from before PyTorch 0.4.1 lack these counters, which inference does not use.
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in weights if name not in own]
    if missing or unexpected:
        parts = [f"missing: {_few(missing)}"] * bool(missing) + [f"unexpected: {_few(unexpected)}"] * bool(unexpected)
        raise UsageError(
            f"the weights do not belong to {arch} ({'; '.join(parts)})",
            remedy="name the function that builds exactly this network",
            where=where,
        )
    for name, tensor in weights.items():
        if own[name].shape != tensor.shape:
            raise UsageError(
                f"{name!r} is {list(tensor.shape)} in the file and {list(own[name].shape)} in {arch}",
                remedy="name the function that builds exactly this network, with the same number of classes",
                where=where,
            )
    module.load_state_dict(dict(weights), strict=False)
    return module, notes


def _build(arch: str) -> torch.nn.Module:
    module = call(arch, "--arch")
    if not isinstance(module, torch.nn.Module):
        raise UsageError(
            f"{arch} returned a {type(module).__name__}, not a torch.nn.Module",
            remedy="name a function without arguments that returns the network",
            where="--arch",
        )
    return module


def _common_prefix(weights: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> str | None:
    """What a wrapper prepended to every name. Wrappers nest, in either order, so there may be another behind it."""
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in weights) and not any(name.startswith(prefix) for name in own):
            return prefix
    return None


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
