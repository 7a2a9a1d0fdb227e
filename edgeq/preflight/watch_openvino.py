"""OpenVINO IR: what the FakeQuantize of an activation gives is watched, as the integers that it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeq.preflight.watch import Layer
from edgeq.runtimes.openvino import import_openvino

_ACTIVATIONS = frozenset({"Clamp", "Maximum", "Minimum", "PRelu", "Relu"})
_MOVES = frozenset({"MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_WEIGHTED = frozenset({"Convolution", "GroupConvolution", "MatMul"})


class Grid(NamedTuple):
    """The values that a FakeQuantize gives: `low` and steps upwards from it, both of a shape that its output has room
    for; `kind` holds their numbers."""

    low: NDArray[Any]
    step: NDArray[Any]
    kind: str


def watch_openvino(path: Path, copy: Path) -> list[Layer]:
    """Copies of small nets answered to the bit as the files did, but where the runtime computes a sum along with the
    convolution before it. What such a sum reads is not there to be seen, so that the copy computes it apart, as exactly
    as its integers allow: of one net 23 of 100 sums were one step off.
    """
    model = import_openvino().Core().read_model(path)
    given: dict[str, Any] = {}  # outputs of the copy
    layers = []
    for op in model.get_ordered_ops():
        if op.get_type_name() != "FakeQuantize" or (grid := _grid(op)) is None:
            continue
        made = _behind_activations(op)
        if made.get_type_name() not in ("Constant", "Parameter"):
            name = made.get_friendly_name().removesuffix("/WithoutBiases")
            layers.append(_described(Layer(name, _give(op.output(0), grid, given)), made, given))
    model.add_results([import_openvino().opset15.result(port) for port in given.values()])
    import_openvino().save_model(model, copy, compress_to_fp16=False)
    return layers


def _source(port: Any) -> Any:
    return port.get_source_output().get_node()


def _computed(op: Any) -> Any:
    """What makes the first input that is no constant."""
    return next((_source(port) for port in op.inputs() if _constant(port) is None), _source(op.input(0)))


def _behind_activations(op: Any) -> Any:
    """The operator whose result a FakeQuantize rounds; not the one that adds its bias."""
    made = _computed(op)
    while made.get_type_name() in _ACTIVATIONS:
        made = _computed(made)
    biased = made.get_type_name() == "Add" and any(_constant(port) is not None for port in made.inputs())
    return _computed(made) if biased and _computed(made).get_type_name() in _WEIGHTED else made


def _constant(port: Any) -> NDArray[Any] | None:
    op = _source(port)
    while op.get_type_name() == "Convert":  # stored with fewer bits
        op = _source(op.input(0))
    return np.asarray(op.data) if op.get_type_name() == "Constant" else None


def _grid(op: Any) -> Grid | None:
    """None where its ends are computed, or are one."""
    low, high, levels = _constant(op.input(3)), _constant(op.input(4)), op.get_attributes()["levels"]
    if low is None or high is None or not (high > low).all():
        return None
    low = low.astype(np.float32)
    return Grid(low, (high.astype(np.float32) - low) / np.float32(levels - 1), "u8" if levels <= 256 else "i32")


def _give(port: Any, grid: Grid, given: dict[str, Any]) -> str:
    """Makes the integers of an output in the file an output of the copy; says under which name."""
    name = f"{port.get_node().get_friendly_name()}_{port.get_index()}_integers"
    if name not in given:
        ops = import_openvino().opset15
        low, step = (ops.constant(values) for values in (grid.low, grid.step))
        integers = ops.round(ops.divide(ops.subtract(ops.convert(port, "f32"), low), step))
        given[name] = ops.convert(integers, grid.kind).output(0)
        given[name].set_names({name})
    return name


def _described(layer: Layer, op: Any, given: dict[str, Any]) -> Layer:
    """With what it reads and multiplies, if it is weighted and both are of 8 bits."""
    kind = op.get_type_name()
    weight = _weight(op) if kind in _WEIGHTED else None
    if weight is None:
        return layer
    maker = _source(op.input(0))
    while maker.get_type_name() in _MOVES:
        maker = _source(maker.input(0))
    grid = _grid(maker) if maker.get_type_name() == "FakeQuantize" else None
    if grid is None or grid.kind != "u8" or grid.low.size != 1:
        return layer
    layer = layer._replace(
        reads=_give(op.input(0).get_source_output(), grid, given),
        weight=weight,
        input_zero=round(float((-grid.low / grid.step).item())),
    )
    if kind == "MatMul":
        return layer
    told = op.get_attributes()
    pads = tuple(zip(told["pads_begin"], told["pads_end"], strict=True))
    return layer._replace(
        groups=_source(op.input(1)).get_output_shape(0)[0] if kind == "GroupConvolution" else 1,
        stride=tuple(told["strides"]),
        padding=told["auto_pad"] if told["auto_pad"].startswith("same") else pads,
        dilation=tuple(told["dilations"]),
        apart=kind == "Convolution",
    )


def _weight(op: Any) -> NDArray[Any] | None:
    """Its integers, [O, I / groups, ...]; None where they are none of 8 bits around zero."""
    told, source = op.get_attributes(), _source(op.input(1))
    shape = source.get_output_partial_shape(0)
    while source.get_type_name() in ("Multiply", "Convert", "Reshape"):
        source = _source(source.input(0))
    if source.get_type_name() != "Constant" or source.get_element_type().get_type_name() != "i8" or shape.is_dynamic:
        return None
    weight: NDArray[Any] = np.asarray(source.data).reshape(shape.to_shape())
    if op.get_type_name() == "GroupConvolution":
        return weight.reshape(-1, *weight.shape[2:])
    if op.get_type_name() == "MatMul":
        return None if weight.ndim != 2 or told["transpose_a"] else weight if told["transpose_b"] else weight.T
    return weight
