"""Samples changed at random before each step: one entry each, or a function of the user's."""

from __future__ import annotations

from typing import Protocol

import torch

from edgeq.data.function import resolve
from edgeq.errors import UsageError


class Augment(Protocol):
    """Changes a batch."""

    def __call__(self, inputs: tuple[torch.Tensor, ...], generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """
        Args:
            inputs: one tensor per input, [N, ...]. They are not to be written into.
            generator: where all that is random comes from: the same steps see the same samples, also after a restart.
        """


def crop_flip(inputs: tuple[torch.Tensor, ...], generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Images, [N, C, H, W], moved by up to an eighth of their size, with zeros at the edge, and mirrored half of the
    time. Other inputs are left as they are.

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2.
    """
    return tuple(_cropped(x, generator) if x.dim() == 4 and x.is_floating_point() else x for x in inputs)


def _cropped(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    count, _, height, width = images.shape
    reach = max(1, height // 8), max(1, width // 8)
    wide = torch.nn.functional.pad(images, (reach[1], reach[1], reach[0], reach[0]))
    rows = torch.randint(2 * reach[0] + 1, (count, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(2 * reach[1] + 1, (count, 1), generator=generator) + torch.arange(width)
    mirrored = torch.rand(count, generator=generator) < 0.5
    columns[mirrored] = columns[mirrored].flip(-1)
    every = torch.arange(count)[:, None, None]
    return wide.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


AUGMENT: dict[str, Augment] = {"crop-flip": crop_flip}


def augment_of(name: str) -> Augment:
    """By a name in `AUGMENT`, or as `package.module:function`.

    Raises:
        UsageError: there is none.
    """
    if name in AUGMENT:
        return AUGMENT[name]
    if ":" not in name:
        raise UsageError(
            f"there is no augmentation {name!r}", remedy=f"{', '.join(AUGMENT)} or package.module:function"
        )
    found: Augment = resolve(name, "--augment")
    return found
