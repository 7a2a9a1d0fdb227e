"""A float decoder as an ONNX graph whose weights stay in their file until they are wanted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.external_data_helper import ExternalDataInfo

from edgeq.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from edgeq.language.kept import Kept

GENAI = "genai_config.json"
"""What onnxruntime-genai reads beside the file."""


class Weight(NamedTuple):
    """A matrix that may be rounded.

    Attributes:
        name: of its initializer.
        rows, columns: of the matrix in PyTorch's layout: outputs and inputs, or words and width.
        linear: whether a product reads it.
        embedding: whether words are looked up in it; with `linear`, both: its two ends are tied.
        transposed: the file holds [columns, rows].
    """

    name: str
    rows: int
    columns: int
    linear: bool
    embedding: bool
    transposed: bool


@dataclass(frozen=True)
class Decoder:
    """A float model with a key-value cache, read from ONNX.

    Attributes:
        path: its file; external data lies beside it.
        proto: the graph, without the values that lie in external data.
        replaced: initializers with other values than the file's.
        kept: by initializer, the integers that its checkpoint had; empty where that was float.
        unread: names of tensors in the folder's files that the model has no use for.
    """

    path: Path
    proto: onnx.ModelProto
    replaced: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    kept: Mapping[str, Kept] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    @cached_property
    def initializers(self) -> dict[str, onnx.TensorProto]:
        return {one.name: one for one in self.proto.graph.initializer}

    def array(self, name: str) -> NDArray[Any]:
        """An initializer's values, mapped from the file where they lie there."""
        if name in self.replaced:
            return self.replaced[name]
        return read_tensor(self.path, self.initializers[name])

    def matrix(self, weight: Weight) -> NDArray[np.float32]:
        """float32 [rows, columns], as its own copy."""
        values = self.array(weight.name)
        return np.ascontiguousarray(values.T if weight.transposed else values, np.float32)

    @cached_property
    def head_size(self) -> int:
        """Numbers that the cache has for each head and position; the graph leaves it open."""
        told = json.loads((self.path.parent / GENAI).read_text(encoding="utf-8"))
        return int(told["model"]["decoder"]["head_size"])

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        """All that may be rounded, in the order in which they are met."""
        readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in self.proto.graph.node:
            for place, name in enumerate(node.input):
                readers.setdefault(name, []).append((node, place))
        found = {}
        for node in self.proto.graph.node:
            for name in node.input:
                if name in self.initializers and name not in found:
                    weight = _weight(self.initializers[name], readers)
                    if weight is not None:
                        found[name] = weight
        return tuple(found.values())


def read_tensor(path: Path, tensor: onnx.TensorProto) -> NDArray[Any]:
    """The values of an initializer of a file, mapped where they lie beside it.

    Raises:
        UsageError: it names a file elsewhere, or a place beyond the file's end.
    """
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    at = ExternalDataInfo(tensor)
    file = path.parent / at.location
    remedy = "build it again"
    if Path(at.location).name != at.location:
        raise UsageError(f"{tensor.name} leads out of the folder", where=path.name, remedy=remedy)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    try:
        return np.memmap(file, dtype, "r", at.offset or 0, tuple(tensor.dims))
    except (OSError, ValueError) as error:
        raise UsageError(f"{tensor.name} is not in {at.location} ({error})", where=path.name, remedy=remedy) from error


def read_decoder(path: Path) -> Decoder:
    """A decoder's file.

    Raises:
        UnsupportedError: there is nothing in it that could be rounded.
    """
    decoder = Decoder(path, onnx.load(path, load_external_data=False))
    if not decoder.weights:
        raise UnsupportedError("it has no weights that could be rounded", where=path.name, remedy="look at the model")
    return decoder


def _weight(tensor: onnx.TensorProto, readers: Mapping[str, list[tuple[onnx.NodeProto, int]]]) -> Weight | None:
    """None where anything but products and looking up words reads it."""
    if len(tensor.dims) != 2 or tensor.data_type != onnx.TensorProto.FLOAT:
        return None
    product = lookup = turned = 0
    for node, place in readers[tensor.name]:
        if node.op_type == "MatMul" and place == 1:
            product += 1
        elif node.op_type == "Gather" and place == 0:
            lookup += 1
        elif node.op_type == "Transpose" and all(
            one.op_type == "Gather" and place == 0 for one, place in readers.get(node.output[0], [])
        ):
            turned += 1
        else:
            return None
    if product and not lookup:
        inputs, outputs = tensor.dims
        return Weight(tensor.name, outputs, inputs, True, turned > 0, True)
    if lookup and not product and not turned:
        words, width = tensor.dims
        return Weight(tensor.name, words, width, False, True, False)
    return None
