"""Runs the calibration data through the float model and keeps what ranges and bias correction need."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch.fx import Node

from edgeq.calibration.histogram import Histogram
from edgeq.errors import UnsupportedError
from edgeq.model.model import Model
from edgeq.model.ops import WEIGHTED, is_float, op_class
from edgeq.progress import Progress, Silent

BATCH = 16


@dataclass(frozen=True)
class Calibration:
    """What the float model's values looked like on the calibration data.

    Attributes:
        histograms: by graph node, of every float tensor.
        mean_inputs: by graph node of a weighted operator, its input averaged over its first axis; float32, the shape of
            one sample's input with a leading 1.
        samples: how many samples were seen.
    """

    histograms: dict[str, Histogram]
    mean_inputs: dict[str, torch.Tensor]
    samples: int


def batches(model: Model, inputs: Mapping[str, np.ndarray], size: int = BATCH) -> Iterator[list[torch.Tensor]]:
    """Splits stacked inputs into what the model's graph takes at once.

    Args:
        model: decides the batch: `size` where it can, one sample otherwise.
        inputs: by input name, [N, ...].
    """
    columns = [torch.from_numpy(np.ascontiguousarray(inputs[spec.name])) for spec in model.inputs]
    if not all(spec.batched for spec in model.inputs):
        yield from ([column[i] for column in columns] for i in range(len(columns[0])))
        return
    step = size if model.batchable else 1
    for start in range(0, len(columns[0]), step):
        yield [column[start : start + step] for column in columns]


def calibrate(
    model: Model,
    inputs: Mapping[str, np.ndarray],
    progress: Progress | None = None,
    *,
    skip: Collection[str] = (),
) -> Calibration:
    """Observes every float tensor of the model.

    Args:
        inputs: by input name, [N, ...].
        skip: graph nodes whose values nobody will ask for, such as what a fused activation reads.

    Raises:
        UnsupportedError: the float model computes NaN or infinity on this data; names the layer.
    """
    progress = progress or Silent()
    histograms: dict[str, Histogram] = {}
    sums: dict[str, tuple[torch.Tensor, int]] = {}
    sources = {n.name: n.all_input_nodes[0].name for n in model.nodes.values() if _weighted(n)}
    weighted = set(sources.values())
    total = len(next(iter(inputs.values())))

    def observe(node: Node, values: list[torch.Tensor]) -> list[torch.Tensor]:
        if node.name in skip or not is_float(node):
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
        if node.name in weighted:
            before, count = sums.get(node.name, (torch.zeros(()), 0))
            # sample by sample: the kernel that sums over the first axis is ten times slower
            sums[node.name] = (
                reduce(operator.add, (value[i : i + 1] for i in range(len(value))), before),
                count + len(value),
            )
        return values

    done = 0
    for batch in batches(model, inputs):
        model.run([batch], observe)
        done += len(batch[0]) if model.inputs[0].batched else 1
        progress.step(done, total)
    # a layer that works on a constant has no mean input, and nothing to correct
    means = {name: sums[source][0] / sums[source][1] for name, source in sources.items() if source in sums}
    return Calibration(histograms, means, done)


def _weighted(node: Node) -> bool:
    return node.op == "call_function" and op_class(node) in WEIGHTED and is_float(node.args[0])
