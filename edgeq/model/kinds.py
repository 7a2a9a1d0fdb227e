"""What a model file is, told from its content, and whether reading it would run code that it carries.

Nothing here executes what a file holds. Three things in PyTorch's files can run code when they are read: pickles (they
import and call what they name), the size expressions and guards of an exported program (they are evaluated as Python),
and its operator names (they are looked up below `torch`). Each is checked against what an honest file contains.
"""

from __future__ import annotations

import ast
import difflib
import io
import json
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from edgeq.errors import UnsupportedError, UsageError

Content = Literal["torch.export", "torchscript", "pickle", "legacy pickle", "safetensors"]

SUPPORTED = "torch.export .pt2, TorchScript, or a torch.save file"
_HEAD = 4096
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_BAD_ZIP = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError, struct.error,
)  # fmt: skip

_FOREIGN: list[tuple[bytes, int, str]] = [
    (b"\x89HDF\r\n\x1a\n", 0, "an HDF5 file (Keras, TensorFlow)"),
    (b"TFL3", 4, "a TensorFlow Lite model"),
    (b"version https://git-lfs", 0, "a git-lfs pointer: the real file was not fetched (git lfs pull)"),
    (b"GGUF", 0, "a GGUF model"),
    (b"\x93NUMPY", 0, "a NumPy array"),
    (b"\x1f\x8b", 0, "a gzip archive: unpack it first"),
    (b"7z\xbc\xaf", 0, "a 7z archive: unpack it first"),
    (b"ustar", 257, "a tar archive: unpack it first"),
    (b"\x7fELF", 0, "a program or shared library"),
    (b"%PDF", 0, "a PDF document"),
]

_OPERATORS = {
    "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pos", "pow", "eq", "ne", "lt", "le", "gt", "ge",
    "and_", "or_", "xor", "not_", "getitem", "lshift", "rshift",
}  # fmt: skip
_TARGET = re.compile(
    r"torch\.ops\.(?!load_library|loaded_libraries)[A-Za-z]\w*(\.(?!__)\w+){1,2}|torch\.sym_\w+|math\.[a-z]\w*"
)
_IDENTIFIER = re.compile(r"[\w.]*")
_QUALIFIED = re.compile(r'[^"\\\x00-\x1f]*')
_SYMBOL = re.compile(r"[a-z]+\d+|oo|int_oo|true|false|True|False")
_FUNCTIONS = {
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Abs", "Eq", "Ne", "Lt", "Le", "Gt",
    "Ge", "And", "Or", "Not", "Equality", "Unequality", "LessThan", "GreaterThan", "StrictLessThan",
    "StrictGreaterThan", "floor", "ceiling", "Piecewise", "ExprCondPair", "FloorDiv", "ModularIndexing", "Where",
    "PythonMod", "Mod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural",
    "FloatPow", "FloatTrueDiv", "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat", "TruncToInt",
    "RoundToInt", "RoundDecimal", "ToFloat", "Identity",
}  # fmt: skip
_GUARD_METHODS = {"size", "stride", "storage_offset", "dim", "numel"}
_GUARD_FUNCTIONS = {"max", "min", "abs", "int", "float"}
_CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
_ARITHMETIC = (
    ast.Expression, ast.Constant, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop,
    ast.boolop, ast.cmpop, ast.expr_context, ast.Tuple, ast.keyword, ast.Name, ast.Call,
)  # fmt: skip
# Globals that a checkpoint of plain tensors names; they are left out when the others are listed.
_TENSOR_GLOBAL = re.compile(
    r"torch\._utils\._rebuild\w+|torch\.\w*Storage|collections\.OrderedDict|torch\.(float|int|uint)\d+"
)


def identify(path: Path) -> Found:
    """Tell what a file is from its first bytes and, for an archive, its members. The suffix plays no part.

    Raises:
        UsageError: no file, damaged, or not a PyTorch model; the message says what it seems to be.
    """
    head = _head(path)
    where = path.name
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _identify_zip(path)
    if len(head) >= 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= path.stat().st_size - 8:
        return Found("safetensors", "")
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return Found("legacy pickle", "")
    raise UsageError(f"this is {_foreign(head)}, not a PyTorch model", remedy=f"give a {SUPPORTED}", where=where)


def damaged(where: str, error: BaseException | str) -> UsageError:
    """The error for a file that ought to be readable and is not."""
    text = error if isinstance(error, str) else gist(error)
    return UsageError(
        f"the file is damaged or cut short ({text})", remedy="copy, download or export the file again", where=where
    )


def gist(error: BaseException) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def refuse_code(where: str, what: str) -> UsageError:
    """The error for a file that would run code while it is read."""
    return UsageError(
        f"reading this file would run code that it carries: {what}",
        remedy="export the model with torch.export.save, or pass --trust-pickle if you trust whoever made the file",
        where=where,
    )


def pickle_globals(data: bytes) -> tuple[str, ...]:
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
    names = [name for name in pickle_globals(data) if not _TENSOR_GLOBAL.fullmatch(name)]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def vet_export(path: Path, root: str) -> None:
    """Refuse an exported program whose reading would run code, or that needs what is not here.

    Raises:
        UsageError: it carries code, or its description is no JSON.
        UnsupportedError: it holds compiled code for one machine, or operators that are not registered.
    """
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        for name in names:
            inner = name[len(root) :]
            if inner.startswith("data/aotinductor/"):
                raise UnsupportedError(
                    "this package holds a compiled library, not a graph",
                    remedy="save the exported program itself with torch.export.save",
                    where=path.name,
                )
            if inner.startswith(("data/constants/custom_obj", "data/constants/opaque_obj")):
                raise refuse_code(path.name, f"the pickled object {inner}")
            if inner.startswith("models/") or inner == "serialized_exported_program.json":
                _vet_program(_json(archive, name, path.name), path.name)
            elif inner.endswith("_config.json"):
                for payload in _json(archive, name, path.name).get("config", {}).values():
                    if payload.get("use_pickle"):
                        _vet_pickle(archive, name.rsplit("/", 1)[0] + "/" + payload["path_name"], path.name)
            elif inner.endswith(".pt") or (inner.startswith("serialized_") and inner.endswith(".json")):
                _vet_pickle(archive, name, path.name)


def _head(path: Path) -> bytes:
    if path.is_dir():
        seems = "a TensorFlow SavedModel" if (path / "saved_model.pb").exists() else "not a file"
        raise UsageError(f"this is a folder ({seems})", remedy=f"give the model file: {SUPPORTED}", where=path.name)
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
    return f"did you mean {path.parent / near[0]}?" if near else f"give the path of a {SUPPORTED}"


def _foreign(head: bytes) -> str:
    for magic, at, name in _FOREIGN:
        if head[at : at + len(magic)] == magic:
            return name
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page: the download went wrong"
    # An ONNX file is a protobuf: field 1 (the version, a small number), then a producer, an operator set or the graph.
    if head[:1] == b"\x08" and len(head) > 2 and head[1] <= 20 and head[2] in b"\x12\x1a\x22\x3a\x42\x72":
        return "an ONNX model"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head[:256]):
        return "a text file"
    return "a file of an unknown kind"


def _identify_zip(path: Path) -> Found:
    names = _checked_names(path)
    for name in names:
        root, _, inner = name.partition("/")
        if name == "serialized_exported_program.json":
            return Found("torch.export", "")
        if inner.startswith("models/") and inner.endswith(".json"):
            return Found("torch.export", root + "/")
        if inner.startswith("data/aotinductor/"):
            return Found("torch.export", root + "/")
        if name.startswith("models/") and name.endswith(".json") and "archive_version" in names:
            return Found("torch.export", "")
    roots = {name.partition("/")[0] for name in names}
    for root in sorted(roots):
        if f"{root}/constants.pkl" in names:
            return Found("torchscript", root + "/")
        if f"{root}/data.pkl" in names:
            return Found("pickle", root + "/")
    if names and all(name.endswith(".npy") for name in names):
        seems = "a NumPy archive"
    elif "model.weights.h5" in names:
        seems = "a Keras model"
    else:
        seems = "a zip archive of something else"
    raise UsageError(f"this is {seems}, not a PyTorch model", remedy=f"give a {SUPPORTED}", where=path.name)


def _checked_names(path: Path) -> list[str]:
    """Member names of an archive whose every checksum holds. PyTorch's own reader does not always compare them."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            broken = archive.testzip()
    except _BAD_ZIP as error:
        raise damaged(path.name, error) from error
    if broken is not None:
        raise damaged(path.name, f"the checksum of {broken} does not hold")
    # Two members of one name let two readers see two different files: what is checked must be what is loaded.
    if len({name.lower() for name in names}) != len(names):
        raise damaged(path.name, "two members have the same name")
    return names


def _pickle_count(data: bytes) -> int:
    """PyTorch's legacy format is five pickles in a row and then raw storages; anything else here is one."""
    first = next(iter(pickletools.genops(data[2:])), None) if data[:1] == b"\x80" else None
    legacy = first is not None and isinstance(first[1], int) and first[1] == _LEGACY_MAGIC
    return 5 if legacy else 1


def _json(archive: zipfile.ZipFile, name: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(archive.read(name))
    except ValueError as error:
        raise damaged(where, error) from error
    if not isinstance(value, dict):
        raise damaged(where, f"{name} is not what torch.export writes")
    return value


def _vet_pickle(archive: zipfile.ZipFile, name: str, where: str) -> None:
    data = archive.read(name) if name in archive.namelist() else b""
    if not data or is_plain(data):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as inner:
            pickles = [inner.read(member) for member in inner.namelist() if member.endswith("data.pkl")]
        listed = ", ".join(filter(None, map(unusual_globals, pickles)))
    except (*_BAD_ZIP, IndexError) as error:
        raise damaged(where, error) from error
    raise refuse_code(where, f"a pickle in {name} ({listed or 'not plain tensors'})")


def _vet_program(program: dict[str, Any], where: str) -> None:
    for key, value in _leaves(program):
        if key == "expr_str":
            safe = _is_expression(value)
        elif key == "guards_code":
            safe = _is_guard(value)
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
            safe = _is_container(value)
        elif key == "class_fqn":
            safe = False
        else:
            safe = not (key.endswith(("_name", "fqn"))) or _QUALIFIED.fullmatch(value) is not None
        if not safe:
            raise refuse_code(where, f"{key} {value[:60]!r}")
        if key == "type" and value.startswith("cuda") and not torch.cuda.is_available():
            raise UnsupportedError(
                "the program was exported on a GPU and there is none here",
                remedy="move model and inputs to the CPU before torch.export.export",
                where=where,
            )


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All strings below a JSON value, each with the nearest key above it. Metadata is never looked up or evaluated."""
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, list):
        for item in node:
            yield from _leaves(item, key)
    elif isinstance(node, dict):
        for name, item in node.items():
            if key.endswith("_values"):
                yield "name", name
            if name != "metadata":
                yield from _leaves(item, name)


def _is_target(text: str) -> bool:
    if text.startswith("_operator."):
        return text.removeprefix("_operator.") in _OPERATORS
    return _TARGET.fullmatch(text) is not None


def _is_registered(text: str) -> bool:
    if not text.startswith("torch."):
        return True
    found: Any = torch
    for name in text.split(".")[1:]:
        found = getattr(found, name, None)
    return found is not None


def _is_container(text: str) -> bool:
    try:
        _, tree = json.loads(text)
        pending = [tree]
        while pending:
            node = pending.pop()
            if node["type"] not in _CONTAINERS:
                return False
            for name in json.loads(node["context"] or "null") or []:
                plain = isinstance(name, str) and _QUALIFIED.fullmatch(name) is not None and "'" not in name
                if not plain and not isinstance(name, int):
                    return False
            pending.extend(node["children_spec"])
    except (ValueError, TypeError, KeyError):
        return False
    return True


def _parse(text: str) -> ast.Expression | None:
    try:
        return ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_expression(text: str) -> bool:
    """Whether a size expression is arithmetic over symbols and the known functions, and no other Python."""
    tree = _parse(text)
    if tree is None:
        return False
    called, symbols = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if not (isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS):
                return False
            called.add(id(node.func))
            if node.func.id == "Symbol" and node.args:
                symbols.add(id(node.args[0]))
    for node in ast.walk(tree):
        if not isinstance(node, _ARITHMETIC):
            return False
        if isinstance(node, ast.Name) and id(node) not in called and not _SYMBOL.fullmatch(node.id):
            return False
        # A string is the name of a symbol; anywhere else it would be parsed, and evaluated, once more.
        name = node.value if isinstance(node, ast.Constant) else None
        if isinstance(name, str) and not (id(node) in symbols and name.isidentifier()):
            return False
    return True


def _is_guard(text: str) -> bool:
    """Whether a guard only compares sizes of the inputs, such as `L['x'].size()[0] <= 5`."""
    tree = _parse(text)
    # PyTorch puts the text of a guard between double quotes as well, in a message.
    if tree is None or not _QUALIFIED.fullmatch(text):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, (*_ARITHMETIC, ast.Attribute, ast.Subscript)):
            return False
        if isinstance(node, ast.Attribute):
            of_math = isinstance(node.value, ast.Name) and node.value.id == "math" and not node.attr.startswith("_")
            if not of_math and node.attr not in _GUARD_METHODS:
                return False
        if isinstance(node, ast.Name) and node.id not in {"L", "math"} | _GUARD_FUNCTIONS | _FUNCTIONS:
            return False
        if isinstance(node, ast.Call) and not isinstance(node.func, (ast.Name, ast.Attribute)):
            return False
    return True


@dataclass(frozen=True)
class Found:
    """What a file is.

    Attributes:
        content: the kind of content.
        root: the folder inside the archive that holds everything, with its slash; empty where there is none.
    """

    content: Content
    root: str
