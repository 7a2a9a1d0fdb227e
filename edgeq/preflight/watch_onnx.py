"""ONNX files with QuantizeLinear and DequantizeLinear: what a QuantizeLinear writes is watched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.preflight.watch import Layer

_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu"})
_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})

Makers = Mapping[str, Any]
"""The node or the initializer that makes a value, by its name."""


def watch_onnx(path: Path, copy: Path) -> list[Layer]:
    import onnx

    model = onnx.load(str(path))
    graph = model.graph
    makers: Makers = {one.name: one for one in graph.initializer} | {
        name: node for node in graph.node for name in node.output
    }
    layers = []
    for node in graph.node:
        made = _behind_activations(node, makers) if node.op_type == "QuantizeLinear" else None
        if made is not None:
            layers.append(_described(Layer(made.name or made.output[0], node.output[0]), made, makers))
    given = {one.name for one in graph.output}
    wanted = [layer.writes for layer in layers] + [layer.reads for layer in layers if layer.reads]
    for name in dict.fromkeys(wanted):
        if name not in given and _kind(makers.get(name)) == "QuantizeLinear":
            graph.output.append(_output(name, makers))
    onnx.save(model, str(copy))
    return layers


def _kind(maker: Any) -> str:
    """Of a node; nothing for an initializer, or where an input of the graph has no maker."""
    return str(getattr(maker, "op_type", ""))


def _behind_activations(node: Any, makers: Makers) -> Any:
    """The node whose result another quantizes, not the one that adds its bias; None for a constant or an input of the
    graph."""
    made: Any = makers.get(node.input[0])
    while _kind(made) in _ACTIVATIONS:
        made = makers.get(made.input[0])
    if _kind(made) == "Add" and any(_is_constant(name, makers) for name in made.input):
        made = next((makers[name] for name in made.input if _kind(makers.get(name)) in _WEIGHTED), made)
    return made if _kind(made) else None


def _value(name: str, makers: Makers) -> NDArray[Any] | None:
    """Of a constant."""
    from onnx import numpy_helper

    maker: Any = makers.get(name)
    if _kind(maker) in ("Cast", "Identity"):  # small integers are widened at load
        return _value(maker.input[0], makers)
    if _kind(maker) == "Constant":
        (held,) = maker.attribute
        return numpy_helper.to_array(held.t) if held.name == "value" else None
    if maker is None or _kind(maker):
        return None
    found: NDArray[Any] = numpy_helper.to_array(maker)
    return found


def _is_constant(name: str, makers: Makers) -> bool:
    """In float, or as integers."""
    maker = makers.get(name)
    return _value(maker.input[0] if maker and _kind(maker) == "DequantizeLinear" else name, makers) is not None


def _zero(node: Any, makers: Makers) -> NDArray[Any]:
    """The zero point of a QuantizeLinear or DequantizeLinear."""
    found = _value(node.input[2], makers) if len(node.input) > 2 else None
    return np.zeros(1, np.uint8) if found is None else found


def _output(name: str, makers: Makers) -> Any:
    """The declaration of what a QuantizeLinear writes."""
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(_zero(makers[name], makers).dtype)
    return helper.make_tensor_value_info(name, kind, None)


def _described(layer: Layer, made: Any, makers: Makers) -> Layer:
    """With what it reads and multiplies, if it is weighted and both are integers."""
    from onnx import helper

    sides: list[Any] = [makers.get(name) for name in made.input[:2]]
    if made.op_type not in _WEIGHTED or any(_kind(side) != "DequantizeLinear" for side in sides):
        return layer
    read, weighted = sides
    weight = _value(weighted.input[0], makers)
    if weight is None or weight.ndim < 2:
        return layer
    told = {one.name: helper.get_attribute_value(one) for one in made.attribute}
    if told.get("transA") or (made.op_type != "Conv" and weight.ndim != 2):
        return layer
    if made.op_type == "MatMul" or (made.op_type == "Gemm" and not told.get("transB")):
        weight = weight.T
    axes = weight.ndim - 2
    return layer._replace(
        reads=read.input[0],
        weight=weight,
        input_zero=int(_zero(read, makers).reshape(-1)[0]),
        groups=told.get("group", 1),
        stride=tuple(told.get("strides") or [1] * axes),
        padding=_padding(told, axes),
        dilation=tuple(told.get("dilations") or [1] * axes),
    )


def _padding(told: Mapping[str, Any], axes: int) -> tuple[tuple[int, int], ...] | str:
    word = told.get("auto_pad", b"NOTSET").decode().lower()
    if word.startswith("same"):
        return str(word)
    pads = told.get("pads") or [0] * (2 * axes)
    return tuple(zip(pads[:axes], pads[axes:], strict=True))
