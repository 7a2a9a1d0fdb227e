"""The model's program as the TFLite converter can take it: the same values, by operators that it has words for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from edgeq.export.tflite_apart import Apart
from edgeq.export.tflite_transposed import OPERATORS, cut_apart, padding, spacing, spread
from edgeq.model.model import Model

Kernels = dict[str, tuple[torch.Tensor, tuple[int, ...]]]
"""By node, a kernel, and what is cut off each end afterwards."""


def rewritten(model: Model, program: ExportedProgram, apart: Apart, inputs: Sequence[torch.Tensor]) -> ExportedProgram:
    """The program, traced again with what is written anew in it; itself where nothing is.

    Args:
        apart: layers to be kept apart, whose zeros become inputs behind the model's own.
        inputs: one for each argument, of the shapes that the file is made for.
    """
    kernels = _kernels(model)
    if not kernels and not any(map(_in_other_words, program.graph.nodes)) and not apart.count:
        return torch.export.export(program.module(), tuple(inputs)) if model.dynamic_batch else program
    return torch.export.export(_Rewritten(program, kernels, apart), (*inputs, *apart.zeros()))


def _kernels(model: Model) -> Kernels:
    """By node, transposed convolutions to be converted with another kernel, and what is then cut off their ends."""
    found = {}
    for node in model.program.nodes:
        weight = model.program.lifted.get(node.args[1].name, "") if node.target in OPERATORS else ""
        if weight not in model.state:
            continue
        kernel = spread(model.state[weight], spacing(node))
        apart = cut_apart(node, kernel.shape[2:])
        if apart or spacing(node):
            found[node.name] = torch.from_numpy(kernel), padding(node) if apart else ()
    return found


class _Rewritten(torch.nn.Module):
    def __init__(self, program: ExportedProgram, kernels: Kernels, apart: Apart) -> None:
        super().__init__()
        self.inner, self.apart = program.module(), apart
        self.names = {name: f"kernel{number}" for number, name in enumerate(kernels)}
        self.cut = {name: cut for name, (_, cut) in kernels.items()}
        for name, (kernel, _) in kernels.items():
            self.register_buffer(self.names[name], kernel.clone())

    def forward(self, *inputs: torch.Tensor) -> list[Any]:
        own = inputs[: len(inputs) - self.apart.count]
        return tree_leaves(_Run(self, inputs[len(own) :]).run(*own))


class _Run(torch.fx.Interpreter):
    def __init__(self, outer: _Rewritten, zeros: Sequence[torch.Tensor]) -> None:
        super().__init__(outer.inner)
        self.outer, self.zeros = outer, zeros

    def run_node(self, n: torch.fx.Node) -> Any:
        outer = self.outer
        if n.op != "call_function":
            return super().run_node(n)

        def read(source: torch.fx.Node) -> Any:
            return outer.apart.read(n.name, source.name, self.env[source], self.zeros)

        args, kwargs = torch.fx.node.map_arg((n.args, n.kwargs), read)
        if n.name in outer.names:
            args = _without_spaces(args, getattr(outer, outer.names[n.name]), outer.cut[n.name])
        other = _in_other_words(n)
        value = other(n.target, args, kwargs) if other else self.call_function(n.target, args, kwargs)
        for axis, cut in enumerate(outer.cut.get(n.name, ()), start=2):
            value = value.narrow(axis, cut, value.shape[axis] - 2 * cut)
        return outer.apart.written(n.name, value, self.zeros)


def _without_spaces(args: Sequence[Any], kernel: torch.Tensor, cut: Sequence[int]) -> tuple[Any, ...]:
    """The arguments of a transposed convolution, with the zeros in the kernel instead of beside it.

    Args:
        cut: what is cut off its ends afterwards; empty where the operator does it.
    """
    one, none = [1] * (kernel.dim() - 2), [0] * (kernel.dim() - 2)
    given = [*args[:5], *(None, one, none)[max(len(args) - 2, 0) :]]
    groups = args[6] if len(args) > 6 else 1
    ends = none if cut else given[4]
    return (given[0], kernel, *given[2:4], ends, none, groups, one)


def _in_other_words(node: torch.fx.Node) -> Callable[..., Any] | None:
    """What computes the same as an operator that the converter takes wrong, or that LiteRT has no kernel for then."""
    if node.target in _SORTS:
        return _sorted
    if node.target is torch.ops.aten.rsub.Scalar:
        return _subtracted
    if node.target is torch.ops.aten.conv3d.default and len(node.args) > 4:
        return _padded_before
    value = node.meta.get("val")
    if node.target is torch.ops.aten.pow.Tensor_Scalar and isinstance(value, torch.Tensor) and value.dim() > _POW_AXES:
        return _product if node.args[1] in (2, 3, 4) else None
    return None


_SORTS = frozenset({torch.ops.aten.topk.default, torch.ops.aten.sort.default, torch.ops.aten.argsort.default})

_POW_AXES = 4
"""The most axes that a tensor may have whose powers TFLite computes."""


def _subtracted(_target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A number less a tensor: of images, the converter gives the tensor less the number."""
    alpha = args[2] if len(args) > 2 else kwargs.get("alpha", 1)
    negative = -args[0] if alpha == 1 else args[0] * -alpha
    return negative + args[1]


def _padded_before(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A convolution over three axes, its padding in front of it: the converter crashes at some that pad inside."""
    cut = [0, 0, 0]
    ends = args[4] if len(args[4]) == len(cut) else [*args[4]] * len(cut)
    padded = torch.nn.functional.pad(args[0], [size for end in reversed(ends) for size in (end, end)])
    return target(padded, *args[1:4], cut, *args[5:], **kwargs)


def _product(_target: Any, args: Sequence[Any], _kwargs: dict[str, Any]) -> Any:
    return math.prod([args[0]] * (int(args[1]) - 1), start=args[0])


def _sorted(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A sort as the kernel does it: the largest first, along the last axis."""
    import litert_torch.backend.experimental.torch_tfl  # noqa: F401

    named = dict(zip((argument.name for argument in target._schema.arguments), args, strict=False)) | kwargs
    x, axis = named["self"], named.get("dim", -1)
    falling = named.get("largest", True) if target is torch.ops.aten.topk.default else named.get("descending", False)
    if not x.is_floating_point():
        return target(*args, **kwargs)
    moved = x.movedim(axis, -1)
    count = named.get("k", moved.shape[-1])
    values, places = torch.ops.tfl.topk_v2(moved if falling else -moved, count)
    values, places = (v.movedim(-1, axis) for v in (values if falling else -values, places.long()))
    return places if target is torch.ops.aten.argsort.default else (values, places)
