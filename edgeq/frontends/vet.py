"""Refusing a file whose reading would run code, before it is read.

Nothing here executes what a file holds. Three things in an exported program can run code when it is read: pickles
(they import and call what they name), size expressions and guards (they are evaluated as Python), and operator names
(they are looked up below `torch`). Each is checked against what an honest file contains. TorchScript can only compute,
apart from the operators that touch files.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from edgeq.errors import UnsupportedError
from edgeq.frontends.kinds import BROKEN_ZIP
from edgeq.frontends.pickles import is_plain, unusual_globals
from edgeq.model.containers import is_container
from edgeq.model.expressions import QUOTABLE, is_expression, is_guard
from edgeq.model.names import OPERATORS
from edgeq.model.refusals import carries_code, damaged

_FILE_OPERATOR = re.compile(rb"\b(save|from_file)\b")
_OPERATOR = re.compile(r"torch\.ops\.(?!higher_order\.)([A-Za-z]\w*)\.(\w+)\.(\w+)")
_HIGHER_ORDER = re.compile(r"torch\.ops\.higher_order\.[a-z]\w*")
_TOUCHES_FILES = ("aten::save", "aten::from_file")
_ON_SIZES = re.compile(r"torch\._?sym_\w+|math\.[a-z]\w*")
_IDENTIFIER = re.compile(r"[\w.]*")
_MEMBER = re.compile(r"\w[\w.]*")
_LARGEST_TEXT = 100_000_000
"""Bytes; read, they take up to thirty times as much memory. Graphs of large networks take a few millions."""
_PAYLOADS = ("data/weights/", "data/constants/")
_OBJECTS = ("custom_obj", "opaque_obj")


def vet_export(path: Path, root: str) -> None:
    """Refuse an exported program whose reading would run code, or that needs what is not here.

    Args:
        path: an archive of `edgeq.frontends.archive.rebuilt`.
        root: the folder inside the archive that holds everything, with its slash; empty where there is none.

    Raises:
        UsageError: it carries code, or is not laid out as PyTorch does it.
        UnsupportedError: it holds compiled code for one machine, or operators that are not registered.
    """
    where = path.name
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            # PyTorch's reader finds a member whatever the case of its name.
            inner = name[len(root) :].lower()
            if inner.startswith("data/aotinductor/"):
                raise UnsupportedError(
                    "this package holds a compiled library, not a graph",
                    remedy="save the exported program itself with torch.export.save",
                    where=where,
                )
            if inner.startswith("models/") or inner == "serialized_exported_program.json":
                _vet_program(_json(archive, name, where), where)
            elif inner.startswith(_PAYLOADS) and inner.endswith("_config.json"):
                folder = next(folder for folder in _PAYLOADS if inner.startswith(folder))
                _vet_payloads(archive, name, root + folder, where)
            elif inner.endswith(".pt") or (inner.startswith("serialized_") and inner.endswith(".json")):
                _vet_pickle(archive.read(name), name, where)


def vet_script(path: Path) -> None:
    """Refuse TorchScript that writes files or maps them, whether while it is read or when it runs, and that computes
    while it is read.

    Args:
        path: an archive of `edgeq.frontends.archive.rebuilt`.

    Raises:
        UsageError: its code does, or may lie elsewhere than code does since PyTorch 1.3.
    """
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            inner = name.lower().partition("/")[2]
            if inner == "model.json":
                raise carries_code(path.name, "TorchScript as PyTorch wrote it before version 1.3")
            # Beside the code lie tables of the lines that it came from, in which any word may occur.
            if not inner.startswith("code/") or inner.endswith(".debug_pkl"):
                continue
            code = archive.read(name)
            if found := _FILE_OPERATOR.search(code):
                raise carries_code(path.name, f"it touches files ({found[0].decode()})")
            if b"__setstate__" in code:
                raise carries_code(path.name, "__setstate__")


def _vet_payloads(archive: zipfile.ZipFile, name: str, folder: str, where: str) -> None:
    """A list of weights or constants says which member of the folder holds each, as raw numbers or as a pickle."""
    try:
        config = _json(archive, name, where)["config"]
        payloads = [(str(one["path_name"]), bool(one["use_pickle"])) for one in config.values()]
    except (AttributeError, KeyError, TypeError) as error:
        raise damaged(where, f"{name} is not what torch.export writes") from error
    for member, pickled in payloads:
        # PyTorch joins it to the folder as a path, so that anything but a plain name could lead elsewhere.
        if member.startswith(_OBJECTS) or not _MEMBER.fullmatch(member):
            raise carries_code(where, f"the pickled object {member[:60]!r}")
        if pickled:
            try:
                data = archive.read(folder + member)
            except KeyError as error:
                raise damaged(where, f"{folder}{member} is missing") from error
            _vet_pickle(data, folder + member, where)


def _vet_pickle(data: bytes, name: str, where: str) -> None:
    if not data or is_plain(data):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as inner:
            pickles = [inner.read(member) for member in inner.namelist() if member.endswith("data.pkl")]
        listed = ", ".join(filter(None, map(unusual_globals, pickles)))
    except (*BROKEN_ZIP, IndexError) as error:
        raise damaged(where, error) from error
    raise carries_code(where, f"a pickle in {name} ({listed or 'not plain tensors'})")


def _vet_program(program: dict[str, Any], where: str) -> None:
    for key, value in _leaves(program):
        if key == "expr_str":
            safe = is_expression(value)
        elif key == "guards_code":
            safe = is_guard(value)
        elif key in ("target", "as_operator"):
            safe = _is_target(value)
            if safe and not _is_registered(value):
                raise UnsupportedError(
                    f"the operator {value} is not known to this PyTorch",
                    remedy="import the package that defines it before loading the model, or replace the operator",
                    where=where,
                )
        elif key in ("name", "as_name", "forward_arg_names"):
            safe = _IDENTIFIER.fullmatch(value) is not None
        elif key in ("in_spec", "out_spec"):
            safe = is_container(value)
        elif key == "class_fqn":
            safe = False
        else:
            safe = not (key.endswith(("_name", "fqn"))) or QUOTABLE.fullmatch(value) is not None
        if not safe:
            raise carries_code(where, f"{key} {value[:60]!r}")
        if key == "type" and value.startswith("cuda") and not torch.cuda.is_available():
            raise UnsupportedError(
                "the program was exported on a GPU and there is none here",
                remedy="move model and inputs to the CPU before torch.export.export",
                where=where,
            )


def _leaves(program: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """All strings in a program, each with the nearest key above it.

    The metadata of nodes and of modules is left out, which PyTorch neither looks up nor evaluates. Only theirs: where
    keys are names of values, "metadata" is a name like any other.
    """
    pending: list[tuple[str, Any]] = [("", program)]
    while pending:
        key, node = pending.pop()
        if isinstance(node, str):
            yield key, node
        elif isinstance(node, list):
            pending.extend((key, item) for item in reversed(node))
        elif isinstance(node, dict):
            if key.endswith("_values"):
                yield from (("name", name) for name in node)
            described = ("metadata",) if key in ("nodes", "graph_module") else ()
            pending.extend((name, item) for name, item in reversed(node.items()) if name not in described)


def _is_target(text: str) -> bool:
    if text.startswith("_operator."):
        return text.removeprefix("_operator.") in OPERATORS
    if found := _OPERATOR.fullmatch(text):
        # what begins like one of Python's own attributes is one, unless PyTorch has an operator of that name
        inside = found[2].startswith("__") or found[3].startswith("__")
        return f"{found[1]}::{found[2]}" not in _TOUCHES_FILES and (not inside or _is_registered(text))
    return _HIGHER_ORDER.fullmatch(text) is not None or _ON_SIZES.fullmatch(text) is not None


def _is_registered(text: str) -> bool:
    """Whether PyTorch knows an operator; looked up in its tables, so that no attribute of anything is touched."""
    if found := _OPERATOR.fullmatch(text):
        overload = "" if found[3] == "default" else found[3]
        try:
            torch._C._get_schema(f"{found[1]}::{found[2]}", overload)
        except RuntimeError:
            return False
        return True
    if text.startswith("torch.ops.higher_order."):
        return text.removeprefix("torch.ops.higher_order.") in torch._ops._higher_order_ops
    return True


def _json(archive: zipfile.ZipFile, name: str, where: str) -> dict[str, Any]:
    told = archive.getinfo(name).file_size
    if told > _LARGEST_TEXT:
        raise UnsupportedError(
            f"{name} is {told / 1e6:.0f} MB of text, and {_LARGEST_TEXT / 1e6:.0f} MB are the most",
            remedy="export a smaller network, or its parts",
            where=where,
        )
    try:
        value = json.loads(archive.read(name))
    except (ValueError, RecursionError) as error:
        raise damaged(where, error) from error
    if not isinstance(value, dict):
        raise damaged(where, f"{name} is not what torch.export writes")
    return value
