"""The weights of a decoder as integers, piece by piece: what one piece becomes, the next one's values are taken behind.

Source of the order: Frantar et al. 2022, arXiv 2210.17323, section 4: layers are rounded one after the other, each
against the values that the rounded layers before it give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import UsageError
from edgeq.language.awq import awq
from edgeq.language.decoder import Decoder, Weight
from edgeq.language.hessian import Met, measured
from edgeq.language.matrices import alone, in_file
from edgeq.language.segments import Segment, Values, batches, load, passed_on, segments
from edgeq.methods.gptq import by_hessian
from edgeq.methods.hessian import WIDEST, Curved
from edgeq.methods.hqq import half_quadratic
from edgeq.methods.method import Wanted
from edgeq.methods.nearest import quantize_weight
from edgeq.numerics import Scheme
from edgeq.numerics.weights import QuantizedWeight
from edgeq.progress import Progress, Silent


class Rounded(NamedTuple):
    """What a decoder's weights become.

    Attributes:
        weights: by initializer, in PyTorch's layout.
        floats: other initializers that change with them, in the file's layout.
        dynamic: those matrices that are multiplied by what is rounded to 8 bits in every call.
    """

    weights: dict[str, QuantizedWeight]
    floats: dict[str, NDArray[np.float32]]
    dynamic: frozenset[str] = frozenset()


def _gptq(one: Wanted, met: Met) -> QuantizedWeight:
    return by_hessian(Curved(one, *met.padded(one.weight.shape[1]).blocks(len(one.weight), WIDEST)))


ALONE: dict[str, Callable[[Wanted], QuantizedWeight]] = {"nearest": quantize_weight, "hqq": half_quadratic}
"""Methods that look at a matrix alone."""

MEETING: dict[str, Callable[[Wanted, Met], QuantizedWeight]] = {"gptq": _gptq}
"""Methods that look at what a matrix meets as well."""

TOGETHER = {"awq": awq}
"""Methods that change several matrices, and what stands before them, together."""

KEPT = "kept"
"""Integers that a checkpoint has already stay as they are; all others are rounded to nearest."""

METHODS = (*ALONE, *MEETING, *TOGETHER, KEPT)

WITHOUT_TEXT = (*ALONE, KEPT)


def round_weights(
    decoder: Decoder,
    schemes: Mapping[str, Scheme],
    method: str,
    texts: NDArray[np.integer[Any]] | None = None,
    progress: Progress | None = None,
) -> Rounded:
    """Rounds the weights that have a scheme. Tables of words, and ends that are tied to them, are rounded to nearest by
    every method but `hqq`: no product tells what they meet.

    Args:
        schemes: by initializer.
        method: one of `METHODS`.
        texts: [texts, length], to calibrate on; not needed by methods that look at matrices alone.

    Raises:
        UsageError: there is no such method, or it wants texts.
    """
    if method not in METHODS:
        raise UsageError(f"there is no method {method!r}", where="--method", remedy=f"one of {', '.join(METHODS)}")
    told = progress or Silent()
    found = Rounded({}, {})
    if method == KEPT and not decoder.kept:
        remedy = f"take another --method: {', '.join(one for one in METHODS if one != KEPT)}"
        raise UsageError("the model has no integers that could be kept", where="--method", remedy=remedy)
    if method in WITHOUT_TEXT:
        wanted = [weight for weight in decoder.weights if weight.name in schemes]
        for done, weight in enumerate(wanted, 1):
            held, scheme = decoder.kept.get(weight.name), schemes[weight.name]
            if method == KEPT and held is not None and held.fits(scheme):
                found.weights[weight.name] = held.weight(scheme)
            else:
                found.weights[weight.name] = alone(decoder, weight, scheme, ALONE.get(method, quantize_weight))
            told.step(done, len(wanted))
        return found
    if texts is None:
        raise UsageError(f"{method} looks at text", where="--method", remedy="give --calib, or take nearest or hqq")
    pieces = segments(decoder)
    flowing: Sequence[Values] = batches(decoder, texts)
    for done, segment in enumerate(pieces, 1):
        wanted = [one for one in segment.weights if one.name in schemes and one.name not in found.weights]
        _round_piece(decoder, segment, wanted, schemes, method, flowing, found)
        if done < len(pieces):
            flowing = _behind(decoder, segment, found, flowing)
        told.step(done, len(pieces))
    return found


def _round_piece(
    decoder: Decoder,
    segment: Segment,
    wanted: Sequence[Weight],
    schemes: Mapping[str, Scheme],
    method: str,
    flowing: Sequence[Values],
    found: Rounded,
) -> None:
    met = measured(decoder, segment, [one for one in wanted if not one.embedding], flowing)
    if method in TOGETHER:
        changed = TOGETHER[method](decoder, segment, {one: schemes[one.name] for one in met}, met)
        found.weights.update(changed[0])
        found.floats.update(changed[1])
    for weight in wanted:
        if weight.name not in found.weights:
            seen = met.get(weight)

            def one_part(one: Wanted, seen: Met | None = seen) -> QuantizedWeight:
                return quantize_weight(one) if seen is None else MEETING[method](one, seen)

            found.weights[weight.name] = alone(decoder, weight, schemes[weight.name], one_part)


def _behind(decoder: Decoder, segment: Segment, found: Rounded, flowing: Sequence[Values]) -> list[Values]:
    """What flows out of a piece when its weights are rounded."""
    mine = [one for one in segment.weights if one.name in found.weights]
    real = {one.name: in_file(one, found.weights[one.name].real[:, : one.columns]) for one in mine}
    piece = load(decoder, segment, segment.writes, real | found.floats)
    return [passed_on(decoder, values, piece.run(values)) for values in flowing]
