"""The tokenizer of a folder, and what it makes of texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import UsageError
from edgeq.hugging_face.folder import PROMPTS, SENTENCES, read_settings
from edgeq.hugging_face.offline import offline


class Tokens(NamedTuple):
    """What a tokenizer makes of texts.

    Attributes:
        inputs: by name, integers [N, length]: `input_ids`, `attention_mask`, and whatever else it gives.
        cut: how many of the texts are longer than that.
    """

    inputs: dict[str, NDArray[Any]]
    cut: int


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, one of transformers' classes.

    Raises:
        UsageError: it is missing or damaged.
        MissingExtraError: transformers is not installed.
    """
    with offline():
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise UsageError(
                f"its tokenizer cannot be read ({' '.join(str(error).split())[:200] or type(error).__name__})",
                where=folder.name,
                remedy="download the folder again, or save its tokenizer there with tokenizer.save_pretrained(folder)",
            ) from error


def tokenize(folder: Path, first: Sequence[str], second: Sequence[str] | None, length: int) -> Tokens:
    """Texts, or pairs of texts in one input each, filled up or cut to a length.

    Args:
        folder: of the tokenizer.
        second: of each text, the one that comes behind it; None for texts alone.
        length: tokens of an input.

    Raises:
        UsageError: the tokenizer is missing or damaged, or cannot fill up.
        MissingExtraError: transformers is not installed.
    """
    tokenizer = load_tokenizer(folder)
    if (folder / SENTENCES).is_file() and read_settings(folder, SENTENCES).get("do_lower_case") is True:
        first, second = [text.lower() for text in first], None if second is None else [text.lower() for text in second]
    if prompt := default_prompt(folder):
        first = [prompt + text for text in first]
    pairs = None if second is None else list(second)
    with offline():
        try:
            whole = tokenizer(list(first), pairs)
            found = tokenizer(
                list(first), pairs, padding="max_length", truncation=True, max_length=length, return_tensors="np"
            )
        except Exception as error:
            raise UsageError(
                f"its tokenizer fails on these texts ({' '.join(str(error).split())[:200]})",
                where=folder.name,
                remedy="it needs a padding token, and more tokens for an input than those that it adds itself",
            ) from error
    cut = sum(len(ids) > length for ids in whole["input_ids"])
    return Tokens({name: np.asarray(values) for name, values in found.items()}, cut)


def default_prompt(folder: Path) -> str:
    """What sentence-transformers writes in front of every text; empty for most folders.

    Raises:
        UsageError: the folder's settings are damaged.
    """
    if not (folder / PROMPTS).is_file():
        return ""
    settings = read_settings(folder, PROMPTS)
    name, prompts = settings.get("default_prompt_name"), settings.get("prompts") or {}
    if name is None:
        return ""
    if not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise UsageError(
            f"its default_prompt_name is {str(name)[:40]!r}, and its prompts have none of that name",
            where=f"{folder.name}/{PROMPTS}",
            remedy="download the folder again",
        )
    return str(prompts[name])
