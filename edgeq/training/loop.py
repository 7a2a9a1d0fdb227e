"""Steps of training, in an order that the seed decides: an interrupted run goes on to the same numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from edgeq.errors import UsageError
from edgeq.training.augment import Augment
from edgeq.training.objective import Aims, loss_of, teacher
from edgeq.training.together import ALONE, Team
from edgeq.training.view import View

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""By the names that users give."""

BETWEEN = 60.0
"""Seconds between two checkpoints, at least."""


class Data(NamedTuple):
    """Samples in memory.

    Attributes:
        inputs: one tensor per input, [N, ...].
        labels: int64, [N, ...]; None where there are none.
    """

    inputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor | None

    def at(self, places: torch.Tensor) -> Data:
        return Data(tuple(x[places] for x in self.inputs), None if self.labels is None else self.labels[places])

    def __len__(self) -> int:
        return len(self.inputs[0])


@dataclass(frozen=True)
class Steps:
    """How long is trained, and how fast.

    Attributes:
        epochs: passes over the data.
        batch: samples of a step.
        rate: of parameters, in parts of their size; it falls to nothing along half a cosine (Loshchilov and Hutter
            2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", equation 5).
        scale_rate: of the logarithms of scales.
        patience: epochs after which it is stopped if the samples that are held out speak for none of them; 0 for never.
        seed: of the order of samples, and of all that is random.
        autocast: products are computed in `bfloat16` or `float16` (Micikevicius et al. 2018, "Mixed Precision
            Training"), with the loss scaled for the latter; what is rounded is so in float32. None for all in float32.
    """

    epochs: int = 10
    batch: int = 128
    rate: float = 0.01
    scale_rate: float = 0.01
    patience: int = 0
    seed: int = 0
    autocast: str | None = None


class Epoch(NamedTuple):
    """
    Attributes:
        number: from 1; 0 for what was there before anything was learned.
        loss: mean of the steps; None before the first.
        held_out: loss on the samples that are held out.
        correct: part of them whose class is right, where they have labels.
        seconds: since the beginning.
    """

    number: int
    loss: float | None
    held_out: float
    correct: float | None
    seconds: float


@dataclass
class State:
    """All that a run needs to go on: plain tensors and numbers.

    Attributes:
        step: how many were taken.
        view, optimizer, scaler: as they are.
        best: the view as the samples that are held out like it best.
        epochs: so far.
        losses: of the steps of this epoch.
        seconds: that were spent in earlier runs.
    """

    step: int
    view: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    best: dict[str, Any]
    epochs: list[Epoch] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


class Task(NamedTuple):
    """
    Attributes:
        learned, held_out: the samples to learn from, and those that judge.
        keep: is given the state to go on from, every now and then.
        tell: hears of each step: how many are done, of how many, and the last loss.
        note: hears of each epoch, in words.
        team: the processes that train together: each takes its part of every step, and the first one judges.
    """

    view: View
    aims: Aims
    learned: Data
    held_out: Data
    steps: Steps
    augment: Augment | None
    keep: Callable[[State], None]
    tell: Callable[[int, int, float], None]
    note: Callable[[str], None]
    team: Team = ALONE


def train(task: Task, state: State | None = None, module: torch.nn.Module | None = None) -> list[Epoch]:
    """Trains a view, and leaves it as the samples that are held out like it best.

    Args:
        state: to go on from; None to begin.
        module: what runs the view and brings the gradients of several processes together, if not the view itself.

    Returns:
        What was seen after each epoch, and before the first.

    Raises:
        UsageError: the loss is not finite any more.
    """
    view, steps = task.view, task.steps
    optimizer = torch.optim.Adam(view.rates(steps.rate, steps.scale_rate))
    scaler = torch.amp.GradScaler("cpu", enabled=steps.autocast == "float16")
    rates = [group["lr"] for group in optimizer.param_groups]
    begun = time.perf_counter()
    if state is None:
        state = State(0, {}, {}, {}, _copy(view.state_dict()), [_judged(task, 0, None, begun)])
    else:
        begun -= state.seconds
        view.load_state_dict(state.view)
        optimizer.load_state_dict(state.optimizer)
        scaler.load_state_dict(state.scaler)
    per_epoch = math.ceil(len(task.learned) / steps.batch)
    total = per_epoch * steps.epochs
    kept = time.perf_counter()
    while state.step < total and not _hopeless(state.epochs, steps.patience):
        epoch, number = divmod(state.step, per_epoch)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * state.step / total))
        places = _order(len(task.learned), steps.seed, epoch)[number * steps.batch : (number + 1) * steps.batch]
        state.losses.append(_step(task, module or view, optimizer, scaler, task.learned.at(places), state.step))
        state.step += 1
        task.tell(state.step, total, state.losses[-1])
        if state.step % per_epoch == 0:
            now = _judged(task, epoch + 1, task.team.mean(sum(state.losses) / len(state.losses)), begun)
            if now.held_out < min(one.held_out for one in state.epochs):
                state.best = _copy(view.state_dict())
            state.epochs.append(now)
            task.note(told(now))
            state.losses = []
        if time.perf_counter() - kept > BETWEEN or state.step == total:
            state.view, state.optimizer, state.scaler = view.state_dict(), optimizer.state_dict(), scaler.state_dict()
            state.seconds = time.perf_counter() - begun
            if task.team.leads:
                task.keep(state)
            kept = time.perf_counter()
    view.load_state_dict(state.best)
    return state.epochs


def told(epoch: Epoch) -> str:
    """For people. It is the network that learns which was judged, and no artefact."""
    loss = "" if epoch.loss is None else f"loss {epoch.loss:.4f}, "
    correct = "" if epoch.correct is None else f", {100 * epoch.correct:.1f} % right"
    return f"epoch {epoch.number}: {loss}held out {epoch.held_out:.4f}{correct} (simulated)"


def _step(
    task: Task,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batch: Data,
    number: int,
) -> float:
    task.view.train()
    inputs = batch.inputs
    if task.augment is not None:
        inputs = task.augment(inputs, torch.Generator().manual_seed(_seed(task.steps.seed, number)))
    mine, weight = task.team.part(len(batch))
    inputs, labels = Data(inputs, batch.labels).at(mine)
    real = teacher(task.view.model, task.aims, inputs)
    with _autocast(task.steps):
        found = module(*inputs)
    loss = weight * loss_of(task.view.model, task.aims, [value.float() for value in found], real, labels)
    if not loss.isfinite():
        raise UsageError(
            f"the loss is {float(loss)} at step {number + 1}", remedy="take a lower --rate and --scale-rate"
        )
    optimizer.zero_grad()
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    scaler.step(optimizer)
    scaler.update()
    return float(loss.detach())


def _autocast(steps: Steps) -> torch.autocast:
    dtype = AUTOCAST[steps.autocast] if steps.autocast else None
    return torch.autocast("cpu", dtype, enabled=dtype is not None)


def _judged(task: Task, number: int, loss: float | None, begun: float) -> Epoch:
    """By the samples that are held out."""
    return task.team.same(lambda: _seen(task, number, loss, begun))


def _seen(task: Task, number: int, loss: float | None, begun: float) -> Epoch:
    task.view.eval()
    total, right = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(task.held_out), task.steps.batch):
            part = task.held_out.at(torch.arange(start, min(start + task.steps.batch, len(task.held_out))))
            found, real = task.view(*part.inputs), teacher(task.view.model, task.aims, part.inputs)
            total += float(loss_of(task.view.model, task.aims, found, real, part.labels)) * len(part)
            if part.labels is not None:
                right += int((found[0].argmax(1) == part.labels).sum())
    correct = None if task.held_out.labels is None else right / task.held_out.labels.numel()
    return Epoch(number, loss, total / len(task.held_out), correct, time.perf_counter() - begun)


def _hopeless(epochs: Sequence[Epoch], patience: int) -> bool:
    best = min(range(len(epochs)), key=lambda i: epochs[i].held_out)
    return patience > 0 and len(epochs) - 1 - best >= patience


def _order(count: int, seed: int, epoch: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(_seed(seed, epoch)))


def _seed(seed: int, number: int) -> int:
    """For what is random in one step or epoch, whatever came before it."""
    return (seed * 1_000_003 + number) % 2**63


def _copy(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in state.items()}
