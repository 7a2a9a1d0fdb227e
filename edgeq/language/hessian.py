"""What the matrices of a piece meet on text: the Hessian of each one's squared error, and how large its inputs are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import UsageError
from edgeq.language.decoder import Decoder, Weight
from edgeq.language.segments import Segment, Values, load

if TYPE_CHECKING:
    import torch


class Met(NamedTuple):
    """What a matrix meets.

    Attributes:
        hessian: float32 [inputs, inputs], the sum of x x^T over all positions. Not less the mean, as for layers whose
            bias makes up for it: most products of these models have none.
        size: float32 [inputs], the mean of abs(x).
    """

    hessian: torch.Tensor
    size: NDArray[np.float32]

    def padded(self, inputs: int) -> Met:
        """With inputs behind its own that are always zero."""
        import torch

        more = inputs - len(self.hessian)
        return (
            self
            if not more
            else Met(torch.nn.functional.pad(self.hessian, (0, more, 0, more)), np.pad(self.size, (0, more)))
        )

    def blocks(self, rows: int, widest: int) -> tuple[NDArray[np.intp], torch.Tensor]:
        """What `edgeq.methods.hessian.Curved` has of a matrix: blocks of inputs, as few as none is wider than allowed.

        Returns:
            [blocks, rows, inputs], where each number of a block is in the flat matrix, and float64
            [blocks, inputs, inputs].
        """
        import torch

        inputs = len(self.hessian)
        count = next(n for n in range(1, inputs + 1) if inputs % n == 0 and inputs // n <= widest)
        width = inputs // count
        at = np.arange(rows * inputs).reshape(rows, count, width).transpose(1, 0, 2)
        cut = [self.hessian[i : i + width, i : i + width] for i in range(0, inputs, width)]
        return at, torch.stack(cut).double()


def measured(
    decoder: Decoder, segment: Segment, weights: Sequence[Weight], flowing: Sequence[Values]
) -> dict[Weight, Met]:
    """By matrix that a product reads, what it meets. Those that read the same value share it.

    Args:
        flowing: what the piece takes, batch by batch.

    Raises:
        UsageError: what it meets is not finite.
    """
    import torch

    names = {weight: segment.inputs[weight.name] for weight in weights if weight.name in segment.inputs}
    if not names:
        return {}
    values = tuple(dict.fromkeys(names.values()))
    piece = load(decoder, segment, values)
    sums: dict[str, torch.Tensor] = {}
    sizes: dict[str, NDArray[np.float64]] = {}
    count = 0
    for batch in flowing:
        found = piece.run(batch)
        for name in values:
            x = found[name].reshape(-1, found[name].shape[-1])
            if name not in sums:
                sums[name] = torch.zeros(x.shape[1], x.shape[1])
                sizes[name] = np.zeros(x.shape[1])
            rows = torch.from_numpy(x)
            sums[name].addmm_(rows.T, rows)
            sizes[name] += np.abs(x).sum(axis=0, dtype=np.float64)
        count += len(x)
    for weight, name in names.items():
        if not sums[name].isfinite().all():
            remedy = "look at the text, and whether the model itself answers it"
            raise UsageError("what it meets is too large to be squared", where=weight.name, remedy=remedy)
    met = {name: Met(sums[name], (sizes[name] / count).astype(np.float32)) for name in values}
    return {weight: met[name] for weight, name in names.items()}
