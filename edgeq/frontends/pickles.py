"""Reading pickles: what one would import, told without running it, and its content where that is allowed."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from edgeq.data.function import working_directory_importable
from edgeq.errors import UsageError
from edgeq.frontends.kinds import Found
from edgeq.model.refusals import carries_code, damaged, gist

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# Globals that a checkpoint of plain tensors names; they are left out when the others are listed.
_TENSOR_GLOBAL = re.compile(
    r"torch\._utils\._rebuild\w+|torch\.\w*Storage|collections\.OrderedDict|torch\.(float|int|uint)\d+"
)


def unpickle(path: Path, found: Found, trust: bool) -> Any:
    """The content of a `torch.save` file. Without trust, tensors and plain containers only.

    Raises:
        UsageError: it is damaged, or would run code and is not trusted, or needs code that is not here.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        plain = error
    try:
        if found.content == "pickle":
            with zipfile.ZipFile(path) as archive:
                listed = unusual_globals(archive.read(found.root + "data.pkl"))
        else:
            listed = unusual_globals(path.read_bytes())
    except Exception as error:
        raise damaged(path.name, error) from error
    if not listed:
        raise damaged(path.name, plain)
    if not trust:
        raise carries_code(path.name, f"it imports {listed}")
    with working_directory_importable():
        try:
            return torch.load(path, map_location="cpu", weights_only=False)
        except (ImportError, AttributeError) as error:
            raise UsageError(
                f"the pickled module needs code that is not here ({gist(error)})",
                remedy="run in the folder that holds the model's Python files, or install their package",
                where=path.name,
            ) from error
        except Exception as error:
            raise damaged(path.name, error) from error


def is_plain(data: bytes) -> bool:
    """Whether bytes written by `torch.save` hold tensors and plain containers only."""
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:
        return False
    return True


def unusual_globals(data: bytes) -> str:
    """What a pickle imports beyond tensors, for people.

    Raises:
        ValueError: the bytes are no complete pickle.
    """
    names = [name for name in _globals(data) if not _TENSOR_GLOBAL.fullmatch(name)]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _globals(data: bytes) -> tuple[str, ...]:
    """The `module.name` of everything that a pickle, or a row of pickles, would import; nothing is executed.

    Raises:
        ValueError: the bytes are no complete pickle.
    """
    found: dict[str, None] = {}
    stream = io.BytesIO(data)
    for _ in range(_pickle_count(data)):
        strings: list[str] = []
        memo: dict[int, str] = {}
        for opcode, argument, _position in pickletools.genops(stream):
            if opcode.name in ("GLOBAL", "INST"):
                found[str(argument).replace(" ", ".")] = None
            elif opcode.name == "STACK_GLOBAL":
                found[".".join(strings[-2:]) or "?"] = None
            elif opcode.name == "MEMOIZE":
                memo[len(memo)] = strings[-1] if strings else ""
            elif isinstance(argument, int) and opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[argument] = strings[-1] if strings else ""
            elif isinstance(argument, int) and opcode.name in ("GET", "BINGET", "LONG_BINGET"):
                strings.append(memo.get(argument, "?"))
            elif isinstance(argument, str):
                strings.append(argument)
    return tuple(found)


def _pickle_count(data: bytes) -> int:
    """PyTorch's legacy format is five pickles in a row and then raw storages; anything else here is one."""
    first = next(iter(pickletools.genops(data[2:])), None) if data[:1] == b"\x80" else None
    legacy = first is not None and isinstance(first[1], int) and first[1] == _LEGACY_MAGIC
    return 5 if legacy else 1
