"""A trained network as a file: a program of `torch.export` with pairs of `quantize` and `dequantize`, as PyTorch's own
quantization writes it. Whoever reads it sees the very integers."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - it makes the operators known

from edgeq.files import atomic_write
from edgeq.frontends.read import quiet
from edgeq.model.graph import Array, Named, Node, Program, Value, constant, linked, replaced
from edgeq.model.model import Model
from edgeq.model.rebuilt import exported_program
from edgeq.numerics import QParams
from edgeq.numerics.quantize import stored_type
from edgeq.numerics.weights import QuantizedWeight, rows
from edgeq.quantization.quantized import Quantized

_OPERATORS = {
    f"quantized_decomposed.{name}.default": getattr(torch.ops.quantized_decomposed, name).default
    for name in ("quantize_per_tensor", "dequantize_per_tensor", "dequantize_per_channel")
}
_QUANTIZE, _DEQUANTIZE, _DEQUANTIZE_CHANNELS = _OPERATORS


def write_trained(path: Path, model: Model, quantized: Quantized) -> None:
    """Writes a model with its grids.

    Args:
        model: with the float parameters that were learned.
    """
    program = rounding_program(model, quantized)
    stream = io.BytesIO()
    with quiet():
        torch.export.save(exported_program(program, model.example), stream)
    atomic_write(path, stream.getvalue())


def rounding_program(model: Model, quantized: Quantized) -> Program:
    """The model's program, with what rounds written out."""
    weights = {group.weight: quantized.weights[group.name] for group in model.groups if group.name in quantized.weights}
    written, by_reader = quantized.rounded, quantized.rounded_by_readers(model)
    nodes: list[Node] = []
    fresh: dict[Node, str] = {}
    biases = {group.bias: quantized.biases[group.name] for group in model.groups if group.bias in model.state}
    state: dict[str, Array] = {**model.state, **{name: bias for name, bias in biases.items() if name is not None}}
    read_as: dict[Node, Node] = {}
    for node in model.program.nodes:
        reads = {read: read_as[read] for read in node.all_input_nodes}
        for read in node.all_input_nodes:
            if (tensor := by_reader.get((node.name, read.name))) is not None:
                reads[read] = _pair(nodes, reads[read], tensor.q, f"{read.name}_for_{node.name}")
        name = model.program.lifted.get(node.name)
        if name is not None and name in weights:
            stored, value = _stored(name, weights[name])
            state |= stored
            read_as[node] = _dequantized(nodes, fresh, replace(node, value=value, users=[]), name, weights[name], state)
            continue
        copied = replace(node, args=_with(node.args, reads), kwargs=_with(node.kwargs, reads), users=[])
        nodes.append(copied)
        tensor = written.get(node.name)
        read_as[node] = copied if tensor is None else _pair(nodes, copied, tensor.q, node.name)
    calling = dict(model.program.calling)
    inputs = [
        ["BUFFER", node, name, True, True, False] if name in weights else [kind, node, name, *rest]
        for kind, node, name, *rest in calling["inputs"]
    ]
    renamed = {node.name: read.name for node, read in read_as.items()}
    given = [["BUFFER", node.name, name, True, True, False] for node, name in fresh.items()]
    ordered = [*(n for n in nodes if n.op == "placeholder"), *(n for n in nodes if n.op != "placeholder")]
    return replace(
        model.program,
        nodes=linked([*fresh, *ordered]),
        lifted={**{node.name: name for node, name in fresh.items()}, **model.program.lifted},
        state=state,
        calling={**calling, "inputs": [*given, *inputs], "outputs": [renamed[one] for one in calling["outputs"]]},
        functions={**model.program.functions, **_OPERATORS},
    )


def _with(argument: Any, reads: Mapping[Node, Node]) -> Any:
    return replaced(argument, lambda leaf: reads[leaf] if isinstance(leaf, Node) else leaf)


def _pair(nodes: list[Node], source: Node, q: QParams, name: str) -> Node:
    """A value, rounded."""
    assert isinstance(source.value, Value)
    low, high = q.scheme.quant_min, q.scheme.quant_max
    kind = str(stored_type(q.scheme))
    grid = (float(q.scale), int(q.zero_point), low, high, Named(f"torch.{kind}"))
    rounded = Node(
        f"{name}_quantized", "call_function", _QUANTIZE, (source, *grid), {}, Value(kind, source.value.shape)
    )
    real = Node(f"{name}_rounded", "call_function", _DEQUANTIZE, (rounded, *grid), {}, source.value)
    nodes += [rounded, real]
    return real


def _stored(name: str, weight: QuantizedWeight) -> tuple[dict[str, Array], Value]:
    """Integers, and their scales where there are several, as tensors of the program; and what the first of them are."""
    integers = np.ascontiguousarray(rows(weight.integers, weight.q.scheme))
    tensors: dict[str, Array] = {name: integers}
    if weight.q.axis is not None:
        tensors |= {f"{name}_scale": weight.q.scale, f"{name}_zero_point": weight.q.zero_point.astype(np.int64)}
    return tensors, Value(str(integers.dtype), integers.shape)


def _dequantized(
    nodes: list[Node],
    fresh: dict[Node, str],
    integers: Node,
    name: str,
    weight: QuantizedWeight,
    state: Mapping[str, Array],
) -> Node:
    """What layers read in place of a weight."""
    q, kind = weight.q, Named(f"torch.{weight.integers.dtype}")
    shape = rows(weight.integers, q.scheme).shape
    nodes.append(integers)
    ends = (q.scheme.quant_min, q.scheme.quant_max, kind)
    if q.axis is None:
        target = _DEQUANTIZE
        args: tuple[Any, ...] = (integers, float(q.scale), int(q.zero_point), *ends)
    else:
        parts = [constant(part, state[part]) for part in (f"{name}_scale", f"{name}_zero_point")]
        fresh |= {part: named for part, named in zip(parts, (f"{name}_scale", f"{name}_zero_point"), strict=True)}
        target, args = _DEQUANTIZE_CHANNELS, (integers, *parts, q.axis, *ends)
    real = Node(f"{integers.name}_real", "call_function", target, args, {}, Value("float32", shape))
    nodes.append(real)
    if shape == weight.integers.shape:
        return real
    sizes = list(weight.integers.shape)
    whole = Node(
        f"{real.name}_whole", "call_function", "aten.reshape.default", (real, sizes), {}, Value("float32", tuple(sizes))
    )
    nodes.append(whole)
    return whole
