"""Splits a model's data into as many samples as its graph takes well at once; works on batches side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch

from edgeq.model.graph import Value, itemsize
from edgeq.model.model import Model
from edgeq.model.values import tensor_of

LARGEST = 24 << 20
"""Bytes of the largest value in a batch. The C library maps what is over 32 MiB anew at each call, and the page faults
then take as long as the convolutions: MobileNetV2 takes half the time with 4 images that it takes with 16."""

MOST = 64

Given = TypeVar("Given")
Result = TypeVar("Result")


def batches(model: Model, inputs: Mapping[str, np.ndarray], size: int | None = None) -> Iterator[list[torch.Tensor]]:
    """Splits stacked inputs into what the model's graph takes at once.

    Args:
        model: decides the batch; one sample where its graph cannot take several.
        inputs: by input name, [N, ...].
        size: samples in a batch where the graph takes several; as many as memory is fast for if not given.
    """
    columns = [torch.from_numpy(np.ascontiguousarray(inputs[spec.name])) for spec in model.inputs]
    if not all(spec.batched for spec in model.inputs):
        yield from ([column[i] for column in columns] for i in range(len(columns[0])))
        return
    step = (size or _fast_size(model)) if model.batchable else 1
    for start in range(0, len(columns[0]), step):
        yield [column[start : start + step] for column in columns]


@contextmanager
def one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """As many workers as PyTorch has threads. Each of them, and the caller meanwhile, computes on one: what comes of it
    does not depend on how many there are."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, "batch", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            torch.set_num_threads(1)
            yield pool
        finally:
            torch.set_num_threads(threads)


def side_by_side(work: Callable[[Given], Result], given: Iterable[Given]) -> Iterator[Result]:
    """Applies `work` to batches, one on each of PyTorch's threads, and yields the results in the batches' order.

    Layers of small models are too short to be split over cores; whole batches are not. What a batch gives does not
    depend on the number of threads, and nor does anything that is added up in the order of the results.
    """
    waiting: deque[Future[Result]] = deque()
    most = torch.get_num_threads()
    with one_thread_each() as pool:
        try:
            for batch in given:
                waiting.append(pool.submit(work, batch))
                if len(waiting) > most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for left in waiting:
                left.cancel()


def _fast_size(model: Model) -> int:
    values = (tensor_of(node) for node in model.nodes.values() if node.op != "placeholder")
    largest = max((_bytes(v) for v in values if v is not None), default=1)
    return max(1, min(MOST, LARGEST // largest))


def _bytes(value: Value) -> int:
    """Of one sample: a free dimension is the batch."""
    fixed = [int(d) for d in value.shape if isinstance(d, int)]
    return max(1, int(np.prod(fixed, dtype=np.int64)) * itemsize(value.dtype))
