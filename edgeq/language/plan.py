"""The plan of a decoder: for each matrix, what its weights are stored as. A file to read and review."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from edgeq.errors import UsageError
from edgeq.language.decoder import Weight
from edgeq.reading import read_json
from edgeq.records.strict import Strict, validated
from edgeq.records.wording import bytes_text
from edgeq.registry.schema import DecoderChoice, Format, Runtime, RuntimeName

KIND: Literal["edgeq.decoder-plan"] = "edgeq.decoder-plan"
FLOAT = "float32"
PLAN = "plan.json"
"""Its name in a build."""


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


def is_decoder_build(folder: Path) -> bool:
    """Whether this is a folder that `edgeq deploy` left of a language model.

    Raises:
        UsageError: its plan cannot be read.
    """
    return (folder / PLAN).is_file() and is_decoder_plan(folder / PLAN)


def read_decoder_plan(path: Path) -> DecoderPlan:
    """A plan from its file.

    Raises:
        UsageError: it cannot be read, or says what no plan says.
    """
    content = read_json(path, "a plan", "make one with `edgeq plan`")
    return validated(DecoderPlan, content, path)


def uniform(
    weights: tuple[Weight, ...],
    runtime: Runtime,
    target: str,
    method: str,
    products: str | None = None,
    words: str | None = None,
) -> DecoderPlan:
    """The same for all products, and the same for tables of words and for the product that scores words.

    Args:
        products, words: names of choices; the runtime's preferred ones, of 4 and of 8 bits, if None.

    Raises:
        UsageError: the runtime has no such choice.
    """
    scoring = _scoring(weights)

    def choice(weight: Weight) -> str:
        # what scores words is as large as their table, and as sensitive
        as_words = weight.embedding or weight.name in scoring
        asked, bits, group, option = (words, 8, 64, "--words") if as_words else (products, 4, 32, "--weights")
        known = choices(weight, runtime)
        found = asked or next(
            (n for n, one in known.items() if (one.scheme.width, one.scheme.group) == (bits, group)), FLOAT
        )
        check(known, found, f"{option}: {weight.name}", runtime)
        return found

    matrices = {
        weight.name: MatrixPlan(
            outputs=weight.rows,
            inputs=weight.columns,
            choice=choice(weight),
            tied=weight.embedding and weight.linear,
        )
        for weight in weights
    }
    return DecoderPlan(target=target, runtime=runtime.name, format=runtime.format, method=method, matrices=matrices)


def _scoring(weights: tuple[Weight, ...]) -> list[str]:
    return [weight.name for weight in weights if weight.linear][-1:]


def left_float(
    plan: DecoderPlan, weights: tuple[Weight, ...], runtime: Runtime, products: str | None, words: str | None
) -> list[str]:
    """What to tell of matrices that stay float although nobody asked for that: the usual choice does not fit them.

    Args:
        products, words: see `uniform`.
    """
    found = []
    for weight in weights:
        as_words = weight.embedding or weight.name in _scoring(weights)
        if plan.matrices[weight.name].choice != FLOAT or (words if as_words else products) is not None:
            continue
        others = ", ".join(choices(weight, runtime))
        option = "--words" if as_words else "--weights"
        remedy = f"{option} may be {others}" if others else "the runtime has nothing smaller for it"
        size = bytes_text(4 * weight.rows * weight.columns)
        found.append(
            f"{runtime.format}: {weight.name} stays float32 ({size}): the usual choice does not fit rows of "
            f"{weight.columns} numbers; {remedy}"
        )
    return found


def choices(weight: Weight, runtime: Runtime) -> dict[str, DecoderChoice]:
    """What a matrix may be stored as, the preferred ones first. Words are looked up in whatever a product reads; rows
    of words have whole groups."""
    found = runtime.decoder_choices("linear" if weight.linear else "embedding")
    whole = not weight.embedding
    return {name: one for name, one in found.items() if whole or weight.columns % (one.scheme.group or 1) == 0}


def check(known: Mapping[str, DecoderChoice], name: str, where: str, runtime: Runtime) -> None:
    """Refuses what a runtime does not run.

    Raises:
        UsageError: likewise.
    """
    if name != FLOAT and name not in known:
        raise UsageError(
            f"{runtime.name} has no {name!r} for it", where=where, remedy=f"one of {', '.join([*known, FLOAT])}"
        )


def chosen(plan: DecoderPlan, weights: tuple[Weight, ...], runtime: Runtime) -> dict[str, DecoderChoice]:
    """By matrix that becomes integers, how.

    Raises:
        UsageError: the plan is of another model, or says what the runtime does not run.
    """
    shapes = {name: (one.outputs, one.inputs) for name, one in plan.matrices.items()}
    if shapes != {weight.name: (weight.rows, weight.columns) for weight in weights}:
        remedy = "plan this model with `edgeq plan`"
        raise UsageError("its matrices are not those of the model", where="plan", remedy=remedy)
    found = {}
    for weight in weights:
        name, known = plan.matrices[weight.name].choice, choices(weight, runtime)
        check(known, name, f"plan: {weight.name}", runtime)
        if name != FLOAT:
            found[weight.name] = known[name]
    return found
