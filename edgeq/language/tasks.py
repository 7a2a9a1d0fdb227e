"""A folder of tasks of lm-evaluation-harness, read as data: what would run code of the folder is refused.

The harness reads YAML in which functions may be named and objects made. What it is given is a copy, written from what a
reader of plain data has seen; so that nothing else can be in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from edgeq.errors import UsageError

READERS = ("json", "csv", "parquet", "text")
"""What `dataset_path` may be: readers of data that run no code. Others unpickle, or load a script."""

_FUNCTION = "!function"
_CODE = {"class", "use_prompt", "custom_dataset", "trust_remote_code", "unsafe_code", "hf_evaluate"}
_FILES = ("data_files", "data_dir")


class _Function(str):
    """The name of a function, where the tasks are trusted."""


class _Reader(yaml.SafeLoader):  # type: ignore[misc]  # it has no types
    """Plain data."""


class _Trusting(yaml.SafeLoader):  # type: ignore[misc]
    """Plain data, and names of functions."""


class _Writer(yaml.SafeDumper):  # type: ignore[misc]
    """Both."""


def _name(loader: yaml.SafeLoader, node: yaml.Node) -> _Function:
    return _Function(loader.construct_scalar(node))


_Trusting.add_constructor(_FUNCTION, _name)
_Writer.add_representer(_Function, lambda writer, name: writer.represent_scalar(_FUNCTION, str(name)))


def copied(tasks: Path, out: Path, metrics: frozenset[str], *, trusted: bool) -> list[str]:
    """Copies the YAML files of a folder as data. Files that they name get whole paths, from where they lie.

    Args:
        out: an empty folder, where the harness is to look.
        metrics: those that the harness has itself; it would load any other one as a script.
        trusted: the folder's code may run; its Python files are linked beside the copies.

    Returns:
        Names of what can be asked for: tasks, groups and tags.

    Raises:
        UsageError: there are none, a file is damaged, or would run code.
    """
    if not tasks.is_dir():
        raise UsageError(
            "there is no such folder", where=f"--tasks-from {tasks}", remedy="give a folder of .yaml files"
        )
    root = tasks.resolve()
    waiting = sorted(root.rglob("*.yaml"))
    done: set[Path] = set()
    names: list[str] = []
    while waiting:
        file = waiting.pop(0)
        if file in done:
            continue
        done.add(file)
        content = _read(file, trusted)
        if not trusted:
            _refuse_code(content, file, metrics)
        waiting += [
            _inside(file, str(one), root) for said in _said(content, "include") for one in _listed(said["include"])
        ]
        copy = out / file.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.dump(_with_paths(content, file, root, out), Dumper=_Writer, sort_keys=False, allow_unicode=True)
        copy.write_text(text, encoding="utf-8")
        names += [name for key in ("task", "group", "tag") for name in _listed(content.get(key)) if type(name) is str]
    if trusted:
        for code in sorted(root.rglob("*.py")):
            link = out / code.relative_to(root)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(code)
    if not names:
        raise UsageError("there is no task in it", where=f"--tasks-from {tasks}", remedy="give a folder of .yaml files")
    return sorted(set(names))


def _read(file: Path, trusted: bool) -> dict[str, Any]:
    where = str(file)
    try:
        content = yaml.load(file.read_bytes(), Loader=_Trusting if trusted else _Reader)  # both are safe
    except yaml.constructor.ConstructorError as error:
        at = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        remedy = "give tasks without functions, or --trust-tasks for those of people you trust"
        raise UsageError(f"it is no plain data ({error.problem}{at})", where=where, remedy=remedy) from error
    except (OSError, yaml.YAMLError, RecursionError, ValueError) as error:
        gist = " ".join(str(error).split())[:200]
        raise UsageError(f"it is no YAML ({gist})", where=where, remedy="correct this file") from error
    if not isinstance(content, dict):
        raise UsageError("it is no table", where=where, remedy="correct this file")
    return content


def _refuse_code(content: dict[str, Any], file: Path, metrics: frozenset[str]) -> None:
    """What names code in plain words."""

    def refuse(cause: str) -> None:
        raise UsageError(cause, where=str(file), remedy="--trust-tasks lets tasks of people you trust run their code")

    for part in _tables(content):
        for key in _CODE & part.keys():
            if part[key]:
                refuse(f"{key} would run code")
        if (reader := part.get("dataset_path", READERS[0])) not in READERS:
            refuse(f"its data are {reader!r}, which is none of {', '.join(READERS)} and may run code")
        if isinstance(part.get("metric"), str) and part["metric"] not in metrics:
            refuse(f"the harness has no metric {part['metric']!r}, and would look for a script of that name")


def _with_paths(content: Any, file: Path, root: Path, out: Path) -> Any:
    """The same with whole paths of the data, and of the copies of what is included."""
    if isinstance(content, list):
        return [_with_paths(one, file, root, out) for one in content]
    if not isinstance(content, dict):
        return content
    found = {key: _with_paths(value, file, root, out) for key, value in content.items()}
    for key in _FILES:
        if isinstance(found.get("dataset_kwargs"), dict) and key in found["dataset_kwargs"]:
            found["dataset_kwargs"][key] = _placed(found["dataset_kwargs"][key], file)
    if "include" in found:
        found["include"] = [
            str(out / _inside(file, str(one), root).relative_to(root)) for one in _listed(found["include"])
        ]
    return found


def _placed(told: Any, file: Path) -> Any:
    """Where data lie: beside the YAML file, unless the path is a whole one."""
    if isinstance(told, dict):
        return {split: _placed(one, file) for split, one in told.items()}
    if isinstance(told, list):
        return [_placed(one, file) for one in told]
    path = file.parent / str(told)
    if not path.exists():
        remedy = "give paths from the YAML file, or whole ones"
        raise UsageError(f"there are no data at {str(told)[:200]!r}", where=str(file), remedy=remedy)
    return str(path.resolve())


def _inside(file: Path, include: str, root: Path) -> Path:
    found = (file.parent / include).resolve()
    if not found.is_relative_to(root) or not found.is_file():
        remedy = "include files of the folder only"
        raise UsageError(f"it includes {include[:200]!r}, which is not in the folder", where=str(file), remedy=remedy)
    return found


def _tables(content: Any) -> Iterator[dict[str, Any]]:
    if isinstance(content, dict):
        yield content
    if isinstance(content, dict | list):
        for one in content.values() if isinstance(content, dict) else content:
            yield from _tables(one)


def _said(content: Any, key: str) -> Iterator[dict[str, Any]]:
    return (part for part in _tables(content) if key in part)


def _listed(told: Any) -> list[Any]:
    return told if isinstance(told, list) else [] if told is None else [told]
