"""Decoders cut into pieces, and their weights as integers: against the whole file, and against sums by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from edgeq.errors import UsageError
from edgeq.language.decoder import Decoder
from edgeq.language.hessian import measured
from edgeq.language.matrices import in_file
from edgeq.language.rounding import KEPT, METHODS, Rounded, round_weights
from edgeq.language.segments import NARROW, Segment, batches, begin, load, passed_on, segments
from edgeq.numerics import Scheme

FEW = Scheme("int4", "symmetric", "group", group=32)
FEWER = Scheme("uint4", "asymmetric", "group", bits=3, group=32)
EIGHT = Scheme("int8", "symmetric", "group", group=32)


def whole(decoder: Decoder, tokens: Any, replaced: Mapping[str, NDArray[Any]] | None = None) -> NDArray[Any]:
    """Logits of the whole file, in one session, with other values of initializers."""
    model = onnx.load(decoder.path)
    for tensor in model.graph.initializer:
        if replaced and tensor.name in replaced:
            tensor.CopyFrom(onnx.numpy_helper.from_array(replaced[tensor.name], tensor.name))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], begin(decoder, tokens))[0])


def in_pieces(decoder: Decoder, tokens: Any, rounded: Rounded | None = None) -> NDArray[Any]:
    values = begin(decoder, tokens)
    found = rounded or Rounded({}, {})
    for segment in segments(decoder):
        values = passed_on(decoder, values, load(decoder, segment, segment.writes, real(decoder, found)).run(values))
    return np.asarray(values["logits"])


def real(decoder: Decoder, rounded: Rounded) -> dict[str, NDArray[Any]]:
    """Initializers as the integers stand for them, in the layout of the file."""
    known = {weight.name: weight for weight in decoder.weights}
    matrices = {name: w.real[:, : known[name].columns] for name, w in rounded.weights.items()}
    return {name: in_file(known[name], matrix) for name, matrix in matrices.items()} | rounded.floats


def every(decoder: Decoder, scheme: Scheme) -> dict[str, Scheme]:
    return {weight.name: EIGHT if weight.embedding else scheme for weight in decoder.weights}


def test_pieces_give_what_the_whole_gives(decoder: Decoder, tokens: Any) -> None:
    assert np.array_equal(in_pieces(decoder, tokens), whole(decoder, tokens))


def test_pieces_are_small_and_lose_nothing(decoder: Decoder) -> None:
    pieces = segments(decoder)
    assert all(len(piece.reads) <= NARROW for piece in pieces)
    met = [weight.name for piece in pieces for weight in piece.weights]
    assert set(met) == {weight.name for weight in decoder.weights}
    # what is met twice is what both ends share
    tied = {weight.name for weight in decoder.weights if weight.embedding and weight.linear}
    assert {name for name in met if met.count(name) > 1} == tied
    largest = max(sum(w.rows * w.columns for w in piece.weights) for piece in pieces)
    assert largest < sum(w.rows * w.columns for w in decoder.weights) / 2


def test_hessians_are_sums_of_squares(decoder: Decoder, tokens: Any) -> None:
    """Against the values that the whole file has there."""
    pieces = segments(decoder)
    at = next(i for i, piece in enumerate(pieces) if len(piece.inputs) == 2)  # two products of one value
    flowing: Any = batches(decoder, tokens)
    for piece in pieces[:at]:
        flowing = [passed_on(decoder, v, load(decoder, piece, piece.writes).run(v)) for v in flowing]
    weights = [one for one in pieces[at].weights if one.name in pieces[at].inputs]
    met = measured(decoder, pieces[at], weights, flowing)
    name = pieces[at].inputs[weights[0].name]
    model = onnx.load(decoder.path)
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = session.run([name], begin(decoder, tokens))[0].reshape(-1, weights[0].columns).astype(np.float64)
    assert np.allclose(met[weights[0]].hessian.numpy(), x.T @ x, rtol=1e-4, atol=1e-3)
    assert np.allclose(met[weights[0]].size, np.abs(x).mean(axis=0), rtol=1e-4)


def test_nearest_by_hand(decoder: Decoder) -> None:
    """Groups of 32 in a row, the last one filled up with zeros; the largest number of each reaches the end."""
    found = round_weights(decoder, every(decoder, FEW), "nearest")
    weight = next(one for one in decoder.weights if one.columns % 32)
    matrix = np.asarray(decoder.array(weight.name)).T
    groups = np.pad(matrix, ((0, 0), (0, -weight.columns % 32))).reshape(weight.rows, -1, 32)
    scale = np.maximum(groups.max(axis=2) / 7, -groups.min(axis=2) / 8)
    integers = np.clip(np.rint(groups / scale[..., None]), -8, 7)
    w = found.weights[weight.name]
    assert np.allclose(w.q.scale.reshape(scale.shape), scale, rtol=1e-6)
    assert (w.integers.reshape(groups.shape) != integers).mean() < 1e-3  # ties, and scales that are off by a rounding
    assert not w.integers[:, weight.columns :].any()


@pytest.mark.parametrize("method", [one for one in METHODS if one != KEPT])
@pytest.mark.parametrize("scheme", [FEW, FEWER], ids=["4 bits", "3 bits"])
def test_every_method_rounds_every_weight(decoder: Decoder, tokens: Any, method: str, scheme: Scheme) -> None:
    found = round_weights(decoder, every(decoder, scheme), method, tokens)
    assert set(found.weights) == {weight.name for weight in decoder.weights}
    for weight in decoder.weights:
        w = found.weights[weight.name]
        assert w.q.scheme == every(decoder, scheme)[weight.name]
        assert w.q.scheme.quant_min <= w.integers.min() <= w.integers.max() <= w.q.scheme.quant_max
    logits = in_pieces(decoder, tokens, found)
    assert np.isfinite(logits).all()
    assert np.allclose(logits, whole(decoder, tokens, real(decoder, found)), atol=1e-4)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_what_looks_at_text_loses_less(decoder: Decoder, tokens: Any, method: str) -> None:
    """On the text that it looks at: squared error of the logits."""
    reference = whole(decoder, tokens)

    def lost(by: str) -> float:
        found = round_weights(decoder, every(decoder, FEWER), by, tokens)
        return float(np.square(in_pieces(decoder, tokens, found) - reference).mean())

    assert lost(method) < 0.9 * lost("nearest")


def test_awq_changes_the_normalizations_and_not_the_function(decoder: Decoder, tokens: Any) -> None:
    """With many bits, what it divides before a product it multiplies in it."""
    found = round_weights(decoder, every(decoder, EIGHT), "awq", tokens)
    assert found.floats
    assert any(not np.allclose(array, decoder.array(name)) for name, array in found.floats.items())
    reference = whole(decoder, tokens)
    moved = np.square(in_pieces(decoder, tokens, found) - reference).mean()
    assert moved < 1e-2 * np.square(reference).mean()  # eight bits alone move it by a tenth of that


def test_rows_are_rounded_in_parts_as_in_one(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    one = round_weights(decoder, every(decoder, FEW), "hqq")
    monkeypatch.setattr("edgeq.language.matrices.AT_ONCE", 5 * 64)
    parts = round_weights(decoder, every(decoder, FEW), "hqq")
    for name, w in one.weights.items():
        assert np.array_equal(w.integers, parts.weights[name].integers)
        assert np.array_equal(w.q.scale, parts.weights[name].q.scale)


def test_weights_without_a_scheme_stay(decoder: Decoder, tokens: Any) -> None:
    first = next(weight for weight in decoder.weights if not weight.embedding)
    found = round_weights(decoder, {first.name: FEW}, "gptq", tokens)
    assert set(found.weights) == {first.name}


def test_refusals(decoder: Decoder) -> None:
    with pytest.raises(UsageError, match="no method 'best'"):
        round_weights(decoder, every(decoder, FEW), "best")
    with pytest.raises(UsageError, match="looks at text"):
        round_weights(decoder, every(decoder, FEW), "gptq")
    broken = decoder.weights[-1]
    array = np.array(decoder.array(broken.name))
    array[0, 0] = np.nan
    with pytest.raises(UsageError, match="not finite"):
        round_weights(Decoder(decoder.path, decoder.proto, {broken.name: array}), every(decoder, FEW), "nearest")


def test_a_piece_without_weights_is_none(decoder: Decoder) -> None:
    pieces: list[Segment] = segments(decoder)
    assert all(piece.weights for piece in pieces)
