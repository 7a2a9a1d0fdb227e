"""Weights without their network: found inside a checkpoint, and put into the network that they belong to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from edgeq.data.function import call
from edgeq.errors import UsageError
from edgeq.frontends.check import check_weights
from edgeq.frontends.precision import converted, in_float32

_DEPTH = 3
"""How many dictionaries deep a checkpoint is searched."""

_WRAPPERS = frozenset({"module", "_orig_mod"})
"""What wrappers around a part of a network put into the middle of names: DataParallel, torch.compile."""

Weights = Mapping[str, torch.Tensor]


def is_weights(content: Any) -> bool:
    """Whether it is a dict of tensors by name."""
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items())
    )


def unwrap(content: Any, where: str) -> tuple[torch.nn.Module | dict[str, Weights], tuple[str, ...]]:
    """What in a file may be the network: its one module, or sets of weights by the keys that lead to them; and notes.

    Of weights and their moving average, which trainers evaluate with, the average is taken, and said.

    Raises:
        UsageError: it holds neither, or several modules.
    """
    found = dict(_inside(content, ""))
    modules = {key: value for key, value in found.items() if isinstance(value, torch.nn.Module)}
    found, notes = _averaged(modules or found)
    if not found:
        raise UsageError(
            f"it holds a {type(content).__name__} and neither a module nor a dict of weights",
            remedy="save model.state_dict() with torch.save, or the program with torch.export.save",
            where=where,
        )
    if modules and len(found) > 1:
        raise UsageError(
            f"it holds several modules ({', '.join(found)})",
            remedy="save the one that is meant by itself: torch.save(module, path)",
            where=where,
        )
    return next(iter(found.values())) if modules else found, notes


def in_network(found: Mapping[str, Weights], arch: str | None, where: str) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """The network that `arch` makes, with the weights that belong to it, and notes on what was assumed.

    Args:
        found: sets of weights by the keys that led to them.

    Raises:
        UsageError: no `arch`, it makes no network, or not the one of these weights, or of several of them.
        UnsupportedError: the weights are quantized or complex.
    """
    if arch is None:
        raise UsageError(
            "the file holds weights without the network that they belong to",
            remedy="name the function that builds it, --arch package.module:factory, or give a .pt2",
            where=where,
        )
    module = _build(arch)
    own = module.state_dict()
    fitting = {key: fitted for key, weights in found.items() if (fitted := _fitted(weights, own)) is not None}
    shaped = {key: fitted for key, fitted in fitting.items() if _same_shapes(fitted[0], own)}
    if len(shaped) > 1:
        raise UsageError(
            f"several sets of weights belong to {arch} ({', '.join(shaped)})",
            remedy="save the one that is meant by itself: torch.save(weights, path)",
            where=where,
        )
    # where none belongs, what comes closest is what the message is about
    weights, notes = next(iter((shaped or fitting).values()), (max(found.values(), key=len), ()))
    check_weights(weights, where)
    _check_fit(weights, own, arch, where)
    module.load_state_dict({name: in_float32(tensor) for name, tensor in weights.items()}, strict=False)
    return module, (*notes, *converted(weights.values()))


def _inside(content: Any, key: str, depth: int = _DEPTH) -> Iterator[tuple[str, Any]]:
    """The modules and the sets of weights in nested dictionaries, with the keys that lead to them."""
    if isinstance(content, torch.nn.Module) or is_weights(content):
        yield key, content
    elif isinstance(content, Mapping) and depth:
        for name, value in content.items():
            if isinstance(name, str):
                yield from _inside(value, f"{key}.{name}" if key else name, depth - 1)


def _averaged(found: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The moving averages alone, where there are some beside others."""
    averages = {key: value for key, value in found.items() if "ema" in key.lower().replace(".", "_").split("_")}
    if not averages or len(averages) == len(found):
        return found, ()
    return averages, (f"the moving average of the weights is taken ({', '.join(averages)}), and not the last ones",)


def _fitted(weights: Weights, own: Weights) -> tuple[Weights, tuple[str, ...]] | None:
    """Weights under the network's own names, with what was done to theirs; None where some are missing.

    What stands in front of all of them is removed, then also what wrappers put into their middle. What lies beside
    the network under another name, such as a loss with weights, is left out.
    """
    needed = [name for name in own if _matters(name)]
    for rename in (str, _without_wrappers):
        given = {rename(name): name for name in weights}
        wanted = rename(max(needed or [""], key=len))
        prefixes = {name.removesuffix(wanted) for name in given if name.endswith(wanted)}
        for prefix in sorted((p for p in prefixes if not p or p.endswith(".")), key=len):
            if not all(prefix + rename(name) in given for name in needed):
                continue
            names = {prefix + rename(name): name for name in own}
            within = {name: origin for name, origin in given.items() if name.startswith(prefix)}
            renamed = {names.get(name, name): weights[origin] for name, origin in within.items()}
            return renamed, _told(prefix, [name for name in given if name not in within], len(within))
    return None


def _told(prefix: str, beside: list[str], count: int) -> tuple[str, ...]:
    removed = (f"the prefix {prefix!r} was removed from all {count} names of weights",) if prefix else ()
    left_out = (f"what does not begin with it is no part of the network and left out: {_few(beside)}",)
    return removed + (left_out if beside else ())


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _matters(name: str) -> bool:
    """Checkpoints from before PyTorch 0.4.1 lack these counters, which inference does not use."""
    return not name.endswith("num_batches_tracked")


def _same_shapes(weights: Weights, own: Weights) -> bool:
    return all(name in own and own[name].shape == tensor.shape for name, tensor in weights.items())


def _check_fit(weights: Weights, own: Weights, arch: str, where: str) -> None:
    missing = [name for name in own if name not in weights and _matters(name)]
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


def _build(arch: str) -> torch.nn.Module:
    module = call(arch, "--arch")
    if not isinstance(module, torch.nn.Module):
        raise UsageError(
            f"{arch} returned a {type(module).__name__}, not a torch.nn.Module",
            remedy="name a function without arguments that returns the network",
            where="--arch",
        )
    return module


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
