"""The float32 ONNX file of a folder, with a key-value cache, by the model builder of onnxruntime-genai.

It runs in a process of its own: it imports half of transformers, and its memory is given back. What it writes is then
compared with what transformers answers: it may not know all of a model's kind.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import MissingExtraError, UnsupportedError
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
    if done.returncode or not (out / MODEL).is_file():
        raise UnsupportedError(
            f"onnxruntime-genai's builder cannot make it ({_last(done)})",
            where=where,
            remedy="look whether it has the architecture "
            f"({folder.architecture}), and whether transformers loads the folder",
        )
    # transformers only warns, and goes on with random numbers in their place
    if lost := re.search(r"^\s*([\w.]+)\s*\|\s*(MISSING|MISMATCH)", done.stderr + done.stdout, re.MULTILINE):
        raise UnsupportedError(
            f"the weight {lost[1]} is not in its files, or not as config.json says",
            where=where,
            remedy="copy config.json and the weights from the same model",
        )
    return out / MODEL


def refuse_another(folder: HfFolder, decoder: Decoder) -> None:
    """Compares a float file with transformers, on a text of random words.

    Raises:
        UnsupportedError: it foretells something else.
    """
    words, longest = (int(folder.config.get(key) or 0) for key in ("vocab_size", "max_position_embeddings"))
    length = min(LOOKED_AT, longest or LOOKED_AT)
    tokens = np.random.default_rng(0).integers(0, words, (1, length))
    with scratch_folder() as scratch:
        np.save(scratch / "tokens.npy", tokens)
        done = _run(
            "edgeq.language.as_transformers",
            *(str(path) for path in (folder.path.resolve(), scratch / "tokens.npy", scratch / "nll.npy")),
        )
        if done.returncode:
            raise UnsupportedError(
                f"transformers cannot run it ({_last(done)})", where=str(folder.path), remedy="look at its files"
            )
        wanted = np.load(scratch / "nll.npy")
    found = _foretold(decoder, tokens)
    apart = float(np.abs(found - wanted).max())
    if not apart < NEAR:
        raise UnsupportedError(
            f"the file of onnxruntime-genai's builder does not answer as transformers does: it is {apart:.2g} nats off "
            f"on {length} random words",
            where=str(folder.path),
            remedy="look in config.json for what the builder does not know, such as a sliding window",
        )


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
    """A module in a process of its own that asks no hub."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    return subprocess.run(
        command, env={**os.environ, **offline}, capture_output=True, text=True, errors="replace", check=False
    )


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it says nothing"
