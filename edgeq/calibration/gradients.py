"""Measures how much an error in each tensor moves the model's outputs: backward passes with random directions, their
gradients summed by the bins of the tensors' histograms (see `edgeq.calibration.impact`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from edgeq.calibration.histogram import HALF, Histogram, as_rows
from edgeq.calibration.impact import Impact
from edgeq.model.batches import batches, side_by_side
from edgeq.model.graph import Node
from edgeq.model.model import Model
from edgeq.model.ops import is_float
from edgeq.progress import Progress, Silent

SAMPLES = 32
PROBES = 2
BATCH = 4


def measure_impact(
    model: Model,
    inputs: Mapping[str, np.ndarray],
    histograms: Mapping[str, Histogram],
    names: Iterable[str],
    progress: Progress | None = None,
) -> Impact:
    """Measures the tensors in `names` on the first samples.

    Tensors through which no gradient flows (integers, indices) are left out.

    Args:
        inputs: by input name, [N, ...].
        histograms: from calibration; they give the bins.
        names: graph nodes.
    """
    progress = progress or Silent()
    wanted = [n for n in dict.fromkeys(names) if n in histograms]
    few = {name: array[:SAMPLES] for name, array in inputs.items()}
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in wanted}
    given = list(enumerate(batches(model, few, BATCH)))
    one_batch = partial(_one_batch, model, histograms, set(wanted))
    for done, found in enumerate(side_by_side(one_batch, given), start=1):
        for name, parts in found.items():
            rows[name] += parts
        progress.step(done, len(given))
    gradients, centers = {}, {}
    for name, parts in rows.items():
        if parts:
            whole = torch.cat(parts).numpy()
            held = _held(whole)
            gradients[name] = np.ascontiguousarray(whole[:, held])
            centers[name] = histograms[name].centers()[held].astype(np.float32)
    return Impact(gradients, centers)


def _held(rows: np.ndarray) -> slice:
    """From the first column that holds anything to the last."""
    used = np.flatnonzero(rows.any(axis=0))
    return slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0)


def _one_batch(
    model: Model, histograms: Mapping[str, Histogram], wanted: Collection[str], given: tuple[int, list[torch.Tensor]]
) -> dict[str, list[torch.Tensor]]:
    """By graph node, for each probe the gradients summed by sample and bin."""
    number, batch = given
    samples = len(batch[0]) if model.inputs[0].batched else 1
    generator = torch.Generator().manual_seed(number)
    values: dict[str, torch.Tensor] = {}

    def keep(node: Node, found: list[torch.Tensor]) -> list[torch.Tensor]:
        if node.name not in wanted or not is_float(node):
            return found
        # the input, or the first tensor behind integers such as an embedding's
        found = [v if v.requires_grad else v.clone().requires_grad_() for v in found]
        if found[0].dim() and len(found[0]) % samples == 0:
            values[node.name] = found[0]
        return found

    outputs = [o for o in model.run([batch], keep, differentiable=True)[0] if o.requires_grad and o.numel()]
    if not outputs or not values:
        return {}
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in values}
    bins = {name: _bins(value.detach(), histograms[name], samples) for name, value in values.items()}
    for found in random_gradients(outputs, list(values.values()), generator, PROBES):
        for name, gradient in zip(values, found, strict=True):
            if gradient is not None:
                summed = torch.bincount(bins[name], as_rows(gradient, 1)[0], minlength=samples * 2 * HALF)
                rows[name].append(summed.reshape(samples, 2 * HALF).float())
    return rows


def _bins(value: torch.Tensor, histogram: Histogram, samples: int) -> torch.Tensor:
    """Bin of every value, those of later samples further on."""
    index = (as_rows(value, samples) * (1.0 / histogram.width)).floor_().clamp_(-HALF, HALF - 1).to(torch.int32)
    offset = torch.arange(samples, dtype=torch.int32).unsqueeze(1) * 2 * HALF + HALF
    return (index + offset).reshape(-1)


def random_gradients(
    outputs: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], generator: torch.Generator, probes: int
) -> Iterator[tuple[torch.Tensor | None, ...]]:
    """Gradients of `probes` random directions in the outputs, one after the other."""
    for probe in range(probes if outputs else 0):
        with torch.enable_grad():
            moved = torch.stack([_random_direction(output, generator) for output in outputs]).sum()
        yield torch.autograd.grad(moved, wanted, retain_graph=probe < probes - 1, allow_unused=True)


def _random_direction(output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random direction v in an output, as v^T z, in units of the output's own power per sample."""
    signs = torch.randint(0, 2, output.shape, generator=generator).to(output.dtype) * 2 - 1
    flat = output.detach().reshape(len(output) if output.dim() else 1, -1)
    power = flat.norm(dim=1).clamp(min=1e-12).reshape(-1, *[1] * (output.dim() - 1))
    return torch.sum(output * signs / power)
