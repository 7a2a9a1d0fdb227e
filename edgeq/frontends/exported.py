"""Exported programs: `torch.export` files of either layout, and programs in memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from edgeq.errors import UsageError
from edgeq.frontends.check import check_program
from edgeq.frontends.examples import Given, carried, check_fit, in_order
from edgeq.frontends.kinds import Found
from edgeq.frontends.loaded import Loaded, describe
from edgeq.frontends.precision import program_in_float32
from edgeq.frontends.returned import without_none
from edgeq.frontends.vet import vet_export
from edgeq.model.refusals import gist


def read_export(path: Path, found: Found, trust: bool) -> ExportedProgram:
    """The program in a file, of `rebuilt`; without trust, one that runs nothing while it is read."""
    if not trust:
        vet_export(path, found.root)
    with path.open("rb") as file, contextlib.nullcontext() if trust else _plain_pickles():
        try:
            program = _load(file, older=found.root == "")
            # Python that would be run to check sample inputs, and nothing here asks it; the ranges of sizes stay.
            program._guards_code = []
            return program
        except Exception as error:
            # The checksums hold, so this is a matter of versions or of hand-made content rather than of damage.
            raise UsageError(
                f"the exported program cannot be read ({gist(error)})",
                remedy=f"export it again with PyTorch {torch.__version__.split('+')[0]}",
                where=path.name,
            ) from error


def from_program(program: ExportedProgram, given: Given, where: str) -> Loaded:
    """A program as it is, in float32; its sample inputs are those given, otherwise its own."""
    program, notes = program_in_float32(without_none(program), where)
    check_program(program, where)
    names = tuple(str(name) for name in program.graph_signature.user_inputs)
    example = in_order(given, names, where) if given.tensors else carried(program)
    check_fit(program, example, where)
    return replace(describe(program, "torch.export", where, example), notes=notes)


@contextlib.contextmanager
def _plain_pickles() -> Iterator[None]:
    """Meanwhile PyTorch reads nothing but tensors and plain containers from pickles, wherever it comes upon one."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _load(file: Any, *, older: bool) -> ExportedProgram:
    if older:
        return torch.export.load(file)
    # torch.export.load hides the cause of a failure in the log; what it calls does not.
    from torch.export.pt2_archive._package import load_pt2

    programs = load_pt2(file).exported_programs
    if len(programs) != 1:
        raise ValueError(f"the package holds {len(programs)} programs, and one is wanted")
    program: ExportedProgram = next(iter(programs.values()))
    return program
