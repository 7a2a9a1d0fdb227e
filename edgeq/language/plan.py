"""The plan of a decoder: for each matrix, what its weights are stored as. A file to read and review."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from edgeq.errors import UsageError
from edgeq.language.decoder import Weight
from edgeq.numerics import Scheme
from edgeq.reading import read_json
from edgeq.records.strict import Strict, validated
from edgeq.registry.schema import Format, Runtime, RuntimeName

KIND: Literal["edgeq.decoder-plan"] = "edgeq.decoder-plan"
FLOAT = "float32"


class MatrixPlan(Strict):
    """A matrix: its size, and what it is stored as."""

    outputs: int
    inputs: int
    choice: str
    """Such as `w4g32`; `float32` where it stays as it is."""
    tied: bool = False
    """Whether words are looked up in it as well as scored by it."""


class DecoderProof(Strict):
    """What was measured on a build of the plan, in its own runtime."""

    size: int
    """Bytes of all files."""
    metric: str
    score: float
    float_score: float
    drop: float
    drop_low: float
    drop_high: float
    held: bool
    """Whether every limit held."""


class DecoderPlan(Strict):
    """What every matrix of a decoder is stored as, for one runtime."""

    kind: Literal["edgeq.decoder-plan"] = KIND
    schema_version: Literal[1] = 1
    target: str
    runtime: RuntimeName
    format: Format
    method: str
    """How weights are rounded."""
    matrices: dict[str, MatrixPlan]
    """By their names in the float file, in the order in which they are met."""
    predicted_loss: float | None = None
    """Nats a token by which the likelihoods are expected to part from float's; None where nobody asked."""
    proof: DecoderProof | None = None
    """None where nothing could be run."""


def is_decoder_plan(path: Path) -> bool:
    """Whether a file is such a plan, or means to be."""
    content = read_json(path, "a plan", "make one with `edgeq plan`")
    return isinstance(content, dict) and content.get("kind") == KIND


def read_decoder_plan(path: Path) -> DecoderPlan:
    """A plan from its file.

    Raises:
        UsageError: it cannot be read, or says what no plan says.
    """
    content = read_json(path, "a plan", "make one with `edgeq plan`")
    return validated(DecoderPlan, content, path)


def uniform(
    weights: tuple[Weight, ...], runtime: Runtime, products: str, words: str, target: str, method: str
) -> DecoderPlan:
    """The same for all products, and the same for all tables of words. Ends that are tied are stored once, as words.

    Raises:
        UsageError: the runtime has no such choice.
    """
    for op, name, option in (("linear", products, "--weights"), ("embedding", words, "--words")):
        check(runtime, op, name, option)
    last = [weight.name for weight in weights if weight.linear][-1:]
    matrices = {
        weight.name: MatrixPlan(
            outputs=weight.rows,
            inputs=weight.columns,
            # what scores words is as large as their table, and as sensitive
            choice=words if weight.embedding or weight.name in last else products,
            tied=weight.embedding and weight.linear,
        )
        for weight in weights
    }
    return DecoderPlan(target=target, runtime=runtime.name, format=runtime.format, method=method, matrices=matrices)


def check(runtime: Runtime, op: str, name: str, where: str) -> None:
    """Refuses what a runtime does not run.

    Raises:
        UsageError: likewise.
    """
    known = runtime.decoder_schemes(op)  # type: ignore[arg-type]
    if name != FLOAT and name not in known:
        remedy = f"one of {', '.join([*known, FLOAT])}"
        raise UsageError(f"{runtime.name} has no {name!r} for {op} weights", where=where, remedy=remedy)


def schemes_of(plan: DecoderPlan, weights: tuple[Weight, ...], runtime: Runtime) -> Mapping[str, Scheme]:
    """By matrix that becomes integers, how.

    Raises:
        UsageError: the plan is of another model, or says what the runtime does not run.
    """
    found = {}
    shapes = {name: (one.outputs, one.inputs) for name, one in plan.matrices.items()}
    if shapes != {weight.name: (weight.rows, weight.columns) for weight in weights}:
        remedy = "plan this model with `edgeq plan`"
        raise UsageError("its matrices are not those of the model", where="plan", remedy=remedy)
    for weight in weights:
        choice = plan.matrices[weight.name].choice
        ops = [op for op, has in (("linear", weight.linear), ("embedding", weight.embedding)) if has]
        for op in ops:
            check(runtime, op, choice, f"plan: {weight.name}")
        if choice != FLOAT:
            scheme = runtime.decoder_schemes(ops[0])[choice]  # type: ignore[arg-type]
            if weight.embedding and scheme.group and weight.columns % scheme.group:
                raise UsageError(
                    f"rows of {weight.columns} numbers have no whole groups of {scheme.group}",
                    where=weight.name,
                    remedy="choose smaller groups for words",
                )
            found[weight.name] = scheme
    return found
