"""Several processes that train one network, as torchrun starts them: who is there, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


class Team(NamedTuple):
    """
    Attributes:
        rank: which of them this process is, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the one that judges, tells and writes."""
        return self.rank == 0

    def part(self, count: int) -> tuple[torch.Tensor, float]:
        """Which samples of a step are this process's, and what its loss is multiplied by, so that the mean of all
        gradients is that of the whole step."""
        mine = torch.arange(count)[self.rank :: self.size]
        # one that has none computes on another's, which then does not count: all have to come to the same collectives
        return (mine, len(mine) * self.size / count) if len(mine) else (torch.zeros(1, dtype=torch.int64), 0.0)

    def same(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them."""
        box: list[Any] = [make() if self.leads else None]
        if self.size > 1:
            dist.broadcast_object_list(box)
        found: T = box[0]
        return found

    def mean(self, value: float) -> float:
        """Over all of them."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return float(total) / self.size


ALONE = Team()


def rank() -> int:
    """Of this process among those that torchrun started; 0 for one that it did not start."""
    return int(os.environ.get("RANK", "0")) if "WORLD_SIZE" in os.environ else 0


@contextmanager
def team() -> Iterator[Team]:
    """The processes that torchrun started, connected for as long as this lasts; or this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    dist.init_process_group("gloo")
    try:
        yield Team(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
