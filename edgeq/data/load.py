"""Where samples come from: a NumPy file, a folder of images, texts, or a Python function."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from edgeq.data.arrays import is_array_file, load_arrays
from edgeq.data.dataset import Dataset, InputSpec
from edgeq.data.samples import load_samples
from edgeq.errors import UsageError
from edgeq.hugging_face.folder import has_tokenizer
from edgeq.reading import refuse_special

Role = Literal["calibration", "evaluation"]

SYNTHETIC = "synthetic"
"""In place of calibration data: they are made from the model (see `edgeq.calibration.synthetic`). A folder or file of
this name is `./synthetic`, or a `Path`."""

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def load_data(
    source: str | Path,
    inputs: Sequence[InputSpec],
    *,
    preprocess: str | None = None,
    role: Role,
    limit: int | None = None,
    tokenizer: Path | None = None,
) -> Dataset:
    """Load samples and check that the model can take them. Nothing is ever made up or silently converted.

    Args:
        source: a `.npz` or `.npy` file, a folder of images, a file of texts (see `edgeq.data.texts`), or
            `package.module:function`. A `Path` is never called.
        inputs: what the model takes.
        preprocess: for images: a preset (`imagenet`, `cifar10`, `[0,1]`) or a TOML file; for texts: a folder that holds
            their tokenizer.
        role: labels are read for `evaluation` only.
        limit: keep at most so many samples, evenly spread over a file or folder, the first ones of a function.
        tokenizer: the folder of the one for texts, where `preprocess` names none.

    Raises:
        UsageError: the data is missing, damaged, or does not fit the model.
    """
    if not inputs:
        raise UsageError("the model takes no inputs", remedy="give a model whose output depends on its inputs")
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} samples", remedy="ask for at least one sample")
    notes: list[str] = []
    path = Path(source)
    refuse_special(path)
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(16)
        if not is_array_file(head):
            tokenizer = tokenizer_for(preprocess, tokenizer)
            if tokenizer is None or not head or _is_image(head):
                raise _no_data_file(path, head)
            from edgeq.data.texts import load_texts  # late: an extra

            return load_texts(path, inputs, tokenizer, role=role, limit=limit, notes=notes)
        if preprocess is not None:
            notes.append(f"{path.name}: arrays are taken as they are; --preprocess is for images")
        return load_arrays(path, inputs, role=role, limit=limit, notes=notes)
    if path.is_dir():
        from edgeq.data.images import load_images  # late: arrays need no imaging library
        from edgeq.data.preprocess import PRESETS, read_preprocess

        if preprocess is None:
            raise UsageError(
                "images are given, and nothing says how they were prepared in training",
                remedy=f"add --preprocess with a preset ({', '.join(PRESETS)}) or a TOML file",
                where=path.name,
            )
        return load_images(path, inputs, read_preprocess(preprocess), role=role, limit=limit, notes=notes)
    if isinstance(source, str) and names_function(source):
        if preprocess is not None:
            notes.append(f"{source}: samples are taken as they are; --preprocess is for images")
        return load_samples(str(source), inputs, role=role, limit=limit, notes=notes)
    raise _not_found(str(source), role)


def tokenizer_for(preprocess: str | None, tokenizer: Path | None) -> Path | None:
    """The folder whose tokenizer is for texts: the one that `preprocess` names, or the other one."""
    named = None if preprocess is None else Path(preprocess)
    return named if named is not None and has_tokenizer(named) else tokenizer


def names_function(text: str) -> bool:
    """Whether a text has the form `package.module:function`."""
    return _FUNCTION.fullmatch(text) is not None


def _no_data_file(path: Path, head: bytes) -> UsageError:
    if not head:
        return UsageError("the file is empty", remedy="write the file again", where=path.name)
    cause = "this is a single image" if _is_image(head) else "the content is neither .npz nor .npy"
    return UsageError(
        cause,
        remedy="give a .npz, a .npy, a folder of images or package.module:function; "
        "for texts, name the folder of their tokenizer with --preprocess",
        where=path.name,
    )


def _is_image(head: bytes) -> bool:
    return head.startswith((b"\xff\xd8", b"\x89PNG", b"BM", b"GIF8", b"RIFF"))


def _not_found(source: str, role: Role) -> UsageError:
    path = Path(source)
    folder = path.parent
    siblings = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    if near:
        remedy = f"did you mean {folder / near[0]}?"
    else:
        remedy = "give a .npz, a .npy, a folder of images or package.module:function"
    return UsageError(f"there is no {role} data {source!r}", remedy=remedy)
