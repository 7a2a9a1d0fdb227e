"""The float32 ONNX file of a folder, with a key-value cache, by the model builder of onnxruntime-genai.

It runs in a process of its own: it imports half of transformers, and its memory is given back.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

from edgeq.errors import MissingExtraError, UnsupportedError
from edgeq.language.folder import Folder

MODEL = "model.onnx"
_BUILDER = "onnxruntime_genai.models.builder"


def write_float(folder: Folder, out: Path) -> Path:
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
    command = [
        sys.executable, "-W", "ignore", "-m", _BUILDER, "-i", str(folder.path.resolve()), "-m", "local/model",
        "-o", str(out), "-p", "fp32", "-e", "cpu", "-c", str(out / "cache"),
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        command, env={**os.environ, **offline}, capture_output=True, text=True, errors="replace", check=False
    )
    where = str(folder.path)
    if done.returncode or not (out / MODEL).is_file():
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()] or ["it says nothing"]
        raise UnsupportedError(
            f"onnxruntime-genai's builder cannot make it ({lines[-1].strip()[:300]})",
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
