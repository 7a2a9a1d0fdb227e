"""Steps of fine-tuning, in an order that the seed decides: an interrupted run goes on to the same numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgeq.errors import UsageError
from edgeq.language.tuning.adapted import Adapted
from edgeq.training.loop import BETWEEN, Epoch, State

AT_ONCE = 1 << 25
"""Logits that are computed together: a step of many texts takes them in parts, whose gradients add up."""


@dataclass(frozen=True)
class Pace:
    """How long is learned, and how fast.

    Attributes:
        epochs: passes over the texts.
        batch: texts of a step.
        rate: of AdamW (Loshchilov and Hutter 2017, "Decoupled Weight Decay Regularization"), without decay; it falls to
            nothing along half a cosine.
        seed: of the order of texts, and of all that is random.
    """

    epochs: int
    batch: int
    rate: float
    seed: int = 0


class Heard(NamedTuple):
    """Who hears of it.

    Attributes:
        keep: is given the state to go on from, every now and then.
        tell: hears of each step: how many are done, and of how many.
        note: hears of each epoch, in words.
    """

    keep: Callable[[State], None]
    tell: Callable[[int, int], None]
    note: Callable[[str], None]


def learn(
    adapted: Adapted, texts: Tensor, held_out: Tensor, pace: Pace, heard: Heard, state: State | None = None
) -> list[Epoch]:
    """Learns to foretell texts, and leaves the model as the texts that are held out like it best.

    Args:
        texts, held_out: tokens, int64 [texts, length].
        state: to go on from; None to begin.

    Returns:
        What was seen after each epoch, and before the first; losses are nats of a token.

    Raises:
        UsageError: the loss is not finite any more.
    """
    model, learned = adapted.model, adapted.learned
    optimizer = torch.optim.AdamW(learned.values(), lr=pace.rate, weight_decay=0.0)
    begun = time.perf_counter()
    if state is None:
        now = judged(model, held_out)
        state = State(0, {}, {}, {}, _copy(adapted), [Epoch(0, None, now, None, time.perf_counter() - begun)])
        heard.note(told(state.epochs[0]))
    else:
        begun -= state.seconds
        _set(adapted, state.view)
        optimizer.load_state_dict(state.optimizer)
    each = math.ceil(len(texts) / pace.batch)
    total = each * pace.epochs
    kept = time.perf_counter()
    while state.step < total:
        epoch, number = divmod(state.step, each)
        for group in optimizer.param_groups:
            group["lr"] = pace.rate * 0.5 * (1 + math.cos(math.pi * state.step / total))
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(_seed(pace.seed, epoch)))
        torch.manual_seed(_seed(pace.seed, state.step))
        optimizer.zero_grad()
        loss = _gradients(model, texts[order[number * pace.batch : (number + 1) * pace.batch]])
        if not math.isfinite(loss):
            cause = f"the loss is {loss} at step {state.step + 1}"
            raise UsageError(cause, where="--rate", remedy="take a lower --rate")
        optimizer.step()
        state.losses.append(loss)
        state.step += 1
        heard.tell(state.step, total)
        if state.step % each == 0:
            now = judged(model, held_out)
            if now < min(one.held_out for one in state.epochs):
                state.best = _copy(adapted)
            mean = sum(state.losses) / len(state.losses)
            state.epochs.append(Epoch(epoch + 1, mean, now, None, time.perf_counter() - begun))
            heard.note(told(state.epochs[-1]))
            state.losses = []
        if time.perf_counter() - kept > BETWEEN or state.step == total:
            state.view, state.optimizer = _copy(adapted), optimizer.state_dict()
            state.seconds = time.perf_counter() - begun
            heard.keep(state)
            kept = time.perf_counter()
    _set(adapted, state.best)
    return state.epochs


def judged(model: nn.Module, texts: Tensor) -> float:
    """Nats of a token, of all but the first of each text.

    Args:
        texts: tokens, int64 [texts, length].
    """
    model.eval()
    with torch.no_grad():
        return sum(float(_loss(model, part)) * len(part) for part in _parts(model, texts)) / len(texts)


def told(epoch: Epoch) -> str:
    """For people."""
    loss = "" if epoch.loss is None else f"loss {epoch.loss:.4f}, "
    return f"epoch {epoch.number}: {loss}perplexity {math.exp(min(epoch.held_out, 700)):.3f} of held-out text"


def _gradients(model: nn.Module, texts: Tensor) -> float:
    """The loss of a step, whose gradients are left in what learns."""
    model.train()
    total = 0.0
    for part in _parts(model, texts):
        loss = _loss(model, part) * (len(part) / len(texts))
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _loss(model: nn.Module, texts: Tensor) -> Tensor:
    logits = model(input_ids=texts, use_cache=False).logits[:, :-1].float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), texts[:, 1:].flatten())


def _parts(model: nn.Module, texts: Tensor) -> tuple[Tensor, ...]:
    words = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    return torch.split(texts, max(1, AT_ONCE // (texts.shape[1] * words)))


def _seed(seed: int, number: int) -> int:
    """For what is random in one step or epoch, whatever came before it."""
    return (seed * 1_000_003 + number) % 2**63


def _copy(adapted: Adapted) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in adapted.learned.items()}


def _set(adapted: Adapted, values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, one in adapted.learned.items():
            one.copy_(values[name])
