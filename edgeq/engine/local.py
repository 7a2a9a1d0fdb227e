"""Work in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from edgeq.progress import Progress, Silent

Item = TypeVar("Item")
Result = TypeVar("Result")


class Local:
    """See `edgeq.engine.Engine`. Nothing is sent, and what may run on threads does."""

    here = True
    workers: int | None = 1

    def map(
        self,
        work: Callable[..., Result],
        items: Iterable[Item],
        *shared: Any,
        progress: Progress | None = None,
        threads: bool = True,
    ) -> list[Result]:
        steps, given = progress or Silent(), list(items)
        found: list[Result] = []
        if threads:
            from edgeq.model.batches import side_by_side  # on PyTorch's threads; builds do without

            for result in side_by_side(partial(work, *shared), given):
                found.append(result)
                steps.step(len(found), len(given))
            return found
        for item in given:
            found.append(work(*shared, item))
            steps.step(len(found), len(given))
        return found
