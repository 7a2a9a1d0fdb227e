"""How the error of a layer's outputs grows with the errors of its weights: the Hessian of its squared error.

The squared error of one output, summed over positions, is e H e^T, where e [inputs] are the errors of its weights and
H = sum of x x^T over what they meet. H is the same for all outputs of a layer, and is made from what the float model
gives the layer, so that its integers do not depend on how others are rounded.

x is taken less its mean: what that part of the error does to the outputs is the same at every position, and the
analytic bias correction takes it off (see `edgeq.methods.bias_correction`). What is left is the variance of the error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edgeq.errors import UsageError
from edgeq.methods.columns import columns, met
from edgeq.methods.method import Seen, Wanted
from edgeq.model.batches import batches, side_by_side
from edgeq.model.graph import Node
from edgeq.model.model import Model

SAMPLES = 256
"""Calibration samples that are looked at, spread over all that there are."""

ROWS = 1 << 14
"""About how many positions a layer is looked at: the time of a layer is this times its inputs squared. Four times as
many as the most inputs of a block; where samples have more positions, as those of most convolutions do, they are drawn
at random."""

WIDEST = 4096
"""Most inputs whose errors are weighed against one another. Layers of more are cut into blocks, as if each were all."""

BYTES = 1 << 30
"""Of all the Hessians that are summed in one pass over the samples, and of those that are kept for the next kernel."""


class Curved(NamedTuple):
    """A layer with its Hessian.

    Attributes:
        one: the layer.
        at: [blocks, outputs, inputs], where in the flat weight its matrices are (see `edgeq.methods.columns`).
        hessian: float64 [blocks, inputs, inputs].
    """

    one: Wanted
    at: NDArray[np.intp]
    hessian: torch.Tensor


def hessians(model: Model, wanted: Sequence[Wanted], seen: Seen, *, by_group: bool = False) -> Iterator[Curved]:
    """The layers one by one, with as many passes over the samples as memory makes necessary.

    Args:
        by_group: weights that share a scale of a group are a block of their own.

    Raises:
        UsageError: there are no samples, or they are too large.
    """
    if not seen.inputs:
        raise UsageError("the method looks at calibration samples", remedy="give some, or take `nearest` or `hqq`")
    nodes = {group.name: model.nodes[group.root] for group in model.groups}
    layers = [
        _Layer(one, nodes[one.layer], columns(nodes[one.layer], (by_group and one.scheme.group) or WIDEST))
        for one in wanted
    ]
    known = _known(model.fingerprint, _content({**seen.inputs, **seen.calibration.mean_patches}))
    missing = [layer for layer in layers if layer.place not in known]
    for layer in layers:
        if layer.place in known:
            yield Curved(layer.one, layer.at, known[layer.place].double())
    while missing:
        count = max(1, int(np.searchsorted(np.cumsum([layer.bytes for layer in missing]), BYTES, side="right")))
        sums = _sums(model, missing[:count], seen)
        for layer in missing[:count]:
            found = sums.pop(layer.one.layer)
            if not found.isfinite().all():
                raise UsageError(
                    "what it reads on calibration samples is too large to be squared",
                    where=f"layer {layer.one.layer}",
                    remedy="look for samples that are out of range, or take --effort fast or --method nearest",
                )
            if layer.bytes + sum(other.nbytes for other in known.values()) <= BYTES:
                known[layer.place] = found
            yield Curved(layer.one, layer.at, found.double())
        missing = missing[count:]


class _Layer(NamedTuple):
    one: Wanted
    node: Node
    at: NDArray[np.intp]

    @property
    def place(self) -> tuple[str, tuple[int, ...]]:
        """What has the same Hessian: kernels of other integers do."""
        return self.node.name, self.at.shape

    @property
    def bytes(self) -> int:
        blocks, _, inputs = self.at.shape
        return int(4 * blocks * inputs**2)


@lru_cache(maxsize=1)
def _known(model: str, samples: str) -> dict[tuple[str, tuple[int, ...]], torch.Tensor]:
    """Hessians of one model on its samples, as far as they were summed. A plan compares one kernel after the other, and
    nine tenths of the time go to what is the same for all of them."""
    return {}


def _content(arrays: Mapping[str, NDArray[Any]]) -> str:
    found = hashlib.sha256()
    for name, array in arrays.items():
        found.update(f"{name} {array.dtype} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _sums(model: Model, layers: Sequence[_Layer], seen: Seen) -> dict[str, torch.Tensor]:
    """By layer, float32 [blocks, inputs, inputs]."""
    step = -(-len(next(iter(seen.inputs.values()))) // SAMPLES)
    some = {name: array[::step] for name, array in seen.inputs.items()}
    each = -(-ROWS // len(next(iter(some.values()))))
    means = {one.layer: torch.from_numpy(seen.calibration.mean_patches[node.name]) for one, node, _ in layers}

    def one_batch(given: tuple[int, list[torch.Tensor]]) -> dict[str, torch.Tensor]:
        number, batch = given
        samples = len(batch[0]) if model.inputs[0].batched else 1
        found: dict[str, torch.Tensor] = {}

        def look(read: Node, values: list[torch.Tensor]) -> list[torch.Tensor]:
            for one, node, at in layers:
                if node.args[0] is read:
                    x = met(node, values[0], each * samples, number)
                    x = x - means[one.layer].reshape(x.shape[1:])
                    found[one.layer] = x.reshape(len(x), len(at), -1).transpose(0, 1)
            return values

        model.run([batch], look)
        return found

    sums = {one.layer: torch.zeros(len(at), at.shape[2], at.shape[2]) for one, _, at in layers}
    # summed in the batches' order by one thread: so that it does not depend on how many there are
    for found in side_by_side(one_batch, enumerate(batches(model, some))):
        for name, x in found.items():
            sums[name].baddbmm_(x.transpose(1, 2), x)
    return sums
