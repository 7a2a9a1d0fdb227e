"""A Hugging Face folder of a language model: what must be there, looked at before anything is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq.errors import MissingExtraError, UnsupportedError, UsageError
from edgeq.files import sha256_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"


@dataclass(frozen=True)
class Folder:
    """A checked folder.

    Attributes:
        path: where it is.
        config: what `config.json` says.
        weights: its safetensors files.
    """

    path: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]

    @property
    def architecture(self) -> str:
        return str(self.config["architectures"][0])

    @cached_property
    def digest(self) -> str:
        """Over everything that decides what the model answers: SHA-256 of names and contents."""
        told = [self.path / CONFIG, *self.weights, *sorted(self.path.glob("tokenizer*")), *self.path.glob("*.jinja")]
        listed = "".join(f"{file.name} {sha256_file(file)}\n" for file in told if file.is_file())
        return hashlib.sha256(listed.encode()).hexdigest()

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its own.

        Raises:
            UsageError: it has none, or one that cannot be read.
            MissingExtraError: transformers is not installed.
        """
        return tokenizer_in(self.path)


def tokenizer_in(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, read without a hub and without code of its own.

    Raises:
        UsageError: it has none, or one that cannot be read.
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtraError("transformers", "language") from error
    if not any(path.glob("tokenizer*")):
        raise UsageError(
            "there is no tokenizer in it", where=str(path), remedy="copy tokenizer.json beside config.json"
        )
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever its parser makes of a damaged file
        gist = " ".join(str(error).split())[:200]
        remedy = "copy the tokenizer's files from the model's origin again"
        raise UsageError(f"its tokenizer cannot be read ({gist})", where=str(path), remedy=remedy) from error
    return found


def is_decoder(path: Path) -> bool:
    """Whether this is a folder of a language model that decodes; nothing else of it is looked at."""
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        return any(str(name).endswith("ForCausalLM") for name in config["architectures"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def open_folder(path: Path) -> Folder:
    """Checks the folder of a language model.

    Raises:
        UsageError: a file is missing or damaged, leads out of the folder, or wants code of its own to run.
        UnsupportedError: its weights are no safetensors, or it is no language model that decodes.
    """
    where = str(path)
    config = _json(path / CONFIG, where)
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not str(names[0]).endswith("ForCausalLM"):
        raise UnsupportedError(
            f"its architecture is {names}", where=where, remedy="give a folder of one architecture, ...ForCausalLM"
        )
    if "auto_map" in config:
        remedy = "give a model of an architecture that transformers has itself"
        raise UsageError("it brings code of its own, which is not run", where=where, remedy=remedy)
    return Folder(path, config, _weights(path, where))


def _weights(path: Path, where: str) -> tuple[Path, ...]:
    remedy = "copy the model's files again"
    if (path / _INDEX).exists():
        told = _json(path / _INDEX, where).get("weight_map")
        if not isinstance(told, dict) or not told:
            raise UsageError(f"{_INDEX} has no weight_map", where=where, remedy=remedy)
        names = sorted({str(name) for name in told.values()})
        if away := [name for name in names if Path(name).name != name]:
            raise UsageError(f"{_INDEX} leads out of the folder: {away[0][:80]!r}", where=where, remedy=remedy)
    elif (path / _WHOLE).exists():
        names = [_WHOLE]
    else:
        pickled = any(path.glob("pytorch_model*.bin"))
        seems = "pickles (pytorch_model.bin), which run code when they are read" if pickled else "nowhere"
        raise UnsupportedError(
            f"its weights are {seems}", where=where, remedy="save it with save_pretrained, which writes safetensors"
        )
    if gone := [name for name in names if not (path / name).is_file()]:
        raise UsageError(f"{', '.join(gone)} is missing", where=where, remedy=remedy)
    return tuple(path / name for name in names)


def _json(path: Path, where: str) -> dict[str, Any]:
    remedy = "give a folder as save_pretrained or the hub makes it"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path.name} cannot be read ({error.strerror})", where=where, remedy=remedy) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path.name} is no JSON ({error})", where=where, remedy=remedy) from error
    if not isinstance(found, dict):
        raise UsageError(f"{path.name} is no table", where=where, remedy=remedy)
    return found
