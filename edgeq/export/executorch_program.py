"""The model's program as ExecuTorch lowers it: of fixed sizes, quantized and dequantized where the plan rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx.traceback import annotate, preserve_node_meta
from torch.utils._pytree import tree_leaves

from edgeq.model.graph import Node
from edgeq.model.model import Model
from edgeq.model.ops import output_channels_axis, shape_of
from edgeq.numerics import QParams
from edgeq.numerics.weights import bias_scale, quantize_bias
from edgeq.quantization.quantized import Quantized

_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "depthwise_conv2d"})

HANDLE = "edgeq_node"
"""What nodes of the lowered program say of themselves: the handle of the model's node that they come from."""


def handles(model: Model) -> dict[str, int]:
    """The number that each graph node has in a file, from 1 on."""
    return {name: number for number, name in enumerate(model.nodes, start=1)}


def names(model: Model) -> dict[str, Any]:
    """What a file calls its inputs and outputs, and the layer of an operator by its handle."""
    numbers = handles(model)
    layers = {numbers[member]: group.name for group in model.groups for member in group.members}
    ends = zip(model.input_nodes, model.inputs, strict=True)
    return {
        "inputs": [spec.name for spec in model.inputs],
        "outputs": list(model.output_names),
        "operators": {**{numbers[node]: spec.name for node, spec in ends}, **layers},
    }


def traced(model: Model, quantized: Quantized | None = None) -> ExportedProgram:
    """The program, traced again for one sample a call; in float, or rounded as planned.

    Weights are int8 constants under one dequantize node. A bias is the float whose rounding gives the planned integer,
    as far as float32 can say that.
    """
    inputs = tuple(map(torch.from_numpy, model.example))
    inputs = tuple(x[:1] for x in inputs) if model.dynamic_batch else inputs
    module = _Rounded(model, quantized)
    if module.integer_ends:
        grids = [module.rounded.get(name) for name in model.input_nodes]
        inputs = tuple(x if q is None else _quantize(x, q) for x, q in zip(inputs, grids, strict=True))
    with preserve_node_meta():
        return torch.export.export(module, inputs)


class _Rounded(torch.nn.Module):
    def __init__(self, model: Model, quantized: Quantized | None) -> None:
        import torch.ao.quantization.fx._decomposed

        super().__init__()
        self.inner, self.handles = model.exported().module(), handles(model)
        self.integer_ends = quantized is not None and quantized.runtime.io == "integer"
        rounded = {} if quantized is None else {n: tensor.q for n, tensor in quantized.rounded.items()}
        merged = [] if quantized is None else _merged(model, quantized)
        self.rounded = {name: q for name, q in rounded.items() if name not in merged}
        by_readers = {} if quantized is None else quantized.rounded_by_readers(model)
        self.by_readers = {pair: tensor.q for pair, tensor in by_readers.items()}
        self.layers: dict[str, str] = {}
        self.axes: dict[str, int] = {}
        for number, group in enumerate(model.groups):
            if quantized is None or group.name not in quantized.biases:
                continue
            stem = self.layers[group.root] = f"layer{number}"
            bias, weight = quantized.biases[group.name], quantized.weights.get(group.name)
            if weight is not None:
                scale = quantized.input_scale(group)
                integers = quantize_bias(bias, scale, weight.q)
                bias = (integers.astype("float64") * bias_scale(scale, weight.q)).astype("float32")
                self.axes[group.root] = output_channels_axis(group.op)
                self.register_buffer(f"{stem}_weight", torch.from_numpy(weight.integers.copy()))
                self.register_buffer(f"{stem}_scale", torch.from_numpy(weight.q.scale.reshape(-1).copy()))
                self.register_buffer(f"{stem}_zero_point", torch.zeros(weight.q.scale.size, dtype=torch.int32))
            self.register_buffer(f"{stem}_bias", torch.from_numpy(bias.copy()))

    def forward(self, *inputs: torch.Tensor) -> list[Any]:
        return tree_leaves(_Run(self).run(*inputs))

    def constants(self, root: str, args: Sequence[Any]) -> tuple[Any, ...]:
        """A layer's arguments, with the planned weight and bias in place of its own."""
        stem, weight = self.layers[root], args[1]
        if root in self.axes:
            held, scale, zero = (getattr(self, f"{stem}_{what}") for what in ("weight", "scale", "zero_point"))
            weight = torch.ops.quantized_decomposed.dequantize_per_channel(
                held, scale, zero, self.axes[root], -128, 127, torch.int8
            )
        return (args[0], weight, getattr(self, f"{stem}_bias"), *args[3:])


class _Run(torch.fx.Interpreter):
    def __init__(self, outer: _Rounded) -> None:
        super().__init__(outer.inner)
        self.outer = outer
        self.integers: dict[str, torch.Tensor] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        outer = self.outer
        with annotate({HANDLE: outer.handles.get(n.name, 0)}):
            args, kwargs = torch.fx.node.map_arg((n.args, n.kwargs), lambda source: self._read(n.name, source))
            if n.name in outer.layers:
                args = outer.constants(n.name, args)
            value = self._value(n, args, kwargs)
            q = outer.rounded.get(n.name)
            if q is not None:
                given = n.op == "placeholder" and outer.integer_ends
                self.integers[n.name] = value if given else _quantize(value, q)
        return value

    def _read(self, reader: str, source: torch.fx.Node) -> Any:
        """A value as one of its readers gets it. Each has a dequantize node of its own, which it is lowered with."""
        outer = self.outer
        with annotate({HANDLE: outer.handles.get(source.name, 0)}):
            if source.name in self.integers and reader == "output" and outer.integer_ends:
                return self.integers[source.name]
            if source.name in self.integers:
                return _dequantize(self.integers[source.name], outer.rounded[source.name])
            own = outer.by_readers.get((reader, source.name))
            value = self.env[source]
            return value if own is None else _dequantize(_quantize(value, own), own)

    def _value(self, n: torch.fx.Node, args: Any, kwargs: Any) -> Any:
        """What a node gives, by operators that XNNPACK has."""
        if n.op != "call_function":
            return getattr(self, n.op)(n.target, args, kwargs)
        if n.target is torch.ops.aten.clamp.default and len(args) == 3 and None not in args:
            return torch.ops.aten.hardtanh.default(*args)
        if n.target is torch.ops.aten.mean.dim and _drops_images(args, kwargs):
            mean = n.target(*args, True)
            q = self.outer.rounded.get(n.name)
            return (mean if q is None else _dequantize(_quantize(mean, q), q)).view(args[0].shape[:2])
        return self.call_function(n.target, args, kwargs)


def _merged(model: Model, quantized: Quantized) -> list[str]:
    """Paddings with zeros of what one convolution on integers reads: it is lowered together with them, if nothing is
    rounded in between. What they write lies on the grid of what they read."""
    on_integers = {group.root: group.op for group in model.groups if group.name in quantized.assignment.kernels}
    found = []
    for group in model.groups:
        users = model.nodes[group.root].users
        same = [quantized.rounded[name].q for name in (*group.inputs, group.output) if name in quantized.rounded]
        alone = len(users) == 1 and on_integers.get(users[0].name) in _CONVOLUTIONS
        if group.op == "pad" and alone and len(same) == 2 and len({_grid(q) for q in same}) == 1:
            found += [group.root] if _with_zeros(model.nodes[group.root]) else []
    return found


def _with_zeros(pad: Node) -> bool:
    """Whether a padding adds zeros, and only around images or signals."""
    sizes, rest = pad.args[1], [a for a in pad.args[2:] if a is not None and a != "constant"]
    spatial = len(sizes) <= 2 * (len(shape_of(pad)) - 2)
    return spatial and min(sizes, default=0) >= 0 and all(value == 0 for value in rest)


def _drops_images(args: Sequence[Any], kwargs: Any) -> bool:
    """Whether a mean leaves out the axes of images: XNNPACK's keeps them."""
    return args[0].dim() == 4 and len(args) == 2 and not kwargs and sorted(a % 4 for a in args[1]) == [2, 3]


def _quantize(value: torch.Tensor, q: QParams) -> torch.Tensor:
    found: torch.Tensor = torch.ops.quantized_decomposed.quantize_per_tensor(value, *_grid(q))
    return found


def _dequantize(integers: torch.Tensor, q: QParams) -> torch.Tensor:
    found: torch.Tensor = torch.ops.quantized_decomposed.dequantize_per_tensor(integers, *_grid(q))
    return found


def _grid(q: QParams) -> tuple[float, int, int, int, torch.dtype]:
    return float(q.scale), int(q.zero_point), q.scheme.quant_min, q.scheme.quant_max, getattr(torch, q.scheme.dtype)
