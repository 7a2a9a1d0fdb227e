"""Where the work of a plan is done: in this process, in several, or on a Ray cluster, with the same results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from edgeq.engine.local import Local
from edgeq.errors import UsageError
from edgeq.progress import Progress

__all__ = ["LOCAL", "Engine", "open_engine"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(Protocol):
    """What can apply a function to many items.

    Attributes:
        here: the workers are processes of this machine, which see its files and its devices.
        workers: how many items are worked on at once; None where a cluster decides.
    """

    here: bool
    workers: int | None

    def map(
        self,
        work: Callable[..., Result],
        items: Iterable[Item],
        *shared: Any,
        progress: Progress | None = None,
        threads: bool = True,
    ) -> list[Result]:
        """`work(*shared, item)` for each item, in the items' order, each on one thread of PyTorch.

        When it returns, or raises, no worker is busy: what is timed afterwards is timed on a machine at rest.

        Args:
            work: a function of a module, so that others can import it.
            items: few and coarse; each goes to one worker.
            shared: sent to a worker once, also over several calls with the same object. Not to be changed.
            progress: hears of each result.
            threads: whether the work may run on several threads of one process.

        Raises:
            DeviceError: a worker died, or is not like this process.
            UnsupportedError: something cannot be sent.
            Exception: what `work` raised, for the first item that failed.
        """


LOCAL: Engine = Local()
"""This process: numeric work on PyTorch's threads, builds one after the other."""


@contextmanager
def open_engine(name: str | None = None, workers: int | None = None) -> Iterator[Engine]:
    """An engine for a `with` block, whose workers end with the block.

    Args:
        name: None for processes of this machine, `ray` for a Ray cluster that is started here and ends with the
            block, `ray://host:port` for one that runs.
        workers: processes; None for this process alone, or as many workers as a cluster has cores.

    Raises:
        UsageError: there is no such engine, or fewer than one worker.
        MissingExtraError: Ray is not installed.
        DeviceError: the cluster cannot be reached, or does not fit this process.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}", remedy="give 1 or more")
    if name is None and workers is None:
        yield LOCAL
    elif name is None:
        from edgeq.engine.processes import Processes

        assert workers is not None
        with Processes(workers) as processes:
            yield processes
    elif name == "ray" or name.startswith("ray://"):
        from edgeq.engine.ray import open_ray

        with open_ray(name, workers) as cluster:
            yield cluster
    else:
        raise UsageError(
            f"there is no engine {name!r}",
            remedy="choose ray, or ray://host:port to join a cluster; --workers alone for processes of this machine",
        )
