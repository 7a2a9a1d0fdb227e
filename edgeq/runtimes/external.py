"""The files that an ONNX file keeps tensors in: which they are, and that they lie where such files may."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.errors import UsageError
from edgeq.reading import within

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from onnx import TensorProto

_COUNT = re.compile(r"[0-9]{1,18}")


def external_files(path: Path) -> list[Path]:
    """Those that the tensors of an ONNX file name, wherever these stand: in graphs within graphs, in attributes,
    functions and sparse tensors. Whatever is wrong with the file itself is the runtime's to refuse, in its own words.

    Raises:
        UsageError: a name leads out of the file's folder, there is no such file, or it is smaller than the file says.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError):
        return []
    found: dict[Path, None] = {}
    try:
        for tensor in _tensors(model, onnx.TensorProto):
            if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
                found |= dict.fromkeys(_files_of(tensor, path))
    except UnicodeDecodeError as error:
        raise _wrong(path, "a name in it is no text") from error
    return sorted(found)


def _tensors(message: Message, kind: type[TensorProto]) -> Iterator[TensorProto]:
    """Every tensor in a message. Messages are nested no deeper than their parser allows, which is a hundred times."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for one in value if hasattr(value, "__len__") else [value]:
            if isinstance(one, kind):
                yield one
            else:
                yield from _tensors(one, kind)


def _files_of(tensor: TensorProto, path: Path) -> Iterator[Path]:
    """A reader may take the first or the last of several entries of one name: all of them are held to account."""
    entries = [(entry.key, entry.value) for entry in tensor.external_data]
    numbers = {"offset": [0], "length": [0]}
    for key, value in entries:
        if key in numbers:
            if not _COUNT.fullmatch(value):
                raise _wrong(path, f"the {key} of tensor {tensor.name!r} is {value[:40]!r}, no number of bytes")
            numbers[key].append(int(value))
    for name in (value for key, value in entries if key == "location"):
        file = within(path.parent, name, str(path))
        if not file.is_file():
            raise _wrong(path, f"tensor {tensor.name!r} is kept in {name!r}, and there is no such file beside it")
        if max(numbers["offset"]) + max(numbers["length"]) > file.stat().st_size:
            raise _wrong(path, f"tensor {tensor.name!r} is kept beyond the end of {name!r}")
        yield file


def _wrong(path: Path, cause: str) -> UsageError:
    return UsageError(cause, where=str(path), remedy="export the model again, and keep its files together")
