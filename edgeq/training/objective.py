"""What a network is trained for: the labels, or what the float model gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import kl_div, log_softmax, nll_loss

from edgeq.model.blocks import find_blocks
from edgeq.model.graph import Node
from edgeq.model.model import Model

_PROBABILITIES = ("aten.softmax.int", "aten._softmax.default")


class Aims(NamedTuple):
    """
    Attributes:
        labels: the first output is to give the classes that the samples are labelled with.
        outputs: the outputs are to be the float model's.
        features: so are these values in between, by graph node.
    """

    labels: bool
    outputs: bool
    features: tuple[str, ...] = ()


def ends_of_blocks(model: Model) -> tuple[str, ...]:
    """The values between the blocks of a network: what its features are learned by."""
    layers = [group.root for group in model.groups if group.weight is not None]
    found = [name for block in find_blocks(model.program, layers)[:-1] for name in block.program.outputs]
    floats = {group.output for group in model.groups}
    return tuple(dict.fromkeys(name for name in found if name in floats))


def teacher(model: Model, aims: Aims, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What the float model gives: its outputs, and then the features that are asked for. Nothing where all that counts
    are labels."""
    if not (aims.outputs or aims.features):
        return []
    real: dict[str, torch.Tensor] = {}

    def see(node: Node, values: list[Any]) -> list[Any]:
        if node.name in aims.features:
            real[node.name] = values[0]
        return values

    with torch.no_grad():
        outputs = model.run([inputs], see)[0]
        return [value.clone() for value in (*outputs, *(real[name] for name in aims.features))]


def loss_of(
    model: Model, aims: Aims, found: Sequence[torch.Tensor], real: Sequence[torch.Tensor], labels: torch.Tensor | None
) -> torch.Tensor:
    """What is to become small, [].

    Source of distillation: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2, at
    temperature 1. Of features: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", equation 3, each in units of
    its power.

    Args:
        found: outputs, and then features, of the network that learns.
        real: the same of the float model (see `teacher`).
    """
    count, parts = len(model.output_nodes), []
    if aims.labels:
        assert labels is not None
        parts.append(nll_loss(_logarithms(model, 0, found[0]), labels))
    if aims.outputs:
        pairs = [(i, found[i], real[i]) for i in range(count) if found[i].is_floating_point()]
        parts.append(torch.stack([_apart(model, *pair) for pair in pairs]).mean())
    if aims.features:
        parts.append(torch.stack([_relative(*p) for p in zip(found[count:], real[count:], strict=True)]).mean())
    return torch.stack(parts).sum()


def _apart(model: Model, index: int, found: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Of classes the divergence of their probabilities, of other values the mean square."""
    if model.heads[index].axis is None or found.dim() != 2:
        return _relative(found, real)
    ours, theirs = _logarithms(model, index, found), _logarithms(model, index, real)
    return kl_div(ours, theirs, reduction="batchmean", log_target=True)


def _logarithms(model: Model, index: int, output: torch.Tensor) -> torch.Tensor:
    """Of the probabilities of classes, which lie along axis 1."""
    if model.nodes[model.output_nodes[index]].target in _PROBABILITIES:
        return output.clamp(min=1e-9).log()
    return log_softmax(output, 1)


def _relative(found: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    return (found - real).square().mean() / real.square().mean().clamp(min=1e-12)
