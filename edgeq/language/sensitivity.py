"""How much a decoder's answers move when a piece of it is rounded, taken piece by piece in one pass.

Each piece is rounded alone, and what comes of that flows on through the float pieces behind, beside the float values.
So every piece is loaded once, however many there are. The loss is the mean Kullback-Leibler divergence of the next
token's probabilities, in nats. Choices that were not tried are taken as proportional to the error that they make in the
outputs of their products, tr(E H E^T): a divergence is quadratic in a small error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeq.language.decoder import Decoder, Weight
from edgeq.language.hessian import Met, measured
from edgeq.language.matrices import alone, in_file
from edgeq.language.segments import Piece, Segment, Values, batches, load, passed_on, segments
from edgeq.methods.nearest import quantize_weight
from edgeq.numerics import Scheme
from edgeq.progress import Progress

TRIED_BITS = 4
"""The choice that is tried for every piece has so many bits, and so does another one as few as there are."""

ROWS = 1 << 10
"""Positions whose probabilities are compared at once."""


class Unit(NamedTuple):
    """Matrices that are given one choice together.

    Attributes:
        weights: of one piece.
        losses: by choice, in nats a token.
    """

    weights: tuple[Weight, ...]
    losses: Mapping[str, float]


class _Tried(NamedTuple):
    unit: int
    choice: str
    flowing: list[dict[str, NDArray[Any]]]


def sensitivities(
    decoder: Decoder,
    offered: Mapping[Weight, Mapping[str, Scheme]],
    texts: NDArray[np.integer[Any]],
    progress: Progress,
) -> list[Unit]:
    """What each choice of each piece is expected to lose.

    Args:
        offered: by matrix, the schemes by name; those of a piece are offered the same.
        texts: [texts, length].
    """
    pieces = segments(decoder)
    flowing: list[dict[str, NDArray[Any]]] = batches(decoder, texts)
    tried: list[_Tried] = []
    units: list[tuple[tuple[Weight, ...], dict[str, float]]] = []
    for done, segment in enumerate(pieces, 1):
        taken = {one.name for unit, _ in units for one in unit}
        mine = tuple(one for one in segment.weights if one in offered and one.name not in taken)
        piece = load(decoder, segment, segment.writes)
        after = [_run(decoder, piece, values) for values in flowing]
        tried = [_through(decoder, segment, piece, one, units[one.unit][0], offered) for one in tried]
        for some in _apart(mine):
            errors = _errors(decoder, some, offered, measured(decoder, segment, some, flowing))
            units.append((some, errors))
            for choice in _probes(offered[some[0]]):
                moved = _rounded(decoder, segment, some, {one: offered[one][choice] for one in some})
                tried.append(_Tried(len(units) - 1, choice, [_run(decoder, moved, values) for values in flowing]))
        flowing = after
        progress.step(done, len(pieces))
    lost: dict[int, dict[str, float]] = {}
    for one in tried:
        lost.setdefault(one.unit, {})[one.choice] = _divergence(flowing, one.flowing)
    return [Unit(weights, _losses(errors, lost[at])) for at, (weights, errors) in enumerate(units)]


def _through(
    decoder: Decoder,
    segment: Segment,
    piece: Piece,
    one: _Tried,
    weights: tuple[Weight, ...],
    offered: Mapping[Weight, Mapping[str, Scheme]],
) -> _Tried:
    """What was tried, behind one more piece; that one has a part of it where its ends are tied."""
    again = [weight for weight in weights if weight in segment.weights]
    own = _rounded(decoder, segment, again, {w: offered[w][one.choice] for w in again}) if again else piece
    return one._replace(flowing=[_run(decoder, own, values) for values in one.flowing])


def _apart(weights: tuple[Weight, ...]) -> list[tuple[Weight, ...]]:
    """Tables of words have choices of their own."""
    tables = [(one,) for one in weights if one.embedding]
    products = tuple(one for one in weights if not one.embedding)
    return [*tables, *([products] if products else [])]


def _probes(schemes: Mapping[str, Scheme]) -> list[str]:
    """Which choices are tried: about four bits, and the fewest."""
    near = min(schemes, key=lambda name: (abs(schemes[name].width - TRIED_BITS), schemes[name].group or 0))
    few = min(schemes, key=lambda name: (schemes[name].width, schemes[name].group or 0))
    return list(dict.fromkeys((near, few)))


def _losses(errors: Mapping[str, float], tried: Mapping[str, float]) -> dict[str, float]:
    """By choice: that of the tried one with the nearest error, in proportion to the errors."""

    def loss(choice: str) -> float:
        error = errors[choice]
        near = min(tried, key=lambda name: abs(np.log(max(error, 1e-30)) - np.log(max(errors[name], 1e-30))))
        return float(tried[near] * error / max(errors[near], 1e-30))

    return {choice: loss(choice) for choice in errors}


def _run(decoder: Decoder, piece: Piece, values: Values) -> dict[str, NDArray[Any]]:
    return passed_on(decoder, values, piece.run(values))


def _rounded(decoder: Decoder, segment: Segment, weights: Sequence[Weight], schemes: Mapping[Weight, Scheme]) -> Piece:
    real = {one.name: in_file(one, _real(decoder, one, schemes[one])) for one in weights}
    return load(decoder, segment, segment.writes, real)


def _real(decoder: Decoder, weight: Weight, scheme: Scheme) -> NDArray[np.float32]:
    return alone(decoder, weight, scheme, quantize_weight).real[:, : weight.columns]


def _errors(
    decoder: Decoder,
    weights: Sequence[Weight],
    offered: Mapping[Weight, Mapping[str, Scheme]],
    met: Mapping[Weight, Met],
) -> dict[str, float]:
    """By choice, the squared error in the outputs of all these products; of a table of words, in its words."""
    import torch

    found: dict[str, float] = {}
    for weight in weights:
        matrix = decoder.matrix(weight)
        for name, scheme in offered[weight].items():
            e = torch.from_numpy(_real(decoder, weight, scheme) - matrix)
            error = (e @ met[weight].hessian * e) if weight in met else e.square()
            found[name] = found.get(name, 0.0) + float(error.sum(dtype=torch.float64))
    return found


def _divergence(reference: Sequence[Values], moved: Sequence[Values]) -> float:
    """Mean over positions of the divergence of what is foretold from what float foretells, in nats."""
    import torch

    total, count = 0.0, 0
    for one, other in zip(reference, moved, strict=True):
        p, q = (torch.from_numpy(values["logits"]).flatten(0, 1) for values in (one, other))
        for at in range(0, len(p), ROWS):
            a, b = (logits[at : at + ROWS].double().log_softmax(1) for logits in (p, q))
            total += float((a.exp() * (a - b)).sum())
        count += len(p)
    return total / count
