"""Text as tokens, packed to a length: what decoders are calibrated on and judged by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import UsageError
from edgeq.hugging_face.folder import HfFolder
from edgeq.hugging_face.tokenizer import load_tokenizer

LENGTH = 512
"""Tokens of a text, where the model takes so many."""

CALIBRATED = 32
"""Texts that are calibrated on: 16,384 tokens."""

JUDGED = 32
"""Texts that are judged by."""

FEWEST = 16
"""Tokens below which a text tells nothing."""


@dataclass(frozen=True)
class Texts:
    """Tokens with where they come from.

    Attributes:
        source: as it was given.
        tokens: int64 [texts, length].
        first: the position whose successor is the first to be scored; those before give context only.
    """

    source: str
    tokens: NDArray[np.int64]
    first: int
    recipe: str = ""

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.tokens.tobytes()).hexdigest()


def packed(path: Path, folder: HfFolder, most: int, *, overlapping: bool, option: str) -> Texts:
    """The text of a file, or the tokens of an array, cut to texts of one length; what is left over is dropped.

    Args:
        path: UTF-8 text; or `.npy` of whole tokens [texts, length].
        folder: of the model, whose tokenizer and words count.
        most: texts, spread over all that there are.
        overlapping: each text begins in the middle of the one before and only its second half is scored, so that every
            token has context (perplexity with strides).
        option: which named it, for errors.

    Raises:
        UsageError: it cannot be read, is too short, or holds tokens that the model has no word for.
    """
    where = f"{option} {path}"
    if not path.is_file():
        raise UsageError("there is no such file", where=where, remedy="give a text file, or a .npy of tokens")
    longest = folder.count("max_position_embeddings") or LENGTH
    if path.suffix == ".npy":
        tokens, first = _array(path, where), 0
    else:
        every = _tokens(path, folder, where)
        length = min(LENGTH, longest, len(every))
        _refuse_short(length, where)
        step = length // 2 if overlapping else length
        starts = range(0, len(every) - length + 1, step)
        tokens = np.stack([every[at : at + length] for at in starts])
        first = step - 1 if overlapping and len(tokens) > 1 else 0
    _refuse_short(tokens.shape[1], where)
    if tokens.shape[1] > longest:
        raise UsageError(
            f"texts of {tokens.shape[1]} tokens, and the model takes {longest}", where=where, remedy="cut them"
        )
    words = folder.count("vocab_size")
    if words and not 0 <= tokens.min() <= tokens.max() < words:
        raise UsageError(
            f"tokens from {tokens.min()} to {tokens.max()}, and the model has {words} words",
            where=where,
            remedy="make them with the model's own tokenizer",
        )
    if len(tokens) > most:
        tokens = tokens[np.linspace(0, len(tokens) - 1, most).round().astype(int)]
    return Texts(str(path), tokens, first)


def _refuse_short(length: int, where: str) -> None:
    if length < FEWEST:
        remedy = f"give texts of {FEWEST} tokens or more"
        raise UsageError(
            f"a text of {length} token{'' if length == 1 else 's'} tells nothing", where=where, remedy=remedy
        )


def _tokens(path: Path, folder: HfFolder, where: str) -> NDArray[np.int64]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"it is no text ({error})", where=where, remedy="give UTF-8 text, or .npy") from error
    if not text.strip():
        raise UsageError("it is empty", where=where, remedy="give more text")
    return np.array(load_tokenizer(folder.path)(text, verbose=False)["input_ids"], np.int64)


def _array(path: Path, where: str) -> NDArray[np.int64]:
    remedy = "give integers of shape [texts, length]"
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"it is no array ({error})", where=where, remedy=remedy) from error
    if not isinstance(array, np.ndarray):
        raise UsageError("it is an archive of several arrays", where=where, remedy=remedy)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer) or not len(array):
        raise UsageError(f"it is {array.dtype} {list(array.shape)}", where=where, remedy=remedy)
    return array.astype(np.int64)
