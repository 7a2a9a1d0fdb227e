"""A copy of an artefact that also gives what its layers write as integers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Layer(NamedTuple):
    """A layer on integers that is watched.

    Attributes:
        name: of the layer in the file.
        writes: the output of the copy that holds what it writes; `reads`: likewise, None where that is not known.
        weight: int8 or uint8 [O, I / groups, ...], None where it has none.
        input_zero: its zero point, which stands for what is padded.
        stride, padding, dilation: of the kernel's axes, padding at both ends of each; empty for a matrix product.
    """

    name: str
    writes: str
    reads: str | None = None
    weight: NDArray[Any] | None = None
    input_zero: int = 0
    groups: int = 1
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()


def watch_onnx(path: Path, copy: Path) -> list[Layer]:
    """Of an ONNX file with QuantizeLinear and DequantizeLinear; what a QuantizeLinear writes is watched.

    Returns:
        In the order in which they run.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(path))
    graph = model.graph
    constants = {one.name: one for one in graph.initializer}
    producer = {name: node for node in graph.node for name in node.output}
    given = {one.name for one in graph.output}
    layers: list[Layer] = []

    def value(name: str) -> NDArray[Any] | None:
        if name in constants:
            found: NDArray[Any] = numpy_helper.to_array(constants[name])
            return found
        node = producer.get(name)
        if node is not None and node.op_type in ("Cast", "Identity"):  # small integers are widened at load
            return value(node.input[0])
        return None

    def zero(node: Any) -> int:
        found = value(node.input[2]) if len(node.input) > 2 else None
        return 0 if found is None else int(found.reshape(-1)[0])

    def give(name: str, node: Any) -> None:
        """Makes what a QuantizeLinear writes an output."""
        if name not in given:
            found = value(node.input[2]) if len(node.input) > 2 else None
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(np.uint8) if found is None else found.dtype)
            graph.output.append(helper.make_tensor_value_info(name, kind, None))
            given.add(name)

    for node in list(graph.node):
        if node.op_type != "QuantizeLinear" or node.input[0] in constants:
            continue
        made = producer.get(node.input[0])
        while made is not None and made.op_type in ("Relu", "Clip", "LeakyRelu"):
            made = producer.get(made.input[0])
        if made is None:
            continue
        give(node.output[0], node)
        layer = Layer(made.name or made.output[0], node.output[0])
        sides = [producer.get(name) for name in made.input[:2]]
        if made.op_type in ("Conv", "Gemm", "MatMul") and all(s and s.op_type == "DequantizeLinear" for s in sides):
            read, weighted = sides
            assert read is not None and weighted is not None
            weight = value(weighted.input[0])
            if weight is not None and weight.ndim >= 2:
                told = {one.name: helper.get_attribute_value(one) for one in made.attribute}
                if made.op_type == "MatMul" or (made.op_type == "Gemm" and not told.get("transB")):
                    weight = weight.T
                axes = weight.ndim - 2
                pads = told.get("pads") or [0] * (2 * axes)
                layer = layer._replace(
                    reads=read.input[0],
                    weight=weight,
                    input_zero=zero(read),
                    groups=told.get("group", 1),
                    stride=tuple(told.get("strides") or [1] * axes),
                    padding=tuple(zip(pads[:axes], pads[axes:], strict=True)),
                    dilation=tuple(told.get("dilations") or [1] * axes),
                )
        layers.append(layer)
    for layer in layers:
        made = producer.get(layer.reads or "")
        if made is not None and made.op_type == "QuantizeLinear":
            give(made.output[0], made)
    onnx.save(model, str(copy))
    return layers


WATCH: dict[str, Callable[[Path, Path], list[Layer]]] = {"onnx": watch_onnx}
"""By format."""
