"""What a probe found, as a file: for every cell of a target's table, what was seen of it in the real runtime."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgeq.errors import UsageError
from edgeq.files import atomic_write
from edgeq.lowering.form import dynamic, on_integers
from edgeq.reading import read_bytes
from edgeq.registry.load import data_folder
from edgeq.registry.schema import Kernel, OpClass, Runtime, RuntimeName, Target

DATA = "one small operator with random weights, on normally distributed random inputs"
"""What every probe works on: it tells what a kernel can do, and nothing about the accuracy or speed of a model."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Speed(_Strict):
    """Median microseconds of one call, integer and float in turns, one thread. Of one small operator: in a model,
    neighbours decide whether conversions are paid for as well."""

    integer_us: Annotated[float, Field(gt=0)]
    float_us: Annotated[float, Field(gt=0)]


class Cell(_Strict):
    """One operator class with one kernel of the table.

    Attributes:
        op, kernel: the cell; `kernel` is its name in plans.
        claim: digest of all that the table says of it (see `claim_of`): evidence for another claim is none for this.
        converts: the operator could be quantized with this kernel, and was written as planned.
        runs: the runtime took the file and computed.
        integer: the runtime's own account has it on integers; None where it gave none. It should not where the weights
            alone are integers.
        steps: the largest difference from edgeq's simulation, in quantization steps of the output; of a float output,
            in steps of which its range has 65535.
        allowed: how many steps count as right.
        ran_as: operators and kernels as the runtime named them, in order.
        speed: None on emulated devices.
        error: what went wrong on the way; nothing if it is empty.
    """

    op: OpClass
    kernel: str
    claim: str
    converts: bool
    runs: bool = False
    integer: bool | None = None
    steps: int | None = None
    allowed: int
    ran_as: list[str] = []
    speed: Speed | None = None
    error: str = ""

    @property
    def right(self) -> bool:
        """Whether the answers are those that the simulation gives."""
        return self.steps is not None and self.steps <= self.allowed

    @property
    def doubt(self) -> str:
        """Why the table's claim is not proven: a kernel of integers, or of integer weights alone, that gives the right
        answers; empty if it is."""
        if self.error:
            return self.error
        if self.integer is None and not dynamic(self.kernel):  # whose answers tell that the input was rounded
            return "the runtime does not say what it computed with"
        integers = on_integers(self.kernel) or dynamic(self.kernel)
        if self.integer and not integers:
            return f"the runtime computed on integers: {'; '.join(self.ran_as)}"
        if self.integer is False and integers:
            return f"the runtime computed in float: {'; '.join(self.ran_as)}"
        return "" if self.right else f"off by {self.steps} steps, {self.allowed} allowed"

    @property
    def proven(self) -> bool:
        return not self.doubt

    @model_validator(mode="after")
    def _in_order(self) -> Cell:
        if not self.error and not (self.converts and self.runs and self.steps is not None):
            raise ValueError("a cell that was not run to its end needs an error")
        return self


class Evidence(_Strict):
    """The cells of one runtime of one target, as one device showed them.

    Attributes:
        version: of the runtime's package on the device.
        device: as `--device` names it; `emulated` means that its times are none.
        cells: in the order of the table; those that were not tried are absent.
    """

    schema_version: Literal[1] = Field(1, alias="schema")
    target: str
    runtime: RuntimeName
    version: str
    device: str
    emulated: bool
    cpu: str
    data: str = DATA
    cells: list[Cell]

    @model_validator(mode="after")
    def _one_of_each(self) -> Evidence:
        keys = [(cell.op, cell.kernel) for cell in self.cells]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ValueError(f"a cell is listed twice: {twice[0]} {twice[1]}")
        if self.emulated and any(cell.speed for cell in self.cells):
            raise ValueError("the device is emulated: its times are no speeds")
        return self


def cells_of(runtime: Runtime) -> Iterator[tuple[OpClass, Kernel]]:
    """Every cell of a runtime's table, in its order. Of two kernels of one name for an operator the first counts: no
    plan can ask for the other."""
    for kernel in runtime.kernels:
        yield from ((op, kernel) for op in kernel.ops if runtime.kernel(op, kernel.name) is kernel)


def claim_of(runtime: Runtime, op: OpClass, kernel: Kernel) -> str:
    """Digest of what a table says of a cell: types, schemes, and what the runtime prescribes for the operator."""
    said = {
        "kernel": kernel.model_dump(mode="json", exclude={"ops", "source", "expanded_at_load"}, exclude_defaults=True),
        "shared_scale": op in runtime.shared_scale,
        "fixed_outputs": [f.model_dump(mode="json") for f in runtime.fixed_outputs if f.op == op],
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def file_name(target: str, runtime: str) -> str:
    """What the evidence for a runtime of a target is called."""
    return f"{target}.{runtime}.json"


def write_evidence(evidence: Evidence, path: Path) -> None:
    """Writes a file whose lines change only where what was found has changed.

    Raises:
        UsageError: it cannot be written.
    """
    atomic_write(path, evidence.model_dump_json(indent=2, by_alias=True) + "\n")


def read_evidence(path: Path) -> Evidence:
    """Reads a file.

    Raises:
        UsageError: it cannot be read, or is no valid evidence; says where.
    """
    try:
        return Evidence.model_validate_json(read_bytes(path))
    except ValidationError as errors:
        first = errors.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"is no evidence: {first['msg']}",
            where=f"{path}: {place}" if place else str(path),
            remedy="let edgeq probe write it",
        ) from errors


def shipped_files() -> list[Path]:
    """The evidence that comes with edgeq, sorted."""
    return sorted((data_folder("profiles") / "evidence").glob("*.json"))


def shipped(target: Target, runtime: Runtime) -> Evidence | None:
    """The shipped evidence for a runtime of a target, or None. Targets of a user's own have none, whatever they extend.

    Raises:
        UsageError: the file is damaged.
    """
    name = file_name(target.name, runtime.name)
    return next((read_evidence(path) for path in shipped_files() if path.name == name), None)


def standing(evidence: Evidence | None, runtime: Runtime, op: OpClass, kernel: Kernel) -> Cell | None:
    """The cell of the evidence that speaks for what the table says now, or None."""
    claim = claim_of(runtime, op, kernel)
    cells = evidence.cells if evidence else []
    return next((c for c in cells if (c.op, c.kernel, c.claim) == (op, kernel.name, claim)), None)


def unproven(target: Target, runtime: Runtime) -> set[tuple[OpClass, str]]:
    """Operator class and kernel name of every cell that the table claims and the shipped evidence does not prove.

    That is every cell where there is no evidence at all: ask `shipped` where the difference matters.
    """
    evidence = shipped(target, runtime)
    found = ((op, kernel, standing(evidence, runtime, op, kernel)) for op, kernel in cells_of(runtime))
    return {(op, kernel.name) for op, kernel, cell in found if cell is None or not cell.proven}
