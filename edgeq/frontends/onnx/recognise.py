"""Tells ONNX files from others, before anything of them is read."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edgeq.files import sha256_file
from edgeq.frontends.kinds import head_of


def is_onnx(path: Path) -> bool:
    """Whether it begins as ONNX files do: a protobuf whose first field is the version, a small number, and then comes
    a producer, a set of operators or the graph."""
    head = head_of(path) if path.is_file() else b""
    return head[:1] == b"\x08" and len(head) > 2 and head[1] <= 20 and head[2] in b"\x12\x1a\x22\x3a\x42\x72"


def sha256_onnx(path: Path) -> str:
    """Of the file and of those beside it that hold its weights."""
    from edgeq.frontends.onnx.file import beside, parse

    found = [sha256_file(one) for one in beside(parse(path), path)]
    own = sha256_file(path)
    return hashlib.sha256("".join([own, *found]).encode()).hexdigest() if found else own
