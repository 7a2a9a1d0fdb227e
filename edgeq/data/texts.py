"""Texts as samples: lines, tables of tab-separated columns, or JSON lines, made numbers by the tokenizer of a folder.

A file with the columns `text_a`, `text_b` and `score` has pairs that an embedding is judged by: each text is a sample,
and the two of a pair come one behind the other. With `label` in place of `score`, both texts are one input.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeq.data.check import fit, spread
from edgeq.data.dataset import Dataset, InputSpec, make_dataset
from edgeq.errors import UsageError
from edgeq.hugging_face.folder import CONFIG, read_settings
from edgeq.hugging_face.tokenizer import tokenize
from edgeq.reading import read_text

_TEXTS = (("text",), ("text_a", "text_b"))
_WANTED = ("label", "score")
_FORM = "name the columns text or text_a and text_b, and for evaluation label or score"


class Row(NamedTuple):
    """A line of a file.

    Attributes:
        place: for messages.
        texts: one or two.
        wanted: the label or the score, as it is written; empty where there is none.
    """

    place: str
    texts: tuple[str, ...]
    wanted: str


def load_texts(
    path: Path,
    specs: Sequence[InputSpec],
    tokenizer: Path,
    *,
    role: Literal["calibration", "evaluation"],
    limit: int | None,
    notes: list[str],
) -> Dataset:
    """Read texts and tokenize them.

    Args:
        path: `.tsv` with a header, `.jsonl` with an object on each line, anything else with a text on each line.
        specs: the inputs of the model, [N, length] each, by the tokenizer's names.
        tokenizer: the folder that holds it, and that names classes in its `config.json`.
        role: labels are looked at for evaluation only.
        limit: keep at most so many samples, evenly spread; of pairs, both texts or none.
        notes: receives what was cut, and how labels were read.

    Raises:
        UsageError: the file is damaged or of another form, or the model takes no texts of this tokenizer.
        MissingExtraError: transformers is not installed.
    """
    where, length = path.name, _length(specs, path.name)
    rows, column = _rows(path)
    paired = column == "score" and len(rows[0].texts) == 2
    group = 2 if paired else 1
    if limit is not None:
        rows = [rows[i] for i in spread(len(rows), max(1, limit // group))]
    labels = None
    if role == "evaluation" and column is not None:
        labels = np.repeat(_labels(rows, column, tokenizer, where, notes), group)
    first = [text for row in rows for text in row.texts] if paired else [row.texts[0] for row in rows]
    second = [row.texts[1] for row in rows] if not paired and len(rows[0].texts) == 2 else None
    tokens = tokenize(tokenizer, first, second, length)
    missing = [spec.name for spec in specs if spec.name not in tokens.inputs]
    if missing:
        raise UsageError(
            f"the model takes {missing[0]!r}, and the tokenizer of {tokenizer.name} gives {', '.join(tokens.inputs)}",
            where=where,
            remedy="name the folder of the model's own tokenizer with --preprocess, or give arrays in a .npz",
        )
    if tokens.cut:
        notes.append(f"{where}: {tokens.cut} of {len(first)} texts are longer than {length} tokens and were cut")
    arrays = {spec.name: tokens.inputs[spec.name].astype(spec.dtype) for spec in specs}
    fitted, _ = fit(arrays, specs, limit=None, where=where, notes=notes)
    return make_dataset(fitted, specs, labels=labels, source=where, notes=notes, group=group)


def _length(specs: Sequence[InputSpec], where: str) -> int:
    """Tokens of an input."""
    shapes = {spec.sample_shape for spec in specs}
    if len(shapes) == 1 and all(np.issubdtype(spec.dtype, np.integer) for spec in specs):
        (shape,) = shapes
        if len(shape) == 1 and shape[0] is not None:
            return shape[0]
    raise UsageError(
        f"these are texts, and the model takes {', '.join(map(str, specs))}",
        where=where,
        remedy="a model for texts takes integers [N, tokens], of a fixed number of tokens",
    )


def _rows(path: Path) -> tuple[list[Row], str | None]:
    """The lines of a file, and which of `label` and `score` they have."""
    lines = read_text(path).removeprefix("\ufeff").split("\n")
    told = [(f"{path.name}, line {number}", line.rstrip("\r")) for number, line in enumerate(lines, 1)]
    told = [(place, line) for place, line in told if line.strip()]
    if not told:
        raise UsageError("it holds no texts", where=path.name, remedy="write a text on each line")
    suffix = path.suffix.lower()
    if suffix not in (".tsv", ".jsonl"):
        return [Row(place, (line.strip(),), "") for place, line in told], None
    table = _of_json(told) if suffix == ".jsonl" else _of_tabs(told)
    if not table:
        raise UsageError("it holds no rows", where=path.name, remedy="write a text on each line below the header")
    names = set(table[0][1])
    texts = next((columns for columns in _TEXTS if set(columns) <= names), None)
    wanted = [name for name in _WANTED if name in names]
    if texts is None or len(wanted) > 1:
        raise UsageError(f"its columns are {', '.join(map(repr, table[0][1]))}", where=path.name, remedy=_FORM)
    column = wanted[0] if wanted else None
    rows = []
    for place, row in table:
        if not {*texts, *wanted} <= set(row):
            raise UsageError(
                f"it has {', '.join(map(repr, row))}, and lines before have more", where=place, remedy=_FORM
            )
        rows.append(Row(place, tuple(row[name] for name in texts), row[column].strip() if column else ""))
    return rows, column


def _of_tabs(told: Sequence[tuple[str, str]]) -> list[tuple[str, dict[str, str]]]:
    columns = [name.strip() for name in told[0][1].split("\t")]
    found = []
    for place, line in told[1:]:
        values = line.split("\t")
        if len(values) != len(columns):
            raise UsageError(
                f"it has {len(values)} columns, and the header {len(columns)} ({', '.join(columns)})",
                where=place,
                remedy="separate columns by tabs, and let no text hold one",
            )
        found.append((place, dict(zip(columns, values, strict=True))))
    return found


def _of_json(told: Sequence[tuple[str, str]]) -> list[tuple[str, dict[str, str]]]:
    found = []
    for place, line in told:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"it is no JSON ({error})", where=place, remedy="write an object on each line") from error
        if not isinstance(row, dict) or not all(
            isinstance(row[name], str) for columns in _TEXTS for name in columns if name in row
        ):
            raise UsageError("it is no object with texts", where=place, remedy=_FORM)
        found.append(
            (place, {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()})
        )
    return found


def _labels(
    rows: Sequence[Row], column: str, tokenizer: Path, where: str, notes: list[str]
) -> NDArray[np.int64] | NDArray[np.float64]:
    """Names of classes where the folder has them all, or numbers, [N]."""
    written = [row.wanted for row in rows]
    names = _names(tokenizer) if column == "label" else {}
    if names and all(one in names for one in written):
        notes.append(f"{where}: labels are the names of classes in {tokenizer.name}/{CONFIG}")
        return np.array([names[one] for one in written], np.int64)
    whole = column == "label"
    numbers: list[float] = []
    for row in rows:
        try:
            numbers.append(float(row.wanted))
            if not math.isfinite(numbers[-1]):
                raise ValueError
        except ValueError as error:
            known = f", or one of {', '.join(list(names)[:5])}" if names else ""
            raise UsageError(
                f"the {column} {row.wanted[:40]!r} is no number{known}", where=row.place, remedy=_FORM
            ) from error
    values = np.array(numbers)
    return values.astype(np.int64) if whole and bool((values == values.round()).all()) else values


def _names(folder: Path) -> dict[str, int]:
    """By name, the number of a class."""
    if not (folder / CONFIG).is_file():
        return {}
    table: Any = read_settings(folder, CONFIG).get("id2label")
    try:
        return {str(name): int(number) for number, name in table.items()}
    except (AttributeError, ValueError, TypeError):
        return {}
