"""A loaded model, as the cache keeps it: normalising a program takes longer than reading one that is normalised.

Its program is kept as plain data (`edgeq.model.plain`), or, where that has no words for it, as the archive that
`torch.export` writes, which takes seconds to read.
"""

from __future__ import annotations

import io
import pickle
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeq.cache import Cache, Entry, content_key
from edgeq.data.dataset import InputSpec
from edgeq.errors import UnsupportedError
from edgeq.files import sha256_file
from edgeq.frontends.grids import pack_grids, unpack_grids
from edgeq.frontends.load import load, reference_of
from edgeq.hugging_face.folder import is_hf_folder, read_folder
from edgeq.installed import installed
from edgeq.model import plain
from edgeq.model.graph import Program
from edgeq.model.model import Model

if TYPE_CHECKING:
    from torch.export import ExportedProgram

VERSION = 9
"""To be raised whenever normalisation changes."""

LARGEST = 500_000_000
"""Bytes of a file that is worth keeping a second time."""


def load_kept(path: Path, inputs: Sequence[str], cache: Cache) -> Model:
    """Loads a file as `load` does, or takes what an earlier run made of the same bytes.

    Only for files that carry their own code: what a function of the user's builds cannot be told by a hash.
    """
    content = None if cache.root is None else _content(path)
    if content is None:
        return load(path, inputs=inputs)
    key = content_key("model", VERSION, name=path.name, inputs=list(inputs), **content)
    entry = cache.get("model", key)
    found = None if entry is None else _unpack(entry, lambda: reference_of(path, inputs))
    if found is None:
        if entry is not None:
            cache.tell("a kept result of model is of another kind; it is computed again")
        found = load(path, inputs=inputs)
        packed = _pack(found)
        if packed is not None:
            cache.put("model", key, packed)
    return found


def _content(path: Path) -> dict[str, str] | None:
    """What decides which model lies there; None where it is not worth keeping, or no model.

    Raises:
        UsageError: the folder of a model is damaged.
    """
    if is_hf_folder(path):
        folder = read_folder(path)
        if sum(file.stat().st_size for file in folder.weights) > LARGEST:
            return None
        return {"file": folder.sha256, **installed("torch", "transformers", "tokenizers")}
    if not path.is_file() or path.stat().st_size > LARGEST:
        return None
    return {"file": sha256_file(path), **installed("torch")}


def sent(model: Model) -> tuple[Any, ...]:
    """How `pickle` takes a model to another process.

    Raises:
        pickle.PicklingError: its program cannot be written.
    """
    entry = _pack(model)
    if entry is None:
        raise pickle.PicklingError("neither edgeq nor torch.export can write this model's program to a file")
    return _received, (entry,)


def _received(entry: Entry) -> Model:
    found = _unpack(entry, _stayed_behind)
    if found is None:
        raise UnsupportedError(
            "this model's program does not come back as it was written: it cannot be sent to other processes",
            remedy="leave --workers and --engine away",
        )
    return found


def _stayed_behind() -> Program:
    raise RuntimeError("the program as it was loaded is where it was loaded")


def _pack(model: Model) -> Entry | None:
    try:
        written = _written(model)
    except Exception:  # not every program that runs can be written; then it is made anew each time
        return None
    values = {
        "graph": written.values,
        "fingerprint": model.fingerprint,
        "inputs": [asdict(spec) for spec in model.inputs],
        "output_names": list(model.output_names),
        "kind": model.kind,
        "source": model.source,
        "sha256": model.sha256,
        "notes": list(model.notes),
        "examples": len(model.example),
        "rewrites": {name: dict(places) for name, places in model.rewrites.items()},
        "levelled": sorted(model.levelled),
    }
    examples = {f"example{i}": array for i, array in enumerate(model.example)}
    grids = Entry(None, {}) if model.grids is None else pack_grids(model.grids)
    return Entry({**values, "grids": grids.values}, {**written.arrays, **examples, **grids.arrays})


def _written(model: Model) -> Entry:
    try:
        graph, tensors = plain.write(model.program)
        return Entry(graph, {f"tensor {name}": array for name, array in tensors.items()})
    except plain.InexpressibleError:
        import torch

        from edgeq.frontends.read import quiet

        stream = io.BytesIO()
        with quiet():
            torch.export.save(model.exported(), stream)
        return Entry(None, {"program": np.frombuffer(stream.getvalue(), np.uint8)})


def _unpack(entry: Entry, reference: Callable[[], Program]) -> Model | None:
    try:
        model = _model(entry, reference)
        return model if model.fingerprint == entry.values["fingerprint"] else None
    except MemoryError:
        raise
    except Exception:  # whole, and yet nothing that was packed here
        return None


def _model(entry: Entry, reference: Callable[[], Program]) -> Model:
    values = entry.values
    specs = tuple(InputSpec(s["name"], tuple(s["shape"]), s["dtype"]) for s in values["inputs"])
    example = tuple(entry.arrays[f"example{i}"] for i in range(values["examples"]))
    if values["graph"] is None:
        program, exported = _of_archive(entry)
    else:
        tensors = {name.removeprefix("tensor "): array for name, array in entry.arrays.items()}
        program = plain.read(values["graph"], tensors)

        def exported() -> ExportedProgram:
            from edgeq.model.rebuilt import exported_program

            return exported_program(program, example)

    return Model(
        program=program,
        exported=exported,
        reference=reference,
        inputs=specs,
        output_names=tuple(values["output_names"]),
        kind=values["kind"],
        source=values["source"],
        sha256=values["sha256"],
        example=example,
        notes=tuple(values["notes"]),
        rewrites=values["rewrites"],
        levelled=frozenset(values["levelled"]),
        grids=None if values["grids"] is None else unpack_grids(Entry(values["grids"], entry.arrays)),
    )


def _of_archive(entry: Entry) -> tuple[Program, Callable[[], ExportedProgram]]:
    """Reads as warily as a user's own file: a cache may be shared."""
    from edgeq.frontends.archive import rebuilt
    from edgeq.frontends.deadline import within_reason
    from edgeq.frontends.exported import read_export
    from edgeq.frontends.kinds import identify
    from edgeq.frontends.read import quiet
    from edgeq.model.traced import program_of

    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder, quiet():
        path = Path(folder) / "program.pt2"
        path.write_bytes(entry.arrays["program"].tobytes())
        kind = identify(path)
        with within_reason(path.name), rebuilt(path, kind) as file:
            found = read_export(file, kind, trust=False)
    return program_of(found), lambda: found
