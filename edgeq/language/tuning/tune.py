"""From a language model and a text to a folder of the model that has learned from it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import KW_ONLY, asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edgeq.errors import InternalError, UsageError
from edgeq.files import atomic_write, scratch_folder, staged_directory
from edgeq.hugging_face.folder import CONFIG, HfFolder
from edgeq.hugging_face.offline import offline
from edgeq.installed import installed
from edgeq.language.checkpoints.unpack import dequantized
from edgeq.language.deploy import BESIDE
from edgeq.language.folder import open_folder
from edgeq.language.text import packed
from edgeq.language.tuning.adapted import Adapted, frozen
from edgeq.language.tuning.base import load_base
from edgeq.language.tuning.bitfit import bitfit
from edgeq.language.tuning.loop import Heard, Pace, judged, learn
from edgeq.language.tuning.qlora import RANK, qlora, refuse_missing
from edgeq.progress import Clock, Progress, Silent
from edgeq.training.checkpoint import place_of, read_checkpoint, write_checkpoint
from edgeq.training.loop import Epoch

TUNED = "edgeq-tuned.json"
"""The file that makes a folder one that was written here: what was learned, and how."""

HELD_OUT = 20
"""One text in so many judges what is learned from the others."""

NEAR = 1e-3
"""Nats by which the written folder may be off: float32 in another order."""

VERSION = 1
"""To be raised whenever the same request makes another model."""


class Way(NamedTuple):
    """A way to adapt.

    Attributes:
        rate: of AdamW, where nothing else is asked for.
        made: of the float model, the rank and the model's folder.
        ready: raises what must be known before a model is read.
    """

    rate: float
    made: Callable[[Any, int, str], Adapted]
    ready: Callable[[], None] = lambda: None


WAYS = {
    "bitfit": Way(1e-3, lambda model, _, __: bitfit(model)),
    "qlora": Way(5e-4, qlora, refuse_missing),
}


@dataclass(frozen=True)
class TuneRequest:
    """What is learned from what.

    Attributes:
        model: a Hugging Face folder of a language model.
        train: text, or a `.npy` of tokens [texts, length].
        adapt: what learns: a name in `WAYS`.
        out: the folder to write.
        rank: of low-rank matrices; `RANK` if None. For `qlora` alone.
        epochs: passes over the texts.
        batch: texts of a step.
        rate: how fast is learned; that of the way if None.
        seed: of all that is random.
        overwrite: replace a folder that was written here before.
        progress: hears of stages and steps.
    """

    model: str | Path
    _: KW_ONLY
    train: str | Path
    adapt: str
    out: str | Path
    rank: int | None = None
    epochs: int = 3
    batch: int = 8
    rate: float | None = None
    seed: int = 0
    overwrite: bool = False
    progress: Progress = field(default_factory=Silent)


class Tuned(NamedTuple):
    """
    Attributes:
        out: the folder.
        adapt: what learned.
        numbers: how many numbers that were.
        float_perplexity: of the float model, on the texts that are held out.
        base_perplexity: of the packed base before anything was learned.
        perplexity: of the folder, read again.
        base_sha256: over all that did not learn, before and after.
        epochs: what was seen after each, and before the first.
        best: the number of the one that was written.
    """

    out: Path
    adapt: str
    numbers: int
    float_perplexity: float
    base_perplexity: float
    perplexity: float
    base_sha256: str
    epochs: list[Epoch]
    best: int


def tune_language(request: TuneRequest) -> Tuned:
    """Adapts a language model to a text. The folder that comes of it is one of float weights, as transformers reads it:
    those that the packed ones stand for, with what was learned.

    Where an earlier run was interrupted, it is gone on with, to the same numbers.

    Raises:
        UsageError: wrong arguments, folder or text, or the loss is not finite any more.
        UnsupportedError: the model cannot be handled.
        MissingExtraError: a package is not installed.
    """
    _refuse(request)
    way = WAYS[request.adapt]
    pace = Pace(request.epochs, request.batch, way.rate if request.rate is None else request.rate, request.seed)
    folder, clock = open_folder(Path(request.model)), Clock(request.progress)
    out = Path(request.out).resolve()
    _refuse_inside(folder, out)
    way.ready()
    with (
        staged_directory(out, overwrite=request.overwrite, mark=TUNED, kind="tuned model") as place,
        scratch_folder() as scratch,
        torch.random.fork_rng(devices=[]),
    ):
        with clock.stage("read"):
            texts, held_out = _apart(request, folder)
            key = _key(request, pace, folder, (texts, held_out))
            checkpoint = place_of(out)
            state = read_checkpoint(checkpoint, key)
            model = load_base(dequantized(folder, scratch)[0])
        with clock.stage("float model"):
            before = judged(model, held_out)
        with clock.stage(f"pack ({request.adapt})"):
            torch.manual_seed(pace.seed)
            adapted = way.made(model, request.rank or RANK, str(request.model))
            base = frozen(adapted)
        if state is not None:
            clock.progress.note(f"goes on from {checkpoint.name}, {state.step} steps")
        with clock.stage("learn") as progress:
            keep = partial(write_checkpoint, checkpoint, key)
            epochs = learn(adapted, texts, held_out, pace, Heard(keep, progress.step, progress.note), state)
        if frozen(adapted) != base:
            raise InternalError(ValueError("what must not learn is not what it was"), request.adapt)
        best = min(range(len(epochs)), key=lambda i: epochs[i].held_out)
        if best == 0:
            clock.progress.note("no epoch did better than the base, which is written: take another --rate")
        numbers = sum(one.numel() for one in adapted.learned.values())
        with clock.stage("write"):
            _write(adapted, folder, place)
        del adapted, model
        with clock.stage("read again"):
            after = judged(load_base(open_folder(place)), held_out)
        if not abs(after - epochs[best].held_out) < NEAR:
            cause = f"the folder does not foretell as what was trained: {after:.4f}, {epochs[best].held_out:.4f} nats"
            raise InternalError(ValueError(cause), request.adapt)
        found = Tuned(
            out, request.adapt, numbers, _exp(before), _exp(epochs[0].held_out), _exp(after), base, epochs, best
        )
        atomic_write(place / TUNED, _record(found, request, pace, len(texts), len(held_out)))
    checkpoint.unlink(missing_ok=True)
    return found


def _refuse(request: TuneRequest) -> None:
    if request.adapt not in WAYS:
        raise UsageError(f"there is no {request.adapt!r}", where="--adapt", remedy=f"one of {', '.join(WAYS)}")
    if request.rank is not None and request.adapt != "qlora":
        cause = f"{request.adapt} has no low-rank matrices"
        raise UsageError(cause, where="--rank", remedy="leave --rank away, or take --adapt qlora")
    for name, value in (("epochs", request.epochs), ("batch", request.batch), ("rank", request.rank)):
        if value is not None and value < 1:
            raise UsageError(f"{value} is too few", where=f"--{name}", remedy="give 1 or more")
    if request.rate is not None and not 0 < request.rate <= 1:
        raise UsageError(f"nothing is learned at a rate of {request.rate}", where="--rate", remedy="such as 0.001")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        remedy = "start it without torchrun"
        raise UsageError("language models are tuned by one process", where="torchrun", remedy=remedy)


def _refuse_inside(folder: HfFolder, out: Path) -> None:
    own = folder.path.resolve()
    remedy = "name a folder beside it with --out"
    if out.is_relative_to(own):
        raise UsageError("it would lie in the model's own folder", where=str(out), remedy=remedy)
    if own.is_relative_to(out):
        raise UsageError("the model lies in it, and would be gone", where=str(out), remedy=remedy)


def _apart(request: TuneRequest, folder: HfFolder) -> tuple[Tensor, Tensor]:
    """Texts to learn from, and those that are held out."""
    tokens = packed(Path(request.train), folder, sys.maxsize, overlapping=False, option="--train").tokens
    if len(tokens) < 2:
        length = tokens.shape[1]
        cause = f"one text of {length} tokens is too little: some must judge, and some be learned from"
        raise UsageError(cause, where=f"--train {request.train}", remedy="give more text")
    every, whole = torch.arange(len(tokens)), torch.from_numpy(tokens)
    return whole[every % HELD_OUT != 0], whole[::HELD_OUT]


def _write(adapted: Adapted, folder: HfFolder, out: Path) -> None:
    """A folder as transformers makes it, with the tokenizer of the one that it came from."""
    if adapted.beside is not None:
        adapted.beside(out / "adapter")
    with offline():
        adapted.merged().save_pretrained(str(out))
    for file in sorted({file for pattern in BESIDE for file in folder.path.glob(pattern)}):
        if file.is_file() and file.name != CONFIG:
            shutil.copyfile(file, out / file.name)


def _record(found: Tuned, request: TuneRequest, pace: Pace, texts: int, held_out: int) -> str:
    """What is told of it in the folder. Times are not: the same request makes the same record."""
    told = {
        "adapt": found.adapt,
        "rank": (request.rank or RANK) if found.adapt == "qlora" else None,
        **asdict(pace),
        "texts": texts,
        "held_out_texts": held_out,
        "numbers": found.numbers,
        "float_perplexity": found.float_perplexity,
        "base_perplexity": found.base_perplexity,
        "perplexity": found.perplexity,
        "base_sha256": found.base_sha256,
        "held_out": [epoch.held_out for epoch in found.epochs],
        "best": found.best,
    }
    return json.dumps(told, indent=2) + "\n"


def _key(request: TuneRequest, pace: Pace, folder: HfFolder, texts: tuple[Tensor, Tensor]) -> str:
    """Hash of all that decides how it goes."""
    told = {
        "version": VERSION,
        "packages": installed("torch", "transformers", "peft", "bitsandbytes"),
        "model": folder.sha256,
        "texts": [hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in texts],
        "adapt": [request.adapt, request.rank or RANK],
        "pace": asdict(pace),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf
