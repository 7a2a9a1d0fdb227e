"""An artefact as a model of lm-evaluation-harness: the tokens that its own `hf` model reads, on a device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from edgeq.devices import Candidate, Device
from edgeq.devices import decoding as on_device
from edgeq.errors import UnsupportedError, UsageError
from edgeq.hugging_face.folder import CONFIG
from edgeq.hugging_face.tokenizer import load_tokenizer
from edgeq.language.generate import stops
from edgeq.progress import Progress

LONGEST = 2048
"""Positions that a model takes where nothing says so, as the harness has it."""

NEW = 256
"""Tokens that are generated where a task does not say how many, as the harness has it."""

PIECE = 16
"""Tokens that are written before the text is searched for what ends it; each piece is twice the one before. A device
knows tokens only, and most answers end after a few."""

_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_BOUNDS = ("n_positions", "max_position_embeddings", "n_ctx")


class Place(NamedTuple):
    """An artefact on a device, and the folder with its tokenizer, `config.json` and `generation_config.json`.

    Attributes:
        threads: 0 for every core.
    """

    device: Device
    artifact: Candidate
    folder: Path
    threads: int = 0


class Prompt(NamedTuple):
    """What is gone on from, and what ends the text behind it.

    Attributes:
        tokens: of the context, cut from the left so that `most` more fit.
        until: texts that end it.
    """

    tokens: list[int]
    until: list[str]
    most: int


class ArtifactLM(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """What the harness asks of a model, answered by an artefact."""

    def __init__(self, place: Place, progress: Progress | None = None) -> None:
        super().__init__()
        self._place, self._progress = place, progress
        self.tokenizer = load_tokenizer(place.folder)
        self.max_length = longest(place.folder, int(self.tokenizer.model_max_length))

    @property
    def eot_token_id(self) -> int:
        return _known(self.tokenizer.eos_token_id, self._place.folder)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def tokenizer_name(self) -> str:
        return self._place.folder.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """As the tokenizer has it by itself, with no second first token before one that the text says."""
        how = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        if add_special_tokens is None and string.startswith(str(self.tokenizer.decode([self.prefix_token_id]))):
            how = {"add_special_tokens": False}
        return [int(token) for token in self.tokenizer.encode(string, **how)]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._cut(context, continuation) for _, context, continuation in requests]
        if not pairs:
            return []
        found = on_device.loglikelihoods(
            self._place.device, self._place.artifact, pairs, threads=self._place.threads, progress=self._progress
        )
        return [(one.logarithm, one.greedy) for one in found]

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """Both as far as the model reads back; the last token is scored and never read."""
        if not continuation or len(continuation) > self.max_length:
            cause = f"an answer has {len(continuation)} tokens, and the model reads 1 to {self.max_length}"
            raise UsageError(cause, where="--lm-eval", remedy="choose another task")
        text = (context + continuation)[-(self.max_length + 1) :]
        return text[: -len(continuation)], text[-len(continuation) :]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows as long as the model reads."""
        windows: list[tuple[Any, list[int], list[int]]] = []
        counts = []
        for request in requests:
            (text,) = request.args
            some = map(
                make_disjoint_window,
                get_rolling_token_windows(
                    token_list=self.tok_encode(text),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                ),
            )
            before = len(windows)
            windows += [(None, list(context), list(rest)) for context, rest in some]
            counts.append(len(windows) - before)
        told = iter(self._loglikelihood_tokens(windows))
        return [sum(next(told)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The likeliest token every time, until one of the texts that a task names."""
        prompts = [self._prompt(*request.args) for request in requests]
        ends = [*stops(self._place.folder, self.eot_token_id), self.eot_token_id]
        written: list[list[int]] = [[] for _ in prompts]
        open_ones = list(range(len(prompts)))
        piece = PIECE
        while open_ones:
            # those that may have the same number of tokens more are one job
            by_count: dict[int, list[int]] = {}
            for number in open_ones:
                by_count.setdefault(min(piece, prompts[number].most - len(written[number])), []).append(number)
            ended = set()
            for count, some in by_count.items():
                found = on_device.generate(
                    self._place.device,
                    self._place.artifact,
                    [prompts[number].tokens + written[number] for number in some],
                    most=count,
                    stop=ends,
                    threads=self._place.threads,
                    progress=self._progress,
                )
                for number, one in zip(some, found, strict=True):
                    written[number] += one.tokens
                    full = len(written[number]) >= prompts[number].most
                    if one.stopped or full or self._ends(written[number], prompts[number].until):
                        ended.add(number)
            open_ones = [number for number in open_ones if number not in ended]
            piece *= 2
        return [
            str(postprocess_generated_text(self._text(tokens), prompt.until, None))
            for tokens, prompt in zip(written, prompts, strict=True)
        ]

    def _prompt(self, context: str, asked: dict[str, Any]) -> Prompt:
        how = dict(normalize_gen_kwargs(asked, NEW))
        until = handle_stop_sequences(how.pop("until", None), eos=str(self.tokenizer.decode([self.eot_token_id])))
        most = int(how.pop("max_gen_toks"))
        if how.pop("do_sample", False):
            remedy = "leave do_sample and temperature out of the task's generation_kwargs"
            raise UnsupportedError("the task wants random answers", where="--lm-eval", remedy=remedy)
        if others := sorted(how.keys() - set(_SAMPLING)):
            remedy = f"leave {others[0]} out of its generation_kwargs"
            raise UnsupportedError(f"the task wants {others[0]} in generating", where="--lm-eval", remedy=remedy)
        room = self.max_length - most
        if most < 1 or room < 1:
            cause = f"the task wants {most} new tokens, and the model reads {self.max_length}"
            raise UsageError(cause, where="--lm-eval", remedy="set max_gen_toks in its generation_kwargs")
        tokens = self.tok_encode(context)[-room:] or [self.prefix_token_id]
        return Prompt(tokens, list(until), most)

    def _ends(self, tokens: list[int], until: Sequence[str]) -> bool:
        text = self._text(tokens)
        return any(term in text for term in until if term)

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


def longest(folder: Path, told: int) -> int:
    """Positions that a model takes, looked for where the harness looks.

    Args:
        told: by the tokenizer; beyond 10^9 where it does not know.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        remedy = "give a build as `edgeq deploy` leaves it"
        raise UsageError(f"its {CONFIG} cannot be read ({error})", where=str(folder), remedy=remedy) from error
    known = [int(config[name]) for name in _BOUNDS if config.get(name)]
    return (known or [told if told < 10**9 else LONGEST])[0]


def _known(token: int | None, folder: Path) -> int:
    if token is None:
        remedy = "add eos_token to tokenizer_config.json"
        raise UsageError("its tokenizer has no token that ends a text", where=str(folder), remedy=remedy)
    return int(token)
