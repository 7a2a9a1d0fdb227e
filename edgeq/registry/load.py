"""Finds, reads and checks target and profile files: those that edgeq ships, and the user's own."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from edgeq.errors import UsageError
from edgeq.reading import within
from edgeq.registry.schema import Kernel, Profile, Runtime, Target
from edgeq.toml import read_toml

Kind = Literal["targets", "profiles"]
Schema = TypeVar("Schema", Target, Profile)

_WEIGHTED = frozenset({"conv1d", "conv2d", "conv3d", "depthwise_conv2d", "conv_transpose2d", "linear", "embedding"})


def load_target(name_or_path: str) -> Target:
    """Loads a shipped target by its name, or a user's file (whatever ends in `.toml` or has a path separator).

    Raises:
        UsageError: no such target, or the file is not a valid one; says where and what to do.
    """
    return _load(_locate("targets", name_or_path), "targets", Target)


def load_profile(name_or_path: str) -> Profile:
    """Loads a shipped device profile by its name, or a user's file, as `load_target` does.

    Raises:
        UsageError: no such profile, or the file is not a valid one; says where and what to do.
    """
    return _load(_locate("profiles", name_or_path), "profiles", Profile)


def profile_of(target: Target, name_or_path: str | None) -> Profile | None:
    """The device of a target that is asked for, or else the target's own; None if it has none.

    Raises:
        UsageError: there is no such profile, or it is a device of another target.
    """
    wanted = name_or_path or target.default_profile
    if wanted is None:
        return None
    profile = load_profile(wanted)
    if profile.target != target.name and wanted != target.default_profile:
        raise UsageError(
            f"{profile.name} is a device of {profile.target}, not of {target.name}",
            where="--profile",
            remedy=f'choose another, or write a file with extends = "{profile.name}" and target = "{target.name}"',
        )
    return profile


def target_names() -> list[str]:
    """Names of the shipped targets, sorted."""
    return _names("targets")


def profile_names() -> list[str]:
    """Names of the shipped device profiles, sorted."""
    return _names("profiles")


def check_all() -> list[str]:
    """Loads everything that is shipped and returns the problems found, one text each; empty if all is well."""
    problems: list[str] = []
    targets: dict[str, Target] = {}
    profiles: dict[str, Profile] = {}
    for name in target_names():
        try:
            targets[name] = load_target(name)
        except UsageError as error:
            problems.append(str(error))
    for name in profile_names():
        try:
            profiles[name] = load_profile(name)
        except UsageError as error:
            problems.append(str(error))
    for name, target in targets.items():
        problems += [f"targets/{name}.toml: {text}" for text in _target_problems(name, target, profiles)]
    for name, profile in profiles.items():
        if profile.name != name:
            problems.append(f"profiles/{name}.toml: name: is {profile.name!r}, but the file is called {name!r}")
        if profile.target not in targets:
            problems.append(f"profiles/{name}.toml: target: there is no valid target {profile.target!r}")
    return problems


def _target_problems(name: str, target: Target, profiles: dict[str, Profile]) -> Iterator[str]:
    if target.name != name:
        yield f"name: is {target.name!r}, but the file is called {name!r}"
    if target.default_profile is not None:
        profile = profiles.get(target.default_profile)
        if profile is None:
            yield f"default_profile: there is no valid profile {target.default_profile!r}"
        elif profile.target != name:
            yield f"default_profile: {profile.name!r} is a device of {profile.target!r}"
    for index, runtime in enumerate(target.runtimes):
        yield from (f"runtimes.{index}.{text}" for text in _runtime_problems(runtime))


def _runtime_problems(runtime: Runtime) -> Iterator[str]:
    for op in runtime.shared_scale:
        if runtime.kernel(op) is None:
            yield f"shared_scale: no kernel lists {op!r}"
    for index, fixed in enumerate(runtime.fixed_outputs):
        if not any(fixed.op in k.ops and fixed.dtype == k.activations for k in runtime.kernels):
            yield f"fixed_outputs.{index}: no kernel runs {fixed.op!r} on {fixed.dtype}"
    seen: set[tuple[object, ...]] = set()
    for index, kernel in enumerate(runtime.kernels):
        yield from (f"kernels.{index}.{text}" for text in _kernel_problems(kernel))
        for op in kernel.ops:
            key = (op, kernel.activations, kernel.weights, kernel.weight_group, kernel.weight_levels)
            if key in seen:
                yield f"kernels.{index}.ops: {op!r} is listed twice with these types"
            seen.add(key)


def _kernel_problems(kernel: Kernel) -> Iterator[str]:
    weighted = _WEIGHTED.intersection(kernel.ops)
    if weighted and kernel.weights is None:
        yield f"weights: missing, although {sorted(weighted)[0]!r} has weights"
    if kernel.weights is not None and len(weighted) < len(kernel.ops):
        yield f"weights: given, although {sorted(set(kernel.ops) - weighted)[0]!r} has none"
    if not kernel.source.strip():
        yield "source: is empty"


def data_folder(kind: Kind) -> Path:
    """Where the shipped files of a kind are."""
    # A wheel carries the data inside the package; a checkout has it beside the package.
    packaged = Path(str(files("edgeq"))) / "_data" / kind
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / kind


def _names(kind: Kind) -> list[str]:
    return sorted(path.stem for path in data_folder(kind).glob("*.toml"))


def _locate(kind: Kind, name_or_path: str, beside: Path | None = None, where: str = "") -> Path:
    """The file meant by a name or a path; a path that a file names lies in `beside`, the folder of that file."""
    if _is_path(name_or_path):
        path = within(beside, name_or_path, where) if beside is not None else _of_user(name_or_path)
        if not path.is_file():
            raise UsageError(f"there is no file {str(path)!r}", where=where, remedy="give the path of a .toml file")
        return path
    names = _names(kind)
    if name_or_path not in names:
        raise UsageError(
            f"there is no {kind[:-1]} {name_or_path!r}",
            where=where,
            remedy=f"{_nearest(name_or_path, names)} (or give the path of a .toml file)",
        )
    return data_folder(kind) / f"{name_or_path}.toml"


def _is_path(text: str) -> bool:
    return text.endswith(".toml") or bool({"/", os.sep, os.altsep or "/"} & set(text))


def _of_user(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # ~name, where nobody has that name
        return Path(path)


def _load(path: Path, kind: Kind, schema: type[Schema]) -> Schema:
    return _validate(path, _merged(path, kind, schema, ()), schema)


def _merged(path: Path, kind: Kind, schema: type[Schema], chain: tuple[Path, ...]) -> dict[str, Any]:
    """The file's table on top of what it extends."""
    path = path.resolve()
    if path in chain:
        circle = " -> ".join(p.name for p in (*chain[chain.index(path) :], path))
        raise UsageError(f"files extend each other in a circle: {circle}", where=f"{path}: extends", remedy="break it")
    table = read_toml(path)
    profile = table.get("default_profile")
    if kind == "targets" and isinstance(profile, str) and _is_path(profile):
        table["default_profile"] = str(_locate("profiles", profile, path.parent, f"{path}: default_profile"))
    base = table.pop("extends", None)
    if base is None:
        return table
    where = f"{path}: extends"
    if not isinstance(base, str):
        raise UsageError("must be a name or a path", where=where, remedy=f'for example extends = "{_names(kind)[0]}"')
    base_path = _locate(kind, base, path.parent, where)
    inherited = _merged(base_path, kind, schema, (*chain, path))
    # The base has to be valid by itself: then whatever is wrong after merging stands in this file.
    _validate(base_path, inherited, schema)
    # Two files must not describe different things under one name.
    inherited.pop("name")
    return _merge(inherited, table)


def _merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Tables merge, runtimes merge by name (the file's own first), everything else replaces."""
    merged = dict(base)
    for key, value in own.items():
        inherited = base.get(key)
        if key == "runtimes" and _tables(value) and _tables(inherited):
            merged[key] = _merge_runtimes(inherited, value)
        elif isinstance(value, dict) and isinstance(inherited, dict) and "value" not in value:
            merged[key] = _merge(inherited, value)
        else:
            # A figure (it has a `value`) is replaced whole: a new number must not inherit the old one's source.
            merged[key] = value
    return merged


def _merge_runtimes(base: list[dict[str, Any]], own: list[dict[str, Any]]) -> list[dict[str, Any]]:
    inherited = {runtime["name"]: runtime for runtime in base}
    # Without a usable name a runtime inherits nothing; validation then reports it.
    named = [str(runtime.get("name")) for runtime in own]
    mine = [_merge(inherited.get(name, {}), runtime) for name, runtime in zip(named, own, strict=True)]
    return mine + [runtime for name, runtime in inherited.items() if name not in named]


def _tables(value: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _validate(path: Path, table: dict[str, Any], schema: type[Schema]) -> Schema:
    try:
        return schema.model_validate(table)
    except ValidationError as errors:
        # A misspelt required key is both unknown and missing: its place is where it stands.
        first, *others = sorted(errors.errors(), key=lambda error: error["type"] != "extra_forbidden")
        more = f" ({len(others)} more)" if others else ""
        location = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"{_cause(first)}{more}",
            where=f"{path}: {location}" if location else str(path),
            remedy=_remedy(first, schema),
        ) from errors


def _cause(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return f"unknown key {error['loc'][-1]!r}"
    if error["type"] == "missing":
        return f"the key {error['loc'][-1]!r} is missing"
    if error["type"] == "literal_error":
        return f"{error['input']!r} is not known here"
    return str(error["msg"])


def _remedy(error: Any, schema: type[BaseModel]) -> str:
    location: Sequence[str | int] = error["loc"]
    if error["type"] == "extra_forbidden":
        return _nearest(str(location[-1]), _keys(schema, location[:-1]))
    if error["type"] == "missing":
        return f"add {location[-1]} = ..."
    if error["type"] == "literal_error":
        return _nearest(str(error["input"]), re.findall(r"'([^']*)'", error["ctx"]["expected"]))
    return "correct this value"


def _keys(schema: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The keys that a file may have at a place in a schema."""
    model = schema
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = next(_models(model.model_fields[part].annotation), model)
    extends = ["extends"] if model is schema else []
    return [field.alias or key for key, field in model.model_fields.items()] + extends


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    """The model classes inside an annotation such as `list[Kernel]` or `Figure | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"one of: {', '.join(known)}"
