"""A Keras file or a SavedModel as an exported program."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

from edgeq.child import last_words, run_module
from edgeq.errors import MissingExtraError, UnsupportedError
from edgeq.files import scratch_folder
from edgeq.frontends.examples import Given
from edgeq.frontends.loaded import Loaded
from edgeq.frontends.tensorflow.convert import CARRIES_CODE
from edgeq.frontends.tensorflow.recognise import HDF5, files_of
from edgeq.frontends.tensorflow.vet import vet_keras
from edgeq.frontends.tflite.read import read_tflite
from edgeq.model.refusals import carries_code

_SECONDS = 900


def read_tensorflow(path: Path, given: Given, trust: bool) -> Loaded:
    """What TensorFlow's converter makes of it, read as a TFLite file.

    Raises:
        UsageError: it is damaged, or carries code and is not trusted.
        UnsupportedError: the converter refuses it, or what it makes.
        MissingExtraError: TensorFlow is not installed.
    """
    folder = path.is_dir()
    if folder:
        files_of(path)
    elif not trust:
        vet_keras(path)
    missing = [name for name in ("tensorflow", "tf_keras") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(missing[0], "tensorflow")
    with scratch_folder() as scratch:
        source, target = path.resolve(), scratch / "model.tflite"
        if not folder:  # Keras tells kinds by the ends of names
            with path.open("rb") as file:
                source = scratch / ("model.h5" if file.read(len(HDF5)) == HDF5 else "model.keras")
            shutil.copyfile(path, source)
        done = run_module(
            "edgeq.frontends.tensorflow.convert", str(source), str(target), "1" if trust else "0", timeout=_SECONDS
        )
        if done.returncode == CARRIES_CODE:
            raise carries_code(path.name, last_words(done))
        if done.returncode or not target.exists():
            raise UnsupportedError(
                f"TensorFlow's converter refuses it ({last_words(done)})",
                where=path.name,
                remedy="look for operators that TFLite lacks, or export the model to ONNX",
            )
        loaded = read_tflite(target, given)
    kind = "SavedModel" if folder else "Keras"
    return replace(
        loaded, kind=kind, source=path.name, notes=("read as TensorFlow converts it to TFLite", *loaded.notes)
    )
