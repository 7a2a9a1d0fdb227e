"""How far a block's outputs are from what it gives in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from edgeq.methods.block_run import Values, stacked
from edgeq.methods.method import HELD_OUT


class Loss:
    """Mean squares, each output's in units of its power.

    Args:
        targets: by output, its value for each sample. One in `HELD_OUT` is kept from learning, and judges it.
    """

    def __init__(self, targets: Values) -> None:
        self.wanted = {n: values for n, values in targets.items() if values and values[0].is_floating_point()}
        self.powers = {
            n: _mean([v.square().mean() for v in values]).clamp(min=1e-12) for n, values in self.wanted.items()
        }
        samples = range(max(map(len, targets.values()), default=0))
        self.held = samples[::HELD_OUT]
        self.learned = [i for i in samples if i % HELD_OUT] or list(samples)

    def of(self, outputs: Mapping[str, torch.Tensor], samples: Sequence[int]) -> torch.Tensor:
        """[], of outputs by name, the given samples of each one behind the other."""
        aims = {name: stacked([[values[i]] for i in samples])[0] for name, values in self.wanted.items()}
        return _mean([(outputs[name] - aim).square().mean() / self.powers[name] for name, aim in aims.items()])

    def held_out(self, outputs: Values) -> float:
        """Of the samples that nothing was learned from.

        Args:
            outputs: by name, for each of them.
        """
        held = {name: stacked([[value] for value in values])[0] for name, values in outputs.items()}
        return float(self.of(held, self.held))


def _mean(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(values)).mean()
