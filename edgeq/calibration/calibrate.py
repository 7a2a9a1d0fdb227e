"""Runs the calibration data through the float model and keeps what ranges and bias correction need."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import torch

from edgeq.calibration.calibration import Calibration
from edgeq.calibration.histogram import Histogram
from edgeq.calibration.patches import mean_patch
from edgeq.errors import UnsupportedError
from edgeq.model.batches import batches, side_by_side
from edgeq.model.graph import Node
from edgeq.model.model import Model
from edgeq.model.ops import WEIGHTED, is_float, op_class, shape_of
from edgeq.progress import Progress, Silent


def calibrate(
    model: Model,
    inputs: Mapping[str, np.ndarray],
    progress: Progress | None = None,
    *,
    skip: Collection[str] = (),
) -> Calibration:
    """Observes every float tensor of the model.

    Infinity is how networks mask values, and legal where nothing of it is left in the outputs.

    Args:
        inputs: by input name, [N, ...].
        skip: graph nodes whose values nobody will ask for, such as what a fused activation reads.

    Raises:
        UnsupportedError: the float model computes NaN on this data, or infinity that it returns or multiplies by
            weights; names the layer that it came from.
    """
    progress = progress or Silent()
    histograms: dict[str, Histogram] = {}
    sums: dict[str, _Sum] = {}
    sources = {n.name: n.all_input_nodes[0].name for n in model.nodes.values() if _weighted(n)}
    axes: dict[str, int] = {}
    for layer, source in sources.items():
        axes[source] = max(axes.get(source, 0), len(shape_of(model.nodes[layer].args[1])))
    samples = len(next(iter(inputs.values())))
    done = 0
    for seen in side_by_side(lambda batch: _observe(model, batch, skip, axes), batches(model, inputs)):
        for name, histogram in seen.histograms.items():
            histograms.setdefault(name, Histogram()).include(histogram)
        for name, total in seen.sums.items():
            sums[name] = sums[name].plus(total) if name in sums else total
        done += seen.samples
        progress.step(done, samples)
    # a layer that works on a constant has no mean input, and nothing to correct
    means = {n: sums[source].mean() for n, source in sources.items() if source in sums}
    patches = {name: mean_patch(model.nodes[name], mean) for name, mean in means.items()}
    return Calibration(histograms, patches, done)


class _Sum(NamedTuple):
    """Of a tensor over its first axis, with a leading 1, and over how many."""

    total: torch.Tensor
    rows: int

    def plus(self, other: _Sum) -> _Sum:
        return _Sum(self.total + other.total, self.rows + other.rows)

    def mean(self) -> torch.Tensor:
        return self.total / self.rows


class _Seen(NamedTuple):
    """One batch: a histogram and, of what weighted operators read, the sum over samples; by graph node."""

    histograms: dict[str, Histogram]
    sums: dict[str, _Sum]
    samples: int


def _observe(model: Model, batch: list[torch.Tensor], skip: Collection[str], axes: Mapping[str, int]) -> _Seen:
    """Looks at one batch.

    Args:
        axes: by graph node that a weighted operator reads, how many axes that expects of a batch.
    """
    histograms: dict[str, Histogram] = {}
    sums: dict[str, _Sum] = {}

    endless: dict[str, str] = {}

    def observe(node: Node, values: list[torch.Tensor]) -> list[torch.Tensor]:
        if node.name in skip or not is_float(node):
            return values
        (value,) = values
        seen = histograms.setdefault(node.name, Histogram())
        try:
            seen.add(value)
        except ValueError as error:
            raise _not_finite("NaN", node.name) from error
        if seen.endless:
            origin = next((endless[n.name] for n in node.all_input_nodes if n.name in endless), node.name)
            endless[node.name] = origin
            if node.name in (*axes, *model.input_nodes, *model.output_nodes):
                raise _not_finite("infinity", origin)
        if node.name in axes:
            # a layer may be given one sample without the axis of the batch
            rows = value if value.dim() >= axes[node.name] else value[None]
            total = torch.zeros_like(rows[:1])
            # sample by sample: the kernel that sums over the first axis is ten times slower
            for i in range(len(rows)):
                total += rows[i : i + 1]
            sums[node.name] = _Sum(total, len(rows))
        return values

    model.run([batch], observe)
    return _Seen(histograms, sums, len(batch[0]) if model.inputs[0].batched else 1)


def _not_finite(what: str, layer: str) -> UnsupportedError:
    return UnsupportedError(
        f"the float model computes {what} here on the calibration data",
        where=f"layer {layer}",
        remedy="check the preprocessing of the calibration data and the model's weights",
    )


def _weighted(node: Node) -> bool:
    return node.op == "call_function" and op_class(node) in WEIGHTED and is_float(node.args[0])
