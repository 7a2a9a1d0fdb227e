"""What sentence-transformers makes of the tokens that an encoder gives, read from its files and made a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from edgeq.errors import UnsupportedError, UsageError
from edgeq.hugging_face.folder import MODULES, read_settings
from edgeq.hugging_face.tokenizer import default_prompt
from edgeq.reading import read_json, within

Pooling = Literal["mean", "cls"]
POOLINGS: tuple[Pooling, ...] = ("mean", "cls")

_FLAGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
_STEPS = ("Transformer", "Pooling", "Normalize")
_POOLED_ALONE = "1_Pooling"


@dataclass(frozen=True)
class Steps:
    """From the last hidden state to the sentence's embedding.

    Attributes:
        pooling: `mean` over the tokens that the mask counts, or the first one.
        normalize: whether the embedding is brought to the length 1.
    """

    pooling: Pooling
    normalize: bool

    def __str__(self) -> str:
        of = "the mean of its tokens" if self.pooling == "mean" else "its first token"
        return f"{of}, brought to the length 1" if self.normalize else of

    def __call__(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """
        Args:
            hidden: [N, T, width].
            mask: [N, T], 1 where a token counts and 0 where it only fills up.

        Returns:
            [N, width].
        """
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            counts = mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * counts).sum(1) / counts.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled


def read_steps(folder: Path) -> Steps | None:
    """What the folder's `modules.json` says; None where there is none, and the encoder's own output is meant.

    Raises:
        UsageError: files are missing or damaged.
        UnsupportedError: it has steps that are not supported.
    """
    where = f"{folder.name}/{MODULES}"
    if not (folder / MODULES).is_file():
        if (folder / _POOLED_ALONE).is_dir():
            raise UsageError(
                f"it is missing, and the folder has a {_POOLED_ALONE}", where=where, remedy="download the folder again"
            )
        return None
    listed = read_json(folder / MODULES, "a list of sentence-transformers' modules", "download the folder again")
    try:
        steps = [(str(one["type"]).rpartition(".")[2], str(one["path"])) for one in listed]
    except (TypeError, KeyError) as error:
        raise UsageError("it is no list of modules", where=where, remedy="download the folder again") from error
    kinds = [kind for kind, _ in steps]
    if kinds not in (list(_STEPS[:2]), list(_STEPS)):
        raise UnsupportedError(
            f"its steps are {', '.join(kinds) or 'none'}",
            where=where,
            remedy=f"{' and '.join(_STEPS[:2])} are supported, with {_STEPS[2]} behind them or without",
        )
    place = within(folder, steps[1][1], where).name
    config = read_settings(folder, f"{place}/config.json")
    if config.get("include_prompt") is False and default_prompt(folder):
        raise UnsupportedError(
            "its pooling leaves the tokens of the prompt out",
            where=f"{folder.name}/{place}/config.json",
            remedy="give a model whose pooling counts every token, or has no default prompt",
        )
    return Steps(_pooling(config, f"{folder.name}/{place}"), len(kinds) > 2)


def _pooling(config: dict[str, Any], where: str) -> Pooling:
    """One of `POOLINGS`. Older files have a flag for each kind, newer ones its name."""
    flags = [name for name, on in config.items() if name.startswith("pooling_mode_") and on is True]
    named = config.get("pooling_mode")
    found = [named] if isinstance(named, str) else [_FLAGS.get(name, name) for name in flags]
    for pooling in POOLINGS:
        if found == [pooling]:
            return pooling
    raise UnsupportedError(
        f"its pooling is {' and '.join(map(str, found)) or 'not said'}",
        where=f"{where}/config.json",
        remedy=f"one of {', '.join(POOLINGS)} is supported",
    )
