"""What a language model does on a device: how well it foretells a text, what it writes, and how fast."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeq.devices.artifact import Candidate, ColdStart, Inputs
from edgeq.devices.device import Device
from edgeq.progress import Progress

Tokens = Sequence[int]


class Foretold(NamedTuple):
    """How well texts were foretold: column i is about the token at position `first + 1 + i`.

    Attributes:
        nll: float32 [texts, positions - 1 - first], negative natural logarithms of the tokens' probabilities.
        best: int32 of the same shape, the likeliest token in that place.
    """

    nll: NDArray[np.float32]
    best: NDArray[np.int32]


class Written(NamedTuple):
    """What a model wrote after a prompt: its tokens, without the one that stopped it, and whether there was one."""

    tokens: tuple[int, ...]
    stopped: bool


class Likelihood(NamedTuple):
    """Of a continuation: the natural logarithm of its probability, and whether it is what greedy decoding gives."""

    logarithm: float
    greedy: bool


class Speed(NamedTuple):
    """Of an artefact, in seconds; the same round is the same row of all that were timed together.

    Attributes:
        prefill: float64 [rounds], from a prompt to the first token.
        decode: float64 [rounds, new], of each token that followed.
    """

    prefill: NDArray[np.float64]
    decode: NDArray[np.float64]


def negative_log_likelihood(
    device: Device,
    artifact: Candidate,
    tokens: NDArray[np.integer[Any]],
    *,
    first: int = 0,
    threads: int = 0,
    progress: Progress | None = None,
) -> Foretold:
    """How well a model foretells texts. They are read in parts of bounded size, each text from an empty cache.

    Args:
        tokens: [texts, positions].
        first: the position whose successor is the first to be scored; those before give context only.
        threads: 0 for every core of the device.

    Raises:
        DeviceError: the runtime refused the artefact or the tokens, or crashed; or the logits are not finite.
    """
    arrays = {"tokens": np.ascontiguousarray(tokens, np.int32)}
    with device.job("nll", {"artifact": (artifact, arrays)}, threads, progress, first=first) as (folder, _):
        return Foretold(np.load(folder / "nll.npy"), np.load(folder / "best.npy"))


def loglikelihoods(
    device: Device,
    artifact: Candidate,
    pairs: Sequence[tuple[Tokens, Tokens]],
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> list[Likelihood]:
    """How likely each continuation is after its context.

    Args:
        pairs: contexts and continuations, of one token or more each.

    Raises:
        DeviceError: the runtime refused the artefact or the tokens, or crashed; or the logits are not finite.
    """
    asked = [[_listed(context), _listed(continuation)] for context, continuation in pairs]
    with device.job("loglikelihood", {"artifact": (artifact, {})}, threads, progress, pairs=asked) as (_, result):
        return [Likelihood(float(one["sum"]), bool(one["greedy"])) for one in result["loglikelihoods"]]


def generate(
    device: Device,
    artifact: Candidate,
    prompts: Sequence[Tokens],
    *,
    most: int,
    stop: Tokens = (),
    threads: int = 0,
    progress: Progress | None = None,
    heard: Callable[[int, int], None] | None = None,
) -> list[Written]:
    """What a model writes after each prompt, with the likeliest token every time.

    Args:
        most: no more new tokens than that.
        stop: tokens that end a text.
        heard: is told of each token as it comes: the prompt's index, and the token.

    Raises:
        DeviceError: the runtime refused the artefact or the tokens, or crashed; or the logits are not finite.
    """

    def hear(line: str) -> None:
        if heard is not None and line.startswith('{"token"'):
            with suppress(ValueError):  # the runtime's own, or cut off: how the worker ended tells more
                prompt, token = json.loads(line)["token"]
                heard(prompt, token)

    asked: dict[str, Any] = {"prompts": [_listed(one) for one in prompts], "most": most, "stop": _listed(stop)}
    with device.job("generate", {"artifact": (artifact, {})}, threads, progress, hear=hear, **asked) as (_, result):
        found = zip(result["generated"], result["stopped"], strict=True)
        return [Written(tuple(tokens), bool(stopped)) for tokens, stopped in found]


def speed(
    device: Device,
    artifacts: Mapping[str, Candidate],
    prompt: Tokens,
    *,
    new: int = 32,
    context: int | None = None,
    rounds: int = 10,
    seconds: float = 1e9,
    fewest: int = 3,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, Speed]:
    """Times several artefacts of one runtime, in turns in one process; the order turns round every round.

    Args:
        artifacts: by name, all of one runtime.
        prompt: what is read in one call until the first token is there.
        new: tokens that are timed one by one after that.
        context: positions before the first of them, if not the prompt's: the prompt, repeated or cut.
        rounds: no more than that.
        seconds: after so long no further round begins, but there are `fewest` at least.

    Raises:
        DeviceError: the device is emulated, the runtime refused or crashed.
        UsageError: the artefacts are not of one runtime.
    """
    device.refuse_emulated("time is not latency")
    asked: dict[str, Any] = {"prompt": _listed(prompt), "new": new, "context": context or len(prompt)}
    limits: dict[str, Any] = {"rounds": rounds, "seconds": seconds, "fewest": fewest}
    alone: dict[str, tuple[Candidate, Inputs]] = {name: (artifact, {}) for name, artifact in artifacts.items()}
    with device.job("tokens_per_second", alone, threads, progress, **asked, **limits) as (_, result):
        return {name: Speed(*(np.array(one[key]) for key in Speed._fields)) for name, one in result["speed"].items()}


def peak(device: Device, artifact: Candidate, prompt: Tokens, *, threads: int = 1, runs: int = 1) -> ColdStart:
    """The memory and the start of a model, in fresh processes: the first answer is the first token after the prompt,
    and a few tokens more are read before the most that was ever resident is told.

    Args:
        runs: processes; every figure is the median over them.

    Raises:
        DeviceError: the device is emulated, the runtime refused or crashed.
    """
    device.refuse_emulated("time and memory are not the device's")
    found: list[dict[str, float]] = []
    for _ in range(runs):
        with device.job("peak", {"artifact": (artifact, {})}, threads, prompt=_listed(prompt)) as (_folder, result):
            found.append(result)
    return ColdStart.median_of(found)


def _listed(tokens: Tokens) -> list[int]:
    return [int(token) for token in tokens]
