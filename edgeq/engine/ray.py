"""Ray: a cluster of its own on this machine, or one that runs already."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import socket
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from edgeq.engine.task import Sent, failed, packed, perform, result_of
from edgeq.errors import DeviceError, MissingExtraError, UsageError
from edgeq.lock import versions_now
from edgeq.progress import Progress, Silent

Item = TypeVar("Item")
Result = TypeVar("Result")

REACHABLE = 10.0
"""Seconds in which a cluster has to answer."""

AHEAD = 2
"""Tasks for each CPU that are handed out at a time: one to work on, one to go on with."""

DRAINED = 120.0
"""Seconds to wait after an error for the tasks that run."""

FIRST_WORKER = 120.0
"""Seconds in which a cluster has to give the first worker: a node may have to start it, and to import PyTorch."""

PACKAGES = ("onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino", "ai-edge-litert", "ai-edge-quantizer")


@contextmanager
def open_ray(name: str, workers: int | None) -> Iterator[Cluster]:
    """Starts a cluster (`ray`) or joins one (`ray://host:port`); leaves it, or ends it, behind the block.

    In a program that has called `ray.init` itself, `ray` is that cluster.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: the address is none, or workers were asked of a cluster that has its own.
        DeviceError: the cluster does not answer, or is not like this process.
    """
    # read while it is imported: nothing is reported to anyone
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    started = name == "ray"
    if not started:
        if workers is not None:
            raise UsageError("a cluster that is joined has workers of its own", remedy="leave --workers away")
        _reach(name)
    if ray.is_initialized():
        if workers is not None:
            raise UsageError("this program runs a Ray cluster already", remedy="leave workers away")
        yield Cluster(ray, here=False, workers=None)
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _start(ray, name, workers)
        with contextlib.suppress(ValueError):  # not in the main thread, where Ray sets none either
            for number, handler in handlers.items():
                signal.signal(number, handler)
        cluster = Cluster(ray, here=started, workers=(workers or os.cpu_count()) if started else None)
        cluster.greet()
        yield cluster
    finally:
        ray.shutdown()


class Cluster:
    """See `edgeq.engine.Engine`. A worker that dies is not replaced: Ray would try for ever where memory is short."""

    def __init__(self, ray: Any, *, here: bool, workers: int | None) -> None:
        self.here = here
        self.workers = workers
        self._ray = ray
        self._remote = ray.remote(num_cpus=1, max_retries=0)(_perform_there)
        # Ray drops an object with the last reference to it
        self._sent: Sent[Any] = Sent(ray.put, lambda _: None)

    def greet(self) -> None:
        """Waits for the first worker.

        Raises:
            DeviceError: there is none, or it is not like this process.
        """
        try:
            self._result(self._remote.remote(_fingerprint(), (), packed((_nothing, None))), FIRST_WORKER)
        except ImportError as error:  # where it is joined from outside, the cluster looks at a function before a worker
            raise _foreign(error) from error
        except self._ray.exceptions.GetTimeoutError as error:
            raise DeviceError(
                f"the Ray cluster gave no worker within {FIRST_WORKER:.0f} s",
                remedy="see `ray status`: it needs a node with a free CPU",
            ) from error

    def map(
        self,
        work: Callable[..., Result],
        items: Iterable[Item],
        *shared: Any,
        progress: Progress | None = None,
        threads: bool = True,
    ) -> list[Result]:
        steps, expected = progress or Silent(), _fingerprint()
        handles = self._sent.handles(shared)
        tasks = [packed((work, item)) for item in items]
        most = AHEAD * max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        running: deque[Any] = deque()
        found: list[Result] = []
        try:
            for number in range(len(tasks) + most):
                if number >= most and running:
                    found.append(self._result(running.popleft()))
                    steps.step(len(found), len(tasks))
                if number < len(tasks):
                    running.append(self._remote.remote(expected, handles, tasks[number]))
        except Exception:
            self._drain(running)
            raise
        return found

    def _result(self, reference: Any, seconds: float | None = None) -> Any:
        errors = self._ray.exceptions
        try:
            return result_of(self._ray.get(reference, timeout=seconds))
        except errors.GetTimeoutError:
            raise
        except errors.OutOfMemoryError as error:
            raise DeviceError(
                "Ray ended a worker because its machine was out of memory",
                remedy="give fewer --workers, or a cluster with more memory; what was finished is kept in the cache",
            ) from error
        except errors.RayTaskError as error:
            # what `perform` does not catch: edgeq cannot be imported there
            raise _foreign(error) from error
        except (errors.RayError, ConnectionError) as error:
            raise DeviceError(
                f"a worker of the Ray cluster died ({type(error).__name__}): {_first_line(error)}",
                remedy="most often its machine was out of memory, or left; what was finished is kept in the cache",
            ) from error

    def _drain(self, references: Collection[Any]) -> None:
        """Waits for what runs already: nothing may be timed beside it.

        Nothing is cancelled. Ray aborts the whole program where a task ends while it is being cancelled (2.60:
        "Tried to complete task that was not pending"); this is why no more is handed out at a time than will do.
        """
        with contextlib.suppress(Exception):  # the connection may be what failed
            self._ray.wait(list(references), num_returns=len(references), timeout=DRAINED)


def _perform_there(expected: dict[str, str], handles: tuple[Any, ...], task: bytes) -> bytes:
    """Runs in the cluster. Every node is asked what it is: one of many may be another."""
    own = _fingerprint()
    differing = [f"{name} {own.get(name, 'missing')}, here {value}" for name, value in expected.items()
                 if own.get(name) != value]  # fmt: skip
    if differing:
        return failed(
            DeviceError(
                f"a node of the Ray cluster would compute something else: {'; '.join(differing)}",
                where=platform.node(),
                remedy="give every node the same packages and the same kind of CPU; ATEN_CPU_CAPABILITY=avx2 on all "
                "of them evens out instruction sets",
            )
        )
    return perform(_fetch, handles, task)


def _fetch(reference: Any) -> bytes:
    import ray

    content: bytes = ray.get(reference)
    return content


def _fingerprint() -> dict[str, str]:
    """What decides the bits of a result: versions, and the instructions that PyTorch uses."""
    return {**versions_now(PACKAGES), "instructions": torch.backends.cpu.get_cpu_capability()}


def _nothing(_: None) -> None:
    return None


def _start(ray: Any, name: str, workers: int | None) -> None:
    quiet = {"include_dashboard": False} if name == "ray" else {}
    try:
        ray.init(
            address="local" if name == "ray" else name,
            num_cpus=workers if name == "ray" else None,
            log_to_driver=False,
            logging_level="ERROR",
            **quiet,
        )
    except Exception as error:  # of many kinds, from sockets to versions
        raise DeviceError(
            f"the Ray cluster cannot be {'started' if name == 'ray' else 'joined'}: {_first_line(error)}",
            where=name,
            remedy="look into the newest folder of /tmp/ray"
            if name == "ray"
            else "give both sides the same Python and Ray; for a cluster with a token also RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN, as its owner set them",
        ) from error


def _reach(name: str) -> None:
    """Ray itself would try for half a minute, and more than once."""
    host, _, port = name.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"{name!r} is no address", remedy="write ray://host:port; the port is 10001 unless set")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHABLE).close()
    except (OSError, OverflowError) as error:
        raise DeviceError(
            f"nothing answers there: {error}",
            where=name,
            remedy="start it with `ray start --head --ray-client-server-port PORT`, and check the address",
        ) from error


def _foreign(error: BaseException) -> DeviceError:
    return DeviceError(
        f"the Ray cluster cannot run edgeq: {_last_line(error)}",
        remedy="install the same edgeq, with its extras, on every node",
    )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _last_line(error: BaseException) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
