"""Refuses what would run code while TensorFlow reads it, before it is read.

Keras keeps Python functions in files (Lambda layers) and imports the modules that they name. Of SavedModels, which are
graphs that are run, see `graph_vet.py`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeq.errors import MissingExtraError
from edgeq.frontends.tensorflow.recognise import HDF5
from edgeq.model.refusals import carries_code, damaged

_LARGEST = 100_000_000
"""Bytes of a configuration."""

_OWN = (
    "keras", "keras.layers", "keras.models", "keras.initializers", "keras.activations", "keras.regularizers",
    "keras.constraints", "keras.optimizers", "keras.losses", "keras.metrics", "keras.dtype_policies", "keras.src",
)  # fmt: skip
"""Modules whose classes a file may name."""

_CODE = (
    "Lambda",
    "__lambda__",
    "function",
    "TFSMLayer",
    "TFOpLambda",
    "StringLookup",
    "IntegerLookup",
    "TextVectorization",
)
"""Classes that hold or load functions, programs or files."""

_FUNCTIONS = (
    "math",
    "nn",
    "linalg",
    "__operators__",
    "reshape",
    "concat",
    "expand_dims",
    "squeeze",
    "transpose",
    "cast",
)
"""Of TensorFlow's, those that Keras 2 may name as layers: they only compute."""


def vet_keras(path: Path) -> None:
    """Of a Keras file.

    Raises:
        UsageError: it holds Python functions, or names modules that are not Keras' own; or it is damaged.
        MissingExtraError: it is HDF5, and h5py is not installed.
    """
    for one in _tables(_configuration(path)):
        kind, module, config = one.get("class_name"), one.get("module"), one.get("config")
        if kind is not None and not isinstance(kind, str):
            raise damaged(path.name, "a class has no name")
        named = config.get("function") if isinstance(config, dict) else None
        if kind == "TFOpLambda" and isinstance(named, str) and named.split(".")[0] in _FUNCTIONS:
            continue
        if kind in _CODE:
            raise carries_code(path.name, f"a {kind} in the layer {_name(one)!r}")
        if module is not None and not (isinstance(module, str) and _is_own(module)):
            raise carries_code(path.name, f"the class {kind} of the module {module}")
        if isinstance(one.get("registered_name"), str) and ">" in one["registered_name"]:
            raise carries_code(path.name, f"the class {one['registered_name']}")


def _is_own(module: str) -> bool:
    return module in _OWN or module.startswith("keras.src.")


def _configuration(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            hdf5 = file.read(len(HDF5)) == HDF5
        text = _of_hdf5(path) if hdf5 else _of_archive(path)
        return json.loads(text)
    except MissingExtraError:
        raise
    except Exception as error:  # h5py's and json's own kinds
        raise damaged(path.name, error) from error


def _of_archive(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        if archive.getinfo("config.json").file_size > _LARGEST:
            raise ValueError("its configuration is larger than any network's")
        return archive.read("config.json").decode()


def _of_hdf5(path: Path) -> str:
    try:
        import h5py
    except ModuleNotFoundError as missing:
        raise MissingExtraError("h5py", "tensorflow") from missing
    with h5py.File(path, "r") as file:
        found = file.attrs.get("model_config")
    if found is None:
        raise ValueError("it holds weights alone, without a network: save the whole model")
    return found.decode() if isinstance(found, bytes) else str(found)


def _tables(value: Any) -> Iterator[dict[str, Any]]:
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            yield one
            pending += one.values()
        elif isinstance(one, list):
            pending += one


def _name(one: dict[str, Any]) -> str:
    held = one.get("config")
    return str(held.get("name", "")) if isinstance(held, dict) else ""
