"""Runs the calibration data through the float model and keeps what ranges and bias correction need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.fx import Node

from edgeq.calibration.histogram import Histogram
from edgeq.errors import UnsupportedError
from edgeq.model.model import Model
from edgeq.model.ops import WEIGHTED, channel_axis_of_output, is_float, op_class
from edgeq.progress import Progress, Silent

BATCH = 16

CORRECTED = 128
"""Samples over which mean outputs are compared. All of them advance through the graph together."""

MEMORY = 768 * 2**20
"""Bytes that those samples' largest values may take."""


@dataclass(frozen=True)
class Calibration:
    """What the float model's values looked like on the calibration data.

    Attributes:
        histograms: by graph node, of every float tensor.
        channel_means: by graph node of a weighted operator, the mean of its output (bias included) over samples
            and positions; float64 [channels].
        mean_samples: how many samples, from the first, those means are over.
        samples: how many samples were seen.
    """

    histograms: dict[str, Histogram]
    channel_means: dict[str, torch.Tensor]
    mean_samples: int
    samples: int


def batches(model: Model, inputs: Mapping[str, np.ndarray], size: int = BATCH) -> Iterator[list[torch.Tensor]]:
    """Splits stacked inputs into what the model's graph takes at once.

    Args:
        model: decides the batch: `size` where it can, one sample otherwise.
        inputs: by input name, [N, ...].
    """
    columns = [torch.from_numpy(np.ascontiguousarray(inputs[spec.name])) for spec in model.inputs]
    step = size if model.batchable else int(model.example[0].shape[0])
    for start in range(0, len(columns[0]), step):
        yield [column[start : start + step] for column in columns]


def channel_mean(values: Sequence[torch.Tensor], axis: int) -> torch.Tensor:
    """Mean over every axis but one, and over batches; float64 [channels]."""
    axis %= values[0].dim()
    other = [d for d in range(values[0].dim()) if d != axis]
    sums = torch.stack([v.mean(dim=other, dtype=torch.float32).double() * len(v) for v in values])
    return sums.sum(0) / sum(len(v) for v in values)


def calibrate(model: Model, inputs: Mapping[str, np.ndarray], progress: Progress | None = None) -> Calibration:
    """Observes every float tensor of the model.

    Args:
        inputs: by input name, [N, ...].

    Raises:
        UnsupportedError: the float model computes NaN or infinity on this data; names the layer.
    """
    progress = progress or Silent()
    histograms: dict[str, Histogram] = {}
    sums: dict[str, torch.Tensor] = {}
    total = len(next(iter(inputs.values())))
    for_means = _samples_for_means(model, total)

    def observe(node: Node, values: list[torch.Tensor]) -> list[torch.Tensor]:
        if not is_float(node):
            return values
        (value,) = values
        try:
            histograms.setdefault(node.name, Histogram()).add(value)
        except ValueError as error:
            raise UnsupportedError(
                "the float model computes NaN or infinity here on the calibration data",
                where=f"layer {node.name}",
                remedy="check the preprocessing of the calibration data and the model's weights",
            ) from error
        op = op_class(node) if node.op == "call_function" else None
        if op in WEIGHTED and done < for_means:
            mean = channel_mean(values, channel_axis_of_output(op or "")) * len(batch[0])
            sums[node.name] = sums[node.name] + mean if node.name in sums else mean
        return values

    done = 0
    for batch in batches(model, inputs):
        model.run([batch], observe)
        done += len(batch[0])
        progress.step(done, total)
    return Calibration(histograms, {name: s / for_means for name, s in sums.items()}, for_means, done)


def _samples_for_means(model: Model, total: int) -> int:
    """As many as fit the memory, in whole batches where there are that many."""
    largest = max(4 * n.meta["val"].numel() for n in model.nodes.values() if is_float(n))
    fitting = max(1, int(MEMORY / (3 * int(largest) / len(model.example[0]))))
    wanted = min(total, CORRECTED, max(fitting, BATCH))
    return wanted if wanted < BATCH else wanted // BATCH * BATCH
