"""Gradients that travel between processes as integers: a communication hook of DistributedDataParallel.

Each process rounds its gradients and sends to every other the part that this one sums up; the means are rounded and
sent to all. What rounding took away is added to the gradients of the next step (Seide et al. 2014, "1-Bit Stochastic
Gradient Descent and its Application to Data-Parallel Distributed Training of Speech DNNs", section 3.1; Karimireddy et
al. 2019, "Error Feedback Fixes SignSGD", algorithm 2).
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from edgeq.training.together import Team

BITS = {"float32": 32, "int8": 8, "int4": 4}
"""Of a gradient on its way, by the names that users give."""

GROUP = 512
"""Gradients that share a scale."""


class Gradients:
    """What the hook keeps from one step to the next.

    Attributes:
        sent: bytes that this process sent to others.
        float32: bytes that it would have sent of float32, by the same two steps.
    """

    def __init__(self, bits: int, team: Team) -> None:
        self.bits, self.team = bits, team
        self.sent = self.float32 = 0
        self.left: dict[int, torch.Tensor] = {}

    def mean(self, parameters: list[torch.Tensor], gradients: torch.Tensor) -> torch.Tensor:
        """The mean of all processes' gradients, as far as it was sent.

        Args:
            parameters: whose gradients they are; what is left over is kept for each, since DistributedDataParallel puts
                them together anew after the first step.
            gradients: float32 [n].
        """
        rank, size = self.team
        left = [self.left.get(id(one), torch.zeros(one.numel())) for one in parameters]
        each = -(-len(gradients) // size)  # of one process
        whole = torch.nn.functional.pad(gradients + torch.cat(left), (0, each * size - len(gradients)))
        parts = whole.reshape(size, each)
        packed = pack(parts, self.bits)
        received = torch.empty_like(packed)
        dist.all_to_all_single(received, packed)
        mean = unpack(received, each, self.bits).mean(0, keepdim=True)
        rounded = pack(mean, self.bits)
        gathered = [torch.empty_like(rounded) for _ in range(size)]
        dist.all_gather(gathered, rounded)
        found = unpack(torch.cat(gathered), each, self.bits)
        lost = parts - unpack(packed, each, self.bits)
        lost[rank] += size * (mean - found[rank])[0]  # it was this process that rounded the mean of these
        pieces = torch.split(lost.flatten()[: len(gradients)], [one.numel() for one in parameters])
        self.left |= {id(one): piece.clone() for one, piece in zip(parameters, pieces, strict=True)}
        self.sent += 2 * (size - 1) * packed.shape[1]
        self.float32 += 2 * (size - 1) * 4 * each
        return found.flatten()[: len(gradients)]


def hook(state, bucket):  # type: ignore[no-untyped-def]  # PyTorch refuses annotations that are strings
    """As `DistributedDataParallel.register_comm_hook` takes it, for a `torch.distributed.GradBucket`."""
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(state.mean(bucket.parameters(), bucket.buffer()))
    return done


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Rows of numbers, [rows, n], as integers with a scale for each group: uint8 [rows, bytes]."""
    high = 2 ** (bits - 1) - 1
    rows, count = values.shape
    grouped = torch.nn.functional.pad(values, (0, -count % GROUP)).reshape(rows, -1, GROUP)
    scale = (grouped.abs().amax(2) / high).to(torch.bfloat16)
    steps = torch.where(scale[..., None] > 0, grouped / scale[..., None].float(), 0)
    integers = steps.round().clamp(-high, high).to(torch.int8).reshape(rows, -1)[:, :count]
    if bits == 4:
        pairs = (torch.nn.functional.pad(integers, (0, count % 2)) + 8).to(torch.uint8)
        integers = pairs[:, ::2] | pairs[:, 1::2] << 4
    return torch.cat([scale.view(torch.uint8), integers.view(torch.uint8)], 1)


def unpack(packed: torch.Tensor, count: int, bits: int) -> torch.Tensor:
    """The numbers that were packed, float32 [rows, count]."""
    groups = -(-count // GROUP)
    scale = packed[:, : 2 * groups].clone(memory_format=torch.contiguous_format).view(torch.bfloat16).float()
    stored = packed[:, 2 * groups :]
    if bits == 4:
        integers = torch.stack([stored & 15, stored >> 4], 2).flatten(1)[:, :count].float() - 8
    else:
        integers = stored.view(torch.int8).float()
    return integers * scale.repeat_interleave(GROUP, 1)[:, :count]
