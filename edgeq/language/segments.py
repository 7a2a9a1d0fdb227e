"""A decoder cut into pieces that run one after the other, each with no more weights than its own.

Whoever looks at one layer after the other needs only what flows between the pieces: a model of billions of weights
passes through the memory of a few of its layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgeq.language.decoder import Decoder, Weight

NARROW = 2
"""A cut goes through no more values than these: the residual stream, and what is to be added to it. Between layers that
read the same value, and beside their product, there are more."""

AT_ONCE = 2048
"""Positions of text that are computed together."""

Values = Mapping[str, NDArray[Any]]
"""What flows from one piece to the next for a batch of texts, by name."""


class Segment(NamedTuple):
    """A piece.

    Attributes:
        nodes: in the order in which they run.
        reads: what it takes from earlier pieces.
        writes: what it leaves for later ones.
        weights: those that may be rounded in it.
        inputs: by weight, the value that a product multiplies by it.
    """

    nodes: tuple[onnx.NodeProto, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    weights: tuple[Weight, ...]
    inputs: Mapping[str, str]


def segments(decoder: Decoder) -> list[Segment]:
    """The pieces in order."""
    graph = decoder.proto.graph
    words = {one.name for one in graph.input} & {"input_ids"}
    outputs = {"logits"}
    moving = set(words)
    fixed: list[onnx.NodeProto] = []
    flow: list[onnx.NodeProto] = []
    for node in graph.node:
        part = flow if moving & set(node.input) else fixed
        part.append(node)
        if part is flow:
            moving |= set(node.output) - {""}
    known = {weight.name: weight for weight in decoder.weights}
    turned = {node.output[0]: node.input[0] for node in fixed if node.op_type == "Transpose"}
    last = {name: at for at, node in enumerate(flow) for name in node.input}
    last |= {name: len(flow) for name in outputs}
    live: set[str] = set()
    pieces: list[list[onnx.NodeProto]] = [[]]
    alive: list[tuple[str, ...]] = [()]
    weighted = False
    for at, node in enumerate(flow):
        pieces[-1].append(node)
        weighted |= any(turned.get(name, name) in known for name in node.input)
        live = {name for name in live | set(node.output) if name and last.get(name, -1) > at}
        if weighted and len(live) <= NARROW and at + 1 < len(flow):
            pieces.append([])
            alive.append(tuple(sorted(live)))
            weighted = False
    if not weighted and len(pieces) > 1:  # what is left over has no weights: it belongs to the piece before
        pieces[-2] += pieces.pop()
        alive.pop()
    alive.append(tuple(outputs))
    return [
        _segment(nodes, reads, writes, fixed, known, turned)
        for nodes, reads, writes in zip(pieces, alive[:-1], alive[1:], strict=True)
    ]


def _segment(
    nodes: Sequence[onnx.NodeProto],
    reads: tuple[str, ...],
    writes: tuple[str, ...],
    fixed: Sequence[onnx.NodeProto],
    known: Mapping[str, Weight],
    turned: Mapping[str, str],
) -> Segment:
    wanted = {name for node in nodes for name in node.input}
    needed: list[onnx.NodeProto] = []
    for node in reversed(fixed):
        if wanted & set(node.output):
            needed.insert(0, node)
            wanted |= set(node.input)
    inputs = {node.input[1]: node.input[0] for node in nodes if node.op_type == "MatMul" and node.input[1] in known}
    met = dict.fromkeys(name for node in nodes for name in (turned.get(n, n) for n in node.input) if name in known)
    return Segment((*needed, *nodes), reads, writes, tuple(known[name] for name in met), inputs)


@dataclass(frozen=True)
class Piece:
    """A segment that is ready to run.

    Attributes:
        gives: what it computes.
        through: what it gives on as it got it.
    """

    session: Any
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    through: tuple[str, ...]

    def run(self, values: Values) -> dict[str, NDArray[Any]]:
        """Of a batch, what it gives by name; `values` need to have what it takes, and may have more."""
        if not self.gives:
            return {name: values[name] for name in self.through}
        found = self.session.run(list(self.gives), {name: values[name] for name in self.takes})
        return {name: values[name] for name in self.through} | dict(zip(self.gives, found, strict=True))


def load(
    decoder: Decoder, segment: Segment, gives: Sequence[str], replaced: Mapping[str, NDArray[Any]] | None = None
) -> Piece:
    """A segment in ONNX Runtime, in float32.

    Args:
        gives: which of its values are wanted.
        replaced: other values of initializers, in the layout of the file.
    """
    import onnxruntime

    read = {name for node in segment.nodes for name in node.input}
    names = [name for name in decoder.initializers if name in read]
    arrays = [_given(decoder, name, replaced or {}) for name in names]
    through = tuple(name for name in gives if name in segment.reads)
    made = tuple(name for name in gives if name not in through)
    model = onnx.ModelProto(ir_version=decoder.proto.ir_version, opset_import=decoder.proto.opset_import)
    model.graph.name = "segment"
    model.graph.node.extend(segment.nodes)
    model.graph.input.extend(one for one in decoder.proto.graph.input if one.name in read)
    model.graph.input.extend(_float(name) for name in segment.reads if name in read)
    model.graph.output.extend(map(_float, made))
    for name, array in zip(names, arrays, strict=True):
        tensor = model.graph.initializer.add(name=name, data_type=decoder.initializers[name].data_type)
        tensor.dims.extend(array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="given")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.add_external_initializers(names, [onnxruntime.OrtValue.ortvalue_from_numpy(one) for one in arrays])
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return Piece(session, tuple(one.name for one in session.get_inputs()), made, through)


def _float(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def _given(decoder: Decoder, name: str, replaced: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    return np.ascontiguousarray(replaced[name] if name in replaced else decoder.array(name))


def batches(decoder: Decoder, texts: NDArray[np.integer[Any]]) -> list[dict[str, NDArray[Any]]]:
    """What the first piece takes of texts, several of them together as long as they are short.

    Args:
        texts: [texts, length].
    """
    each = max(1, AT_ONCE // texts.shape[1])
    return [begin(decoder, texts[at : at + each]) for at in range(0, len(texts), each)]


def passed_on(decoder: Decoder, values: Values, found: Values) -> dict[str, NDArray[Any]]:
    """What the next piece takes: what this one gave, and what all of them take."""
    always = {one.name for one in decoder.proto.graph.input}
    return {name: value for name, value in values.items() if name in always} | dict(found)


def begin(decoder: Decoder, tokens: NDArray[np.integer[Any]]) -> dict[str, NDArray[Any]]:
    """What the first piece, and the mask's and the cache's part in all others, take of a batch of texts.

    Args:
        tokens: [texts, length].
    """
    texts, length = tokens.shape
    found: dict[str, NDArray[Any]] = {}
    for one in decoder.proto.graph.input:
        shape = [dim.dim_value for dim in one.type.tensor_type.shape.dim]
        if one.name == "input_ids":
            found[one.name] = tokens.astype(np.int64)
        elif one.name == "attention_mask":
            found[one.name] = np.ones((texts, length), np.int64)
        elif one.name == "position_ids":
            found[one.name] = np.broadcast_to(np.arange(length, dtype=np.int64), (texts, length)).copy()
        else:  # an empty cache
            found[one.name] = np.zeros((texts, shape[1], 0, shape[3] or decoder.head_size), np.float32)
    return found
