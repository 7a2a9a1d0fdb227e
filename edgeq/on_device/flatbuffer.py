"""Reads flatbuffers by the text of their schema, without generated code: tables as dicts, vectors of bytes as views.

Scalars, strings, tables, unions, enums and vectors of them; no structs.
"""

from __future__ import annotations

import re
import struct
from typing import Any, Dict, List, NamedTuple, Optional

_SCALARS = {
    "bool": "?", "byte": "b", "int8": "b", "ubyte": "B", "uint8": "B", "short": "h", "int16": "h", "ushort": "H",
    "uint16": "H", "int": "i", "int32": "i", "uint": "I", "uint32": "I", "long": "q", "int64": "q", "ulong": "Q",
    "uint64": "Q", "float": "f", "float32": "f", "double": "d", "float64": "d",
}  # fmt: skip


class Field(NamedTuple):
    """`slot` is its place in the table's index; of a union, that of its value, with the kind before it."""

    name: str
    kind: str
    slot: int
    default: str


class Schema(NamedTuple):
    """`tables` by name their fields; `unions` by name the (name, table) of each kind, from 1 on; `enums` by name their
    scalar type, names by value, and values by name."""

    tables: Dict[str, List[Field]]
    unions: Dict[str, List[Any]]
    enums: Dict[str, Any]
    root: str


def parse(*texts: str) -> Schema:
    """A schema of one or several files: those that are included come along; the last one's root is the root."""
    text = re.sub(r"//[^\n]*", "", "\n".join(texts))
    enums, unions = {}, {}
    for name, kind, body in re.findall(r"enum\s+(\w+)\s*:\s*(\w+)\s*\{([^}]*)\}", text):
        names, value = {}, 0
        for entry in filter(None, (part.strip() for part in body.split(","))):
            label, _, given = (part.strip() for part in entry.partition("="))
            value = int(given) if given else value
            names[value], value = label, value + 1
        enums[name] = (kind, names, {label: number for number, label in names.items()})
    for name, body in re.findall(r"union\s+(\w+)\s*\{([^}]*)\}", text):
        entries = [part.split(":") for part in filter(None, (part.strip() for part in body.split(",")))]
        unions[name] = [(one[0].strip(), one[-1].strip()) for one in entries]
    tables = {}
    for name, body in re.findall(r"table\s+(\w+)\s*\{([^}]*)\}", text):
        fields, slot = [], 0
        for label, kind, default, _ in re.findall(
            r"(\w+)\s*:\s*([\w\[\]]+)\s*(?:=\s*([\w.+-]+))?\s*(\([^)]*\))?\s*;", body
        ):
            slot += kind in unions
            fields.append(Field(label, kind, slot, default))
            slot += 1
        tables[name] = fields
    return Schema(tables, unions, enums, re.findall(r"root_type\s+(\w+)", text)[-1])


def read_root(known: Schema, data: Any, start: int = 0) -> Dict[str, Any]:
    """The root table of a buffer.

    Raises:
        struct.error: the buffer is cut off, or holds something else.
    """
    view = memoryview(data)[start:]
    return _table(known, known.root, view, _number(view, "I", 0))


def _table(known: Schema, name: str, view: memoryview, at: int) -> Dict[str, Any]:
    index = at - _number(view, "i", at)
    slots = (_number(view, "H", index) - 4) // 2

    def place(slot: int) -> int:
        offset = _number(view, "H", index + 4 + 2 * slot) if slot < slots else 0
        return at + offset if offset else 0

    found: Dict[str, Any] = {}
    for field in known.tables[name]:
        where = place(field.slot)
        if field.kind in known.unions:
            told = place(field.slot - 1)
            number = _number(view, "B", told) if told else 0
            label, table = known.unions[field.kind][number - 1] if number else ("", "")
            found[field.name + "_type"] = label
            found[field.name] = _table(known, table, view, _follow(view, where)) if label and where else None
        else:
            found[field.name] = _value(known, field.kind, view, where, field.default)
    return found


def _value(known: Schema, kind: str, view: memoryview, where: int, default: str = "") -> Any:
    """What lies at a place; where there is none, what the schema says of that."""
    if kind in known.enums:
        scalar, names, values = known.enums[kind]
        number = _number(view, _SCALARS[scalar], where) if where else values.get(default, int(default or 0))
        return names.get(number, number)
    if kind in _SCALARS:
        if where:
            return _number(view, _SCALARS[kind], where)
        return default == "true" if kind == "bool" else float(default or 0) if kind[0] in "fd" else int(default or 0)
    if not where:
        return [] if kind.startswith("[") else None
    at = _follow(view, where)
    if kind == "string":
        return bytes(_part(view, at + 4, _number(view, "I", at))).decode()
    if not kind.startswith("["):
        return _table(known, kind, view, at)
    inner, count = kind[1:-1], _number(view, "I", at)
    if inner in ("ubyte", "uint8"):
        return _part(view, at + 4, count)
    if inner in _SCALARS:
        return list(struct.unpack_from("<%d%s" % (count, _SCALARS[inner]), view, at + 4))
    return [_value(known, inner, view, at + 4 + 4 * i) for i in range(count)]


def _part(view: memoryview, start: int, count: int) -> memoryview:
    if start + count > len(view):
        raise struct.error("the buffer ends within a vector")
    return view[start : start + count]


def _follow(view: memoryview, where: int) -> int:
    return where + int(_number(view, "I", where))


def _number(view: memoryview, form: str, at: Optional[int]) -> Any:
    if at is None or at < 0:
        raise struct.error("an offset leads out of the buffer")
    return struct.unpack_from("<" + form, view, at)[0]
