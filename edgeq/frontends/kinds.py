"""What a model file is, told from its content."""

from __future__ import annotations

import difflib
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeq.errors import UsageError
from edgeq.model.refusals import damaged
from edgeq.reading import refuse_special

Content = Literal["torch.export", "torchscript", "pickle", "legacy pickle", "safetensors"]

_SUPPORTED = "torch.export .pt2, TorchScript, a torch.save file, ONNX, TFLite, or Keras"
_HEAD = 4096
# What Python's reader raises on an archive that is none, or not any more.
BROKEN_ZIP = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError, struct.error,
)  # fmt: skip

_FOREIGN: list[tuple[bytes, int, str]] = [
    (b"version https://git-lfs", 0, "a git-lfs pointer: the real file was not fetched (git lfs pull)"),
    (b"GGUF", 0, "a GGUF model"),
    (b"\x93NUMPY", 0, "a NumPy array"),
    (b"\x1f\x8b", 0, "a gzip archive: unpack it first"),
    (b"7z\xbc\xaf", 0, "a 7z archive: unpack it first"),
    (b"ustar", 257, "a tar archive: unpack it first"),
    (b"\x7fELF", 0, "a program or shared library"),
    (b"%PDF", 0, "a PDF document"),
]


def identify(path: Path) -> Found:
    """Tell what a file is from its first bytes and, for an archive, its members. The suffix plays no part.

    Raises:
        UsageError: no file, damaged, or not a model that edgeq reads; the message says what it seems to be.
    """
    head = head_of(path)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _identify_zip(path)
    if len(head) >= 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= path.stat().st_size - 8:
        return Found("safetensors", "")
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return Found("legacy pickle", "")
    raise UsageError(
        f"this is {_foreign(head)}, not a model that edgeq reads", remedy=f"give a {_SUPPORTED}", where=path.name
    )


def head_of(path: Path) -> bytes:
    """The first bytes of a file.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    if path.is_dir():
        raise UsageError(
            "this is a folder, and not one of a model",
            remedy=f"give the model file ({_SUPPORTED}), a SavedModel, or a Hugging Face folder with its config.json",
            where=path.name,
        )
    refuse_special(path, path.name)
    if not path.exists():
        raise UsageError(f"there is no file {str(path)!r}", remedy=_nearest(path))
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise UsageError(
            f"the file cannot be read ({error.strerror})", remedy="check its permissions", where=path.name
        ) from error
    if not head:
        raise UsageError("the file is empty", remedy="copy, download or export the file again", where=path.name)
    return head


def _nearest(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return f"did you mean {path.parent / near[0]}?" if near else f"give the path of a {_SUPPORTED}"


def _foreign(head: bytes) -> str:
    for magic, at, name in _FOREIGN:
        if head[at : at + len(magic)] == magic:
            return name
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page: the download went wrong"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head[:256]):
        return "a text file"
    return "a file of an unknown kind"


def _identify_zip(path: Path) -> Found:
    names = _names(path)
    if "serialized_exported_program.json" in names:
        return Found("torch.export", "")
    for name in names:
        root, _, inner = name.partition("/")
        if inner.startswith("models/") and inner.endswith(".json"):
            return Found("torch.export", root + "/")
        if inner.startswith("data/aotinductor/"):
            return Found("torch.export", root + "/")
    roots = {name.partition("/")[0] for name in names}
    for root in sorted(roots):
        if f"{root}/constants.pkl" in names:
            return Found("torchscript", root + "/")
        if f"{root}/data.pkl" in names:
            return Found("pickle", root + "/")
    if names and all(name.endswith(".npy") for name in names):
        seems = "a NumPy archive"
    else:
        seems = "a zip archive of something else"
    raise UsageError(f"this is {seems}, not a model that edgeq reads", remedy=f"give a {_SUPPORTED}", where=path.name)


def _names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except BROKEN_ZIP as error:
        raise damaged(path.name, error) from error


@dataclass(frozen=True)
class Found:
    """What a file is.

    Attributes:
        content: the kind of content.
        root: the folder inside the archive that holds everything, with its slash; empty where there is none.
    """

    content: Content
    root: str
