"""Language models on a device: tokens in, what comes next out, with a cache of what was read.

A runtime's file says how one of its artefacts is read (`Runtime.decoder`); what is asked of it is the same everywhere.
"""

from __future__ import annotations

import gc
import json
import time
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Sequence, Tuple

import numpy as np

from edgeq.on_device.worker import Runtime, Setting, WorkerError, refuse_options, report, resident_bytes

CHUNK = 128
"""Positions that are read in one call where nobody times it: the logits of all of a long text would fill the memory."""

BLOCK = 1 << 20
"""Logits that are looked at together in float64."""

FEW = 4
"""Tokens that follow a prompt before the peak of memory is read."""


class Decoder(NamedTuple):
    """A language model that is ready to read. One sequence at a time.

    `reset` forgets what was read, and makes room for so many positions, which is all that follow. `step` reads tokens,
    int64 [1, T], behind those before, and gives the logits of what comes after each, float32 [T, words], which the
    next step may overwrite. `words` is how many tokens there are, -1 where the file does not say.
    """

    reset: Callable[[int], None]
    step: Callable[[np.ndarray], np.ndarray]
    words: int


class Roles(NamedTuple):
    """What the inputs of a decoder's file are: names, empty where it has none; `rest` are those of the cache."""

    tokens: str
    mask: str
    positions: str
    beams: str
    rest: List[str]


def roles_of(inputs: Sequence[str], called: Mapping[str, str]) -> Roles:
    """By the names that exporters agree on, or that a file beside the model gives them.

    Args:
        inputs: all of the model's.
        called: by the agreed name, the file's own one.
    """
    told = [called.get(name, name) for name in ("input_ids", "attention_mask", "position_ids", "beam_idx")]
    if told[0] not in inputs:
        raise WorkerError("input", "this is no decoder of tokens: none of its inputs %s is input_ids" % list(inputs))
    tokens, mask, positions, beams = [name if name in inputs else "" for name in told]
    return Roles(tokens, mask, positions, beams, [name for name in inputs if name not in told])


def scalars(roles: Roles, tokens: np.ndarray, past: int) -> Dict[str, np.ndarray]:
    """What a step gives to every input but the cache, int64; [1] for beams, [1, positions] for the others.

    Args:
        tokens: int64 [1, T].
        past: how many were read before.
    """
    last = past + tokens.shape[1]
    found = {
        roles.tokens: np.ascontiguousarray(tokens),
        roles.mask: np.ones((1, last), np.int64),
        roles.positions: np.arange(past, last, dtype=np.int64)[None],
        roles.beams: np.zeros(1, np.int64),
    }
    found.pop("", None)
    return found


def log_likelihoods(logits: np.ndarray, targets: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Natural logarithms of the probabilities of some words after each position, float64 [rows, K], and the likeliest
    word, int32 [rows].

    Args:
        logits: float32 [rows, words].
        targets: [rows, K].
    """
    count = max(1, BLOCK // logits.shape[1])
    found, best = np.empty(targets.shape), np.empty(len(logits), np.int32)
    for at in range(0, len(logits), count):
        rows, wanted = logits[at : at + count], targets[at : at + count]
        best[at : at + count] = first = rows.argmax(axis=1)  # a NaN, where there is one
        top = np.take_along_axis(rows, first[:, None], axis=1).astype(np.float64)
        if not np.isfinite(top).all():
            raise WorkerError("runtime", "the logits are not finite")
        total = np.exp(rows - top).sum(axis=1, keepdims=True)
        found[at : at + count] = np.take_along_axis(rows, wanted, axis=1) - top - np.log(total)
    if not np.isfinite(found).all():
        raise WorkerError("runtime", "the logits are not finite")
    return found, best


class Score(NamedTuple):
    """What a decoder makes of a text: by position, the log-likelihood of the word that follows, [read - 1 - first], and
    the likeliest one there, [read - first]; and the log-likelihoods of some words after the last one, [K]."""

    within: np.ndarray
    best: np.ndarray
    ends: np.ndarray


def score(
    decoder: Decoder, read: np.ndarray, ends: np.ndarray, first: int, done: Callable[[int], None], chunk: int = CHUNK
) -> Score:
    """Reads a text in parts.

    Args:
        read: int64 [T].
        ends: int64 [K], words that may come after it.
        first: the position whose successor is the first to be scored; those before give context only.
        done: is told of positions that were read, as they are.
    """
    decoder.reset(len(read))
    following = np.append(read[1:], ends[0])
    within, best, last = [], [], np.empty(0)
    for at in range(0, len(read), chunk):
        part = read[None, at : at + chunk]
        logits = decoder.step(part)
        skipped = max(0, first - at)
        if skipped < len(logits):
            told, likeliest = log_likelihoods(logits[skipped:], following[at + skipped : at + chunk, None])
            within.append(told[:, 0])
            best.append(likeliest)
        if at + chunk >= len(read):
            last = log_likelihoods(logits[-1:], ends[None])[0][0]
        done(part.shape[1])
    return Score(np.concatenate(within)[:-1], np.concatenate(best), last)


def next_word(logits: np.ndarray) -> int:
    """The likeliest one after the last position; the first of several."""
    found = int(logits[-1].argmax())
    if not np.isfinite(logits[-1, found]):
        raise WorkerError("runtime", "the logits are not finite")
    return found


def feed(decoder: Decoder, tokens: np.ndarray) -> np.ndarray:
    """Reads a text in parts, untimed; the logits of the last one.

    Args:
        tokens: int64 [1, T].
    """
    for at in range(0, tokens.shape[1], CHUNK):
        logits = decoder.step(tokens[:, at : at + CHUNK])
    return logits


def run_nll(decoder: Decoder, tokens: np.ndarray, first: int) -> Dict[str, Any]:
    """Writes the negative log-likelihood of each token that follows another, float32, and the likeliest one in its
    place, int32; both [N, T - 1 - first].

    Args:
        tokens: integers [N, T].
        first: the position whose successor is the first to be scored.
    """
    if tokens.ndim != 2 or not len(tokens) or tokens.shape[1] < 2 or tokens.dtype.kind not in "iu":
        message = "tokens are integers [N, T] of two positions or more, given %s of shape %s"
        raise WorkerError("input", message % (tokens.dtype.name, list(tokens.shape)))
    if not 0 <= first < tokens.shape[1] - 1:
        raise WorkerError("input", "no token is scored: first is %d of %d positions" % (first, tokens.shape[1]))
    count, length = len(tokens), tokens.shape[1] - 1
    told = _Count(count * length)
    shape = (count, length - first)
    nll, best = np.empty(shape, np.float32), np.empty(shape, np.int32)
    for row in range(count):
        text = _checked(decoder, tokens[row])
        one = score(decoder, text[:-1], text[-1:], first, told.add)
        nll[row] = -np.append(one.within, one.ends)
        best[row] = one.best
    np.save("nll.npy", nll)
    np.save("best.npy", best)
    return {"files": ["nll.npy", "best.npy"]}


def run_loglikelihood(decoder: Decoder, pairs: Sequence[Tuple[List[int], List[int]]]) -> Dict[str, Any]:
    """How likely each continuation is after its context, and whether it is what the model itself would have said.

    Texts that differ in their last token only, as answers of one token do, are read once.
    """
    groups: Dict[bytes, List[int]] = {}
    texts = []
    for number, (context, continuation) in enumerate(pairs):
        if not context or not continuation:
            raise WorkerError("input", "pair %d: a context and a continuation have one token or more" % number)
        texts.append(_checked(decoder, [*context, *continuation]))
        groups.setdefault(texts[-1][:-1].tobytes(), []).append(number)
    told = _Count(sum(len(texts[some[0]]) - 1 for some in groups.values()))
    found: List[Dict[str, Any]] = [{} for _ in pairs]
    for some in groups.values():
        first = min(len(pairs[number][0]) for number in some) - 1
        ends = np.array([texts[number][-1] for number in some])
        one = score(decoder, texts[some[0]][:-1], ends, first, told.add)
        for number, end in zip(some, one.ends):  # noqa: B905  (Python 3.8 has no `strict`)
            continuation = pairs[number][1]
            own = len(continuation) - 1  # those before the last one
            total = one.within[len(one.within) - own :].sum() + end
            greedy = one.best[len(one.best) - own - 1 :].tolist() == continuation
            found[number] = {"sum": float(total), "greedy": greedy}
    return {"loglikelihoods": found}


def run_generate(
    decoder: Decoder, prompts: Sequence[List[int]], most: int, stop: Sequence[int], told: bool = True
) -> Dict[str, Any]:
    """The likeliest token after the likeliest token, each told on a line of its own as it comes: {"token": [PROMPT,
    ID]}. A token that stops is not one of them.

    Args:
        most: so many after each prompt.
    """
    if most < 1:
        raise WorkerError("input", "%d new tokens were asked for" % most)
    generated: List[List[int]] = []
    stopped = []
    for number, prompt in enumerate(prompts):
        text = _checked(decoder, prompt)
        decoder.reset(len(text) + most - 1)
        found: List[int] = []
        word = next_word(feed(decoder, text[None]))
        while word not in stop:
            found.append(word)
            if told:
                print(json.dumps({"token": [number, word]}), flush=True)
            report(number * most + len(found), len(prompts) * most)
            if len(found) == most:
                break
            word = next_word(decoder.step(np.array([[word]], np.int64)))
        generated.append(found)
        stopped.append(word in stop)
        report((number + 1) * most, len(prompts) * most)
    return {"generated": generated, "stopped": stopped}


def run_speed(
    decoders: Dict[str, Decoder],
    prompt: List[int],
    new: int,
    context: int,
    rounds: int,
    seconds: float,
    fewest: int,
) -> Dict[str, Any]:
    """Seconds from a prompt to the first token, and of each token that follows, per round and artefact. In each round
    every one has a turn; odd rounds go backwards. A turn begins with a token that is not counted, which fetches back
    the caches that the model before took.

    Args:
        new: tokens that are timed.
        context: positions before the first of them; the prompt, again and again, as far as it is shorter.
    """
    if new < 1 or context < 1:
        raise WorkerError("input", "%d tokens after %d were asked for" % (new, context))
    found: Dict[str, Dict[str, List[Any]]] = {name: {"prefill": [], "decode": []} for name in decoders}
    texts = {name: _checked(decoder, prompt)[None] for name, decoder in decoders.items()}

    def turn(name: str) -> None:
        decoder, text = decoders[name], texts[name]
        room = max(text.shape[1], context + new)
        decoder.reset(room)
        decoder.step(text[:, :1])
        decoder.reset(room)
        begin = time.perf_counter()
        word = next_word(decoder.step(text))
        found[name]["prefill"].append(time.perf_counter() - begin)
        if context != text.shape[1]:
            decoder.reset(room)
            word = next_word(feed(decoder, np.resize(text, (1, context))))
        times = []
        for _ in range(new):
            begin = time.perf_counter()
            word = next_word(decoder.step(np.array([[word]], np.int64)))
            times.append(time.perf_counter() - begin)
        found[name]["decode"].append(times)

    gc.collect()
    gc.disable()
    start = time.perf_counter()
    for index in range(rounds):
        for name in list(decoders) if index % 2 == 0 else list(decoders)[::-1]:
            turn(name)
        done, passed = index + 1, time.perf_counter() - start
        last = min(rounds, max(fewest, done, int(done * seconds / passed)))
        report(done, last)
        if done == last:
            break
    gc.enable()
    return {"speed": found}


def run(
    job: Dict[str, Any],
    runtime: Runtime,
    inputs: Dict[str, Dict[str, np.ndarray]],
    how: Setting,
    current: List[str],
    known: Dict[str, Any],
) -> Dict[str, Any]:
    """Does one of the jobs that are about decoders.

    Args:
        inputs: by artefact, its arrays.
        current: its one is the artefact at hand.
        known: of the process before an artefact was touched: what "peak" tells along.
    """
    if runtime.decoder is None:
        raise WorkerError("input", "edgeq runs no language models in this runtime")
    decoders: Dict[str, Decoder] = {}
    begin = time.perf_counter()
    for name, one in job["artifacts"].items():
        current[0] = name
        refuse_options(one["options"], runtime.options)
        decoders[name] = runtime.decoder(one["path"], one["options"], how)
    load_seconds = time.perf_counter() - begin
    task = job["task"]
    if task == "tokens_per_second":
        current[0] = ""
        asked = {key: job[key] for key in ("prompt", "new", "context", "rounds", "seconds", "fewest")}
        return run_speed(decoders, **asked)
    decoder = decoders[current[0]]  # these tasks are about one artefact
    if task == "nll":
        return run_nll(decoder, inputs[current[0]]["tokens"], job["first"])
    if task == "loglikelihood":
        return run_loglikelihood(decoder, job["pairs"])
    if task == "generate":
        return run_generate(decoder, job["prompts"], job["most"], job["stop"])
    text = _checked(decoder, job["prompt"])[None]
    decoder.reset(text.shape[1] + FEW)
    begin = time.perf_counter()
    word = next_word(decoder.step(text))
    first_seconds = time.perf_counter() - begin
    for _ in range(FEW):
        word = next_word(decoder.step(np.array([[word]], np.int64)))
    peak = resident_bytes(peak=True)
    return {**known, "load_seconds": load_seconds, "first_seconds": first_seconds, "peak_bytes": peak}


class _Count:
    """Tells the host of positions that were read."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0

    def add(self, more: int) -> None:
        self._done += more
        report(self._done, self._total)


def _checked(decoder: Decoder, tokens: Any) -> np.ndarray:
    """Tokens as a step wants them, int64 [T]: runtimes may look up any number without a look at it."""
    text = np.asarray(tokens)
    if text.ndim != 1 or not len(text) or text.dtype.kind not in "iu":
        raise WorkerError("input", "tokens are a list of integers that is not empty")
    text = text.astype(np.int64)
    low, high = int(text.min()), int(text.max())
    if low < 0 or (0 <= decoder.words <= high):
        wrong = low if low < 0 else high
        raise WorkerError("input", "there is no token %d: the model knows %d" % (wrong, decoder.words))
    return text
