"""Inputs on which every batch norm reads the mean and variance that it has kept from training: ZeroQ (Cai et al. 2020,
equation 3).

What is optimized are not values but waves, long ones most: neighbours in images and signals are alike, and a step of a
wave changes what all layers read (Olah et al. 2017, "Feature Visualization"). What comes of that is in
`docs/decisions/rounding.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from edgeq.errors import UsageError
from edgeq.model.batches import side_by_side
from edgeq.model.execute import execute
from edgeq.model.graph import Node, Program, Value, itemsize
from edgeq.model.model import Model
from edgeq.progress import Progress

STEPS = 25
RATE = 0.2
"""Adam's at the start, of parameters that are of the size of one."""

STEEPNESS = 1.5
"""Amplitudes fall with this power of the frequency. Those of photographs fall with the first, but theirs are in phase
where there are edges: with 1, samples for ResNet-20 had half the deviation of its images, whose extremes were cut."""

BOUND = 3.0
"""Deviations that noise ends at, softly: inputs have bounds, and an outlier would set the range of all."""

CENTRED = 0.01
"""Nats that a mean of one deviation counts: filters that only see edges tell nothing of the mean, and then it is 0."""

ASKED = 1 / 8
"""Of the samples, how many are asked for an answer (as in DeepInversion, Yin et al. 2020): batch norms do not tell how
sure a network is of real inputs, and without these, outputs stay at half of their extremes, where integers end."""

SURE = 2.0
"""How many times as far that output is to stand out as its cross entropy asks: trained networks are surer than that."""

TOGETHER = 8
"""Samples whose statistics are pooled: one image need not look like the mean of all."""

MEMORY = 1 << 30
"""Bytes that the values of one pool may take; gradients need most of them."""

STARTS = [(10.0 ** (half / 2), offset) for half in range(-4, 7) for offset in (0.0, 1.0, -1.0, 2.0, -2.0)]
"""Deviations of the inputs that are tried first, and their means in units of them: some networks take pixels as they
are, others a hundredth of them."""

TRIED = 4
"""Samples to try them on."""


Read = Callable[[Sequence[torch.Tensor]], tuple[torch.Tensor, list[torch.Tensor]]]
"""Given the model's inputs [N, ...]: how far the batch norms read from what they have kept, and the outputs [N, M]."""


class Norm(NamedTuple):
    """What a batch norm has kept of each channel that it reads, [C] each; `epsilon` is part of the variance."""

    mean: torch.Tensor
    variance: torch.Tensor
    epsilon: float


def synthesize(model: Model, samples: int, seed: int, progress: Progress) -> tuple[list[np.ndarray], float]:
    """Makes samples. The same seed gives the same ones, whatever the number of threads.

    Args:
        seed: of the noise that they begin as.

    Returns:
        For each input of the model, [samples, ...]; and how far from what they have kept the batch norms read, in nats:
        the Kullback-Leibler divergence of normal distributions, the mean over channels.

    Raises:
        UsageError: the model has no batch norms or takes integers, or nothing finite comes of it.
    """
    program = model.reference()
    norms = batch_norms(program)
    if not norms:
        raise _refused("the model has no batch norms, whose statistics would tell what its inputs are like")
    if integers := [spec.name for spec in model.inputs if spec.dtype != "float32"]:
        raise _refused(f"only real numbers can be optimized, and the input {integers[0]!r} takes others")
    size = max(1, min(TOGETHER, samples, MEMORY // _bytes_of(program)))
    read = partial(_divergence, model, program, norms)
    start = _nearest(read, [_Pool(model, min(size, TRIED), start, seed) for start in STARTS])
    pools = [
        _Pool(model, min(size, samples - first), start, seed + first, asked=first >= samples * (1 - ASKED))
        for first in range(0, samples, size)
    ]
    losses: list[float] = []
    for step in range(STEPS):
        losses = []
        for loss in side_by_side(partial(_step, read), pools):
            losses.append(loss)
            progress.step(step * len(pools) + len(losses), STEPS * len(pools))
    columns = zip(*side_by_side(_Pool.inputs, pools), strict=True)
    inputs = [torch.cat(column).detach().numpy() for column in columns]
    left = sum(losses) / len(losses)
    if not (math.isfinite(left) and all(np.isfinite(array).all() for array in inputs)):
        raise _refused("on noise, the model computes values that are not finite")
    return inputs, left


def batch_norms(program: Program) -> dict[str, list[Norm]]:
    """What the batch norms of a program as it was loaded have kept, by the node that they read."""
    tensors, found = program.tensors(), dict[str, list[Norm]]()
    for node in program.nodes:
        if node.op == "call_function" and "batch_norm" in node.target:
            source, _, _, mean, variance = node.args[:5]
            if isinstance(mean, Node) and isinstance(variance, Node) and {mean.name, variance.name} <= tensors.keys():
                m, v = (torch.from_numpy(tensors[of.name]) for of in (mean, variance))
                # behind it, one of the overloads says whether cuDNN may be used
                epsilon = next(float(last) for last in reversed(node.args) if not isinstance(last, bool))
                found.setdefault(source.name, []).append(Norm(m, v + epsilon, epsilon))
    return found


class _Pool:
    """Samples that are made together: for each input, exp(stretch) * (offset + noise), and the noise is of waves.

    Stretch and offset are of a channel, and the samples share them.

    Args:
        start: exp(stretch) and offset before the first step.
        asked: whether outputs are to stand out.
    """

    def __init__(self, model: Model, size: int, start: tuple[float, float], seed: int, *, asked: bool = False) -> None:
        self.start = start
        self._asked = asked
        generator = torch.Generator().manual_seed(seed)
        self._fields: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, ...]]] = []
        for spec, array in zip(model.inputs, model.example, strict=True):
            shape = array.shape[1:] if spec.batched else array.shape
            channels = shape[: 1 if spec.batched else 2]
            positions = shape[len(channels) :]
            waves = torch.randn((size, *channels, *_waves(positions)), generator=generator)
            common = (*channels[-1:], *[1] * len(positions))
            offset, stretch = torch.full(common, start[1]), torch.full(common, math.log(start[0]))
            self._fields.append((waves, offset, stretch, positions))
        self._answers = torch.rand(size, generator=generator)
        parameters = [tensor.requires_grad_() for *tensors, _ in self._fields for tensor in tensors]
        self.adam = torch.optim.Adam(parameters, RATE)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.adam, STEPS)

    def inputs(self) -> list[torch.Tensor]:
        """For each input of the model, [N, ...]."""
        return [s.exp() * (o + _noise(w, positions)) for w, o, s, positions in self._fields]

    def prior(self) -> torch.Tensor:
        """What the inputs' means count, in nats."""
        return CENTRED * torch.stack([offset.square().mean() for _, offset, *_ in self._fields]).sum()

    def unanswered(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """What the outputs [N, M] count, in nats: if asked for, one random value of each is to stand out."""
        total = torch.zeros(())
        for output in outputs if self._asked else ():
            answers = (self._answers * output.shape[1]).long()
            total = total + torch.nn.functional.cross_entropy(output / SURE, answers)
        return total


def _waves(positions: Sequence[int]) -> tuple[int, ...]:
    """The shape of real and imaginary parts of all waves along some axes."""
    return (*positions[:-1], positions[-1] // 2 + 1, 2) if positions else ()


def _noise(waves: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
    """What waves of amplitude one add up to, with a deviation of about one."""
    noise = waves
    if positions:
        ways = [torch.fft.fftfreq(n, 1 / n) for n in positions[:-1]]
        ways.append(torch.fft.rfftfreq(positions[-1], 1 / positions[-1]))
        frequency = torch.stack(torch.meshgrid(*ways, indexing="ij")).square().sum(0).sqrt()
        share = frequency.clamp(min=1) ** -STEEPNESS
        share /= 2 * share.norm()  # nearly all of them stand for a wave and its mirror image, with two parts each
        axes = tuple(range(-len(positions), 0))
        noise = torch.fft.irfftn(torch.view_as_complex(waves) * share, s=tuple(positions), dim=axes, norm="forward")
    return BOUND * torch.tanh(noise / BOUND)


def _step(read: Read, pool: _Pool) -> float:
    """A step of a pool's samples; their divergence before it."""
    pool.adam.zero_grad()
    loss, outputs = read(pool.inputs())
    (loss + pool.prior() + pool.unanswered(outputs)).backward()  # type: ignore[no-untyped-call]
    pool.adam.step()
    pool.schedule.step()
    return loss.item()


def _nearest(read: Read, pools: Sequence[_Pool]) -> tuple[float, float]:
    """The start of the pool on which batch norms read most nearly what they have kept."""

    def loss(pool: _Pool) -> float:
        with torch.no_grad():
            found, _ = read(pool.inputs())
            total = (found + pool.prior()).item()
        return total if math.isfinite(total) else math.inf

    losses = list(side_by_side(loss, pools))
    return pools[losses.index(min(losses))].start


def _divergence(
    model: Model, program: Program, norms: dict[str, list[Norm]], inputs: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """How far the batch norms read from what they have kept, in nats; and the outputs, [N, M] each."""
    terms: list[torch.Tensor] = []

    def compare(node: Node, values: list[Any]) -> list[Any]:
        for kept in norms.get(node.name, ()):
            means, variances = map(torch.stack, zip(*map(_moments, values), strict=True))
            mean = means.mean(0)
            variance = variances.mean(0) + (means - mean).square().mean(0) + kept.epsilon
            ratio = variance / kept.variance
            terms.append((ratio - 1 - ratio.log() + (mean - kept.mean).square() / kept.variance).mean() / 2)
        return values

    batches = list(_batches(model, inputs))
    columns = zip(*execute(program, batches, compare, differentiable=True), strict=True)
    outputs = [torch.stack(column).reshape(len(inputs[0]), -1) for column in columns if column[0].is_floating_point()]
    return torch.stack(terms).mean(), outputs


def _moments(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each channel, [N, C, ...] to [C] each."""
    mean, variance = _Moments.apply(value)  # type: ignore[no-untyped-call]
    return mean, variance


class _Moments(torch.autograd.Function):
    """Their gradients in one pass: those that PyTorch puts together take as long as the convolutions."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        axes = [axis for axis in range(value.dim()) if axis != 1]
        mean = value.mean(axes, keepdim=True)
        variance = (value - mean).square_().mean(axes)
        ctx.save_for_backward(value, mean)
        return mean.flatten(), variance

    @staticmethod
    def backward(ctx: Any, of_mean: torch.Tensor, of_variance: torch.Tensor) -> torch.Tensor:
        value, mean = ctx.saved_tensors
        slope = (2 * mean.numel() / value.numel() * of_variance).reshape(mean.shape)
        level = (mean.numel() / value.numel() * of_mean).reshape(mean.shape) - slope * mean
        return torch.addcmul(level, value, slope)


def _batches(model: Model, inputs: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    if model.batchable:
        yield list(inputs)
        return
    for i in range(len(inputs[0])):
        yield [x[i : i + 1] if spec.batched else x[i] for spec, x in zip(model.inputs, inputs, strict=True)]


def _bytes_of(program: Program) -> int:
    """Bytes of all values for one sample: a free size is the batch."""
    values = [node.value for node in program.nodes if node.op == "call_function" and isinstance(node.value, Value)]
    return 1 + sum(math.prod(n for n in v.shape if isinstance(n, int)) * itemsize(v.dtype) for v in values)


def _refused(cause: str) -> UsageError:
    return UsageError(cause, remedy="give real samples", where="--calib synthetic")
