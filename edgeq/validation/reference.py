"""What the float model answers: what every artefact is compared with."""

from __future__ import annotations

import torch

from edgeq.data.dataset import Dataset
from edgeq.model.batches import batches, side_by_side
from edgeq.model.execute import execute
from edgeq.model.model import Model
from edgeq.progress import Progress
from edgeq.validation.measure import Array


def reference_outputs(model: Model, data: Dataset, progress: Progress) -> list[Array]:
    """The float model's outputs, [N, ...] each, from the program as it was loaded: not folded, not exported."""
    program = model.reference()

    def run(batch: list[torch.Tensor]) -> tuple[int, list[torch.Tensor]]:
        samples = len(batch[0]) if model.inputs[0].batched else 1
        factor = 1 if model.dynamic_batch else samples
        return samples, execute(program, [batch], batch_factors=[factor])[0]

    parts: list[list[torch.Tensor]] = []
    done = 0
    for samples, outputs in side_by_side(run, batches(model, data.inputs)):
        parts.append(outputs)
        done += samples
        progress.step(done, len(data))
    return [_stack([part[i] for part in parts], len(data)) for i in range(len(parts[0]))]


def _stack(parts: list[torch.Tensor], samples: int) -> Array:
    whole = torch.cat(parts) if sum(len(p) if p.dim() else 1 for p in parts) == samples else torch.stack(parts)
    return whole.numpy()
