"""The float32 ONNX file of a folder, with a key-value cache, by the model builder of onnxruntime-genai.

It runs in a process of its own: it imports half of transformers, and its memory is given back. What it writes is then
compared with what transformers answers: it may not know all of a model's kind.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeq.child import last_words, run_module
from edgeq.errors import MissingExtraError, UnsupportedError, UsageError
from edgeq.files import scratch_folder
from edgeq.hugging_face.folder import HfFolder
from edgeq.language.decoder import Decoder
from edgeq.language.segments import begin, load, passed_on, segments

MODEL = "model.onnx"
LOOKED_AT = 512
"""Random words on which the file is compared with transformers."""

NEAR = 0.02
"""Nats by which a token's likelihood may differ: float32 in another order."""

_BUILDER = "onnxruntime_genai.models.builder"


def write_float(folder: HfFolder, out: Path) -> Path:
    """Writes `model.onnx`, its external data, the tokenizer and `genai_config.json` into a folder.

    Args:
        out: an empty folder.

    Returns:
        The path of `model.onnx`.

    Raises:
        MissingExtraError: onnxruntime-genai is not installed.
        UsageError: a file of its weights is damaged.
        UnsupportedError: its builder cannot take the architecture, or the weights do not fit the config.
    """
    for package in ("onnxruntime_genai", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package.replace("_", "-"), "language")
    done = _run(
        _BUILDER, "-i", str(folder.path.resolve()), "-m", "local/model", "-o", str(out), "-p", "fp32", "-e", "cpu",
        "-c", str(out / "cache"),
    )  # fmt: skip
    where = str(folder.path)
    # told before it fails of them; where it only warns, it goes on with random numbers in their place
    if lost := re.search(r"^\s*(\S.*?)\s*\|\s*(MISSING|MISMATCH)\b", done.stderr + done.stdout, re.MULTILINE):
        _refuse_lost([lost[1]], where)
    if done.returncode and "SafetensorError" in last_words(done):
        remedy = "download the folder again, whole"
        raise UsageError(f"its weights cannot be read ({last_words(done)})", where=where, remedy=remedy)
    if done.returncode or not (out / MODEL).is_file():
        raise UnsupportedError(
            f"onnxruntime-genai's builder cannot make it ({last_words(done)})",
            where=where,
            remedy="look whether it has the architecture "
            f"({folder.architecture}), and whether transformers loads the folder",
        )
    return out / MODEL


def _refuse_lost(names: Sequence[str], where: str) -> None:
    if names:
        raise UnsupportedError(
            f"the weight {names[0]} is not in its files, or not as config.json says",
            where=where,
            remedy="copy config.json and the weights from the same model",
        )


def refuse_another(folder: HfFolder, decoder: Decoder) -> tuple[str, ...]:
    """Compares a float file with transformers, on a text of random words.

    Returns:
        Names of tensors in the folder's files that the model has no use for.

    Raises:
        UnsupportedError: it foretells something else, or a weight is missing. Where that is a factor of a norm, both
            would take 1 for it, and agree.
    """
    words, longest = folder.count("vocab_size"), folder.count("max_position_embeddings")
    length = min(LOOKED_AT, longest or LOOKED_AT)
    tokens = np.random.default_rng(0).integers(0, words, (1, length))
    with scratch_folder() as scratch:
        np.save(scratch / "tokens.npy", tokens)
        done = _run(
            "edgeq.language.as_transformers",
            *map(str, (folder.path.resolve(), scratch / "tokens.npy", scratch / "nll.npy", scratch / "read.json")),
        )
        if done.returncode:
            raise UnsupportedError(
                f"transformers cannot run it ({last_words(done)})", where=str(folder.path), remedy="look at its files"
            )
        wanted = np.load(scratch / "nll.npy")
        read = json.loads((scratch / "read.json").read_text(encoding="utf-8"))
    _refuse_lost(read["lost"], str(folder.path))
    found = _foretold(decoder, tokens)
    apart = float(np.abs(found - wanted).max())
    if not apart < NEAR:
        raise UnsupportedError(
            f"the file of onnxruntime-genai's builder does not answer as transformers does: it is {apart:.2g} nats off "
            f"on {length} random words",
            where=str(folder.path),
            remedy="look in config.json for what the builder does not know, such as a sliding window",
        )
    return tuple(read["unread"])


def _foretold(decoder: Decoder, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Negative log-likelihoods of all tokens but the first."""
    values = begin(decoder, tokens)
    for segment in segments(decoder):
        values = passed_on(decoder, values, load(decoder, segment, segment.writes).run(values))
    logits = values["logits"][0, :-1].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    right: NDArray[np.float64] = np.take_along_axis(logits, tokens[0, 1:, None], axis=1)[:, 0]
    return np.asarray(np.log(np.exp(logits).sum(axis=1)) - right)


def _run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A module in a process of its own that asks no hub, and tells which weights it misses."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
               "TRANSFORMERS_VERBOSITY": "warning"}  # fmt: skip
    return run_module(module, *arguments, env=offline)
