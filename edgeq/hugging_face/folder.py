"""What lies in a folder of Hugging Face's, told from its files alone: neither PyTorch nor transformers is imported."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from edgeq.errors import UsageError
from edgeq.files import is_build, sha256_file
from edgeq.reading import read_json, refuse_special

CONFIG = "config.json"
MODULES = "modules.json"
"""Of sentence-transformers: the steps from tokens to an embedding."""

GENERATION = "generation_config.json"
"""How a language model is decoded."""

SENTENCES = "sentence_bert_config.json"
"""Of sentence-transformers: how its tokenizer is used."""

PROMPTS = "config_sentence_transformers.json"
"""Of sentence-transformers: what comes in front of each text."""

_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZERS = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_READ_BESIDE = (".json", ".txt", ".model")
"""Suffixes of what transformers reads beside the weights: settings, vocabularies, merges, SentencePiece models."""
_DECODERS = ("ForCausalLM", "LMHeadModel")
_FETCH = "download the folder again, whole"


@dataclass(frozen=True)
class HfFolder:
    """A folder as it was found.

    Attributes:
        path: of the folder.
        config: its `config.json`.
        weights: the files that hold its tensors, and the index that names them, if there is one.
        pickled: whether they are pickles, which run code.
    """

    path: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    pickled: bool

    @property
    def architecture(self) -> str:
        """The class that its weights were saved from; empty where it does not say."""
        named = self.config.get("architectures") or [""]
        return str(named[0]) if isinstance(named, list) else ""

    def count(self, name: str) -> int:
        """A number of things that its `config.json` tells; 0 where it does not.

        Raises:
            UsageError: it tells something else there.
        """
        told = self.config.get(name)
        if told is None:
            return 0
        if not isinstance(told, int) or isinstance(told, bool) or told < 0:
            where = f"{self.path.name}/{CONFIG}"
            raise UsageError(f"its {name} is {str(told)[:40]!r}, which is no number", where=where, remedy=_FETCH)
        return told

    @property
    def sha256(self) -> str:
        """Over everything that decides what a model from here does: settings, tokenizer and weights."""
        return _sha256(self.path, [*_beside(self.path), *self.weights])


def is_hf_folder(path: Path) -> bool:
    """Whether a path is a folder with Hugging Face's `config.json`."""
    return path.is_dir() and (path / CONFIG).is_file()


def is_decoder(folder: Path) -> bool:
    """Whether it is a language model that continues a text, of `config.json` alone; False for whatever is no folder of
    Hugging Face's.

    Raises:
        UsageError: its `config.json` is damaged.
    """
    if not is_hf_folder(folder):
        return False
    config = read_settings(folder, CONFIG)
    named = config.get("architectures")
    return isinstance(named, list) and bool(named) and str(named[0]).endswith(_DECODERS)


def read_folder(path: Path) -> HfFolder:
    """What lies in a folder, checked as far as that goes without reading a tensor.

    Raises:
        UsageError: a file is missing or damaged, leads out of the folder, or the model is code of its own.
    """
    config = read_settings(path, CONFIG)
    if "auto_map" in config:
        raise UsageError(
            "its config.json has an auto_map: the network is Python code in the folder, which is never run",
            where=f"{path.name}/{CONFIG}",
            remedy="give a model whose architecture transformers has itself, or export it yourself with torch.export",
        )
    for names, pickled in ((_SAFETENSORS, False), (_PICKLES, True)):
        for name in names:
            if (path / name).is_file():
                return HfFolder(path, config, _weights(path, name), pickled)
    raise UsageError(
        f"it holds no weights ({' or '.join(_SAFETENSORS)})", where=path.name, remedy=f"{_FETCH}, with git lfs pull"
    )


def read_settings(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the folder.

    Raises:
        UsageError: it is missing, or no object.
    """
    found = read_json(_own(folder, name), "settings of Hugging Face's", _FETCH)
    if not isinstance(found, dict):
        raise UsageError("is no JSON object", where=f"{folder.name}/{name}", remedy=_FETCH)
    return found


def stop_tokens(folder: Path) -> list[int]:
    """The tokens that end an answer, as `generation_config.json` says; none where it does not, or is not there.

    Raises:
        UsageError: it is damaged, or says something else there than numbers of tokens.
    """
    if not (folder / GENERATION).exists():
        return []
    told = read_settings(folder, GENERATION).get("eos_token_id")
    found = told if isinstance(told, list) else [] if told is None else [told]
    if other := [one for one in found if not isinstance(one, int) or isinstance(one, bool) or one < 0]:
        raise UsageError(
            f"its eos_token_id has {str(other[0])[:40]!r}, which is no number of a token",
            where=f"{folder.name}/{GENERATION}",
            remedy=f"{_FETCH}, or remove the file: then the tokenizer says what ends an answer",
        )
    return found


def has_tokenizer(path: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return path.is_dir() and any((path / name).is_file() for name in _TOKENIZERS)


def tokenizer_sha256(path: Path) -> str:
    """Over everything that decides what the tokenizer of a folder makes of a text."""
    return _sha256(path, _beside(path))


def _weights(folder: Path, name: str) -> tuple[Path, ...]:
    """The file of that name, and those that it names where it is an index."""
    first = _own(folder, name)
    if not name.endswith(".json"):
        return (first,)
    where = f"{folder.name}/{name}"
    table = read_settings(folder, name).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(file, str) for file in table.values()):
        raise UsageError("it has no weight_map from tensors to files", where=where, remedy=_FETCH)
    shards = [_own(folder, file, where) for file in sorted(set(table.values()))]
    missing = [file.name for file in shards if not file.is_file()]
    if missing:
        raise UsageError(f"it names {missing[0]!r}, which is not there", where=where, remedy=_FETCH)
    return (first, *shards)


def _own(folder: Path, name: str, where: str = "") -> Path:
    """A file of the folder. In the hub's cache, files are links into a folder that lies beside the snapshots.

    Raises:
        UsageError: the name, or the link that it is, leads elsewhere.
    """
    forms = PurePosixPath(name), PureWindowsPath(name)
    root = folder.resolve()
    root = root.parent.parent if root.parent.name == "snapshots" else root
    path = folder / name
    if any(form.anchor or ".." in form.parts for form in forms) or not path.resolve().is_relative_to(root):
        raise UsageError(
            f"{name[:80]!r} leads out of the folder",
            where=where or folder.name,
            remedy="put the file itself there, and name it without a folder",
        )
    refuse_special(path, f"{folder.name}/{name}")
    return path


def _beside(folder: Path) -> list[Path]:
    """What is read beside the weights: settings and vocabularies of the folder, and those of its modules. A build there
    is no part of the model, nor is one that is being written, whose name begins with a dot."""
    modules = [one for one in folder.iterdir() if one.is_dir() and (one / CONFIG).is_file()]
    places = [folder, *(one for one in modules if not one.name.startswith(".") and not is_build(one))]
    return [one for place in places for one in place.iterdir() if one.suffix in _READ_BESIDE and one.is_file()]


def _sha256(folder: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for name, file in sorted({file.relative_to(folder).as_posix(): file for file in files}.items()):
        digest.update(f"{name}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()
