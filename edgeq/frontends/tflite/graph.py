"""The operators of a TFLite graph as steps in PyTorch. What only constants say is computed here.

Values that are integers of a grid are held as the numbers that they stand for: a result is rounded to its grid behind
the operator, by PyTorch's own operators of quantization.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeq.errors import EdgeqError, UnsupportedError
from edgeq.frontends.interpreted import Network, Read, Step
from edgeq.frontends.qdq import Ends, Known, Stored, check_grid, dequantize, ends_of, quantize
from edgeq.frontends.tflite import file
from edgeq.frontends.tflite.operators import OPERATORS
from edgeq.frontends.tflite.operators.node import Node, Operator, Turned, as_filed, compute
from edgeq.frontends.tflite.sizes import SIZES, shape
from edgeq.model.refusals import damaged

_WEIGHTS = {"CONV_2D": [0, 3, 1, 2], "DEPTHWISE_CONV_2D": [3, 0, 1, 2], "TRANSPOSE_CONV": [3, 0, 1, 2]}
"""By operator, the axes of its second argument in PyTorch's order."""

_CONTROL_FLOW = (
    "IF",
    "WHILE",
    "CALL",
    "CALL_ONCE",
    "STABLEHLO_WHILE",
    "VAR_HANDLE",
    "READ_VARIABLE",
    "ASSIGN_VARIABLE",
)

_SIZES, _FLOWS = "sizes", "flows"


def network_of(model: Any, path: Path) -> Network:
    """A module that computes what the graph says, with its weights as parameters. Inputs and outputs that are integers
    of a grid are the numbers that these stand for.

    Raises:
        UsageError: the graph does not hang together, or a constant cannot be read.
        UnsupportedError: an operator, or a form of it, is not computed here.
    """
    building = _Building(model, path)
    graph = model.subgraphs[0]
    for place in graph.inputs:
        building.begin(int(place))
    for operator in graph.operators:
        building.add(operator)
    for place in graph.outputs:
        building.end(int(place))
    inputs, outputs = ([_value(place) for place in places] for places in (graph.inputs, graph.outputs))
    return Network(inputs, outputs, building.steps)


def grid_of(tensor: Any) -> tuple[Known, Known, int, Ends] | None:
    """Scales, zero points, their axis and ends of a tensor that is integers of a grid.

    Raises:
        ValueError: they are none.
    """
    kind, said = file.types()[tensor.type], tensor.quantization
    if said is None or said.scale is None or not len(said.scale) or kind not in _INTEGERS:
        return None
    scale = np.asarray(said.scale, np.float32)
    zero = np.asarray(said.zeroPoint if said.zeroPoint is not None else np.zeros(len(scale)), np.int64)
    axis = int(said.quantizedDimension or 0) if scale.size > 1 else 0
    zero = np.full(scale.shape, zero[0]) if zero.size == 1 else zero
    check_grid(scale, zero, axis, 0, tuple(file.shape_of(tensor)) if scale.size > 1 else None)
    return scale, zero, axis, ends_of(*_INTEGERS[kind])


_INTEGERS = {"int8": (8, True), "uint8": (8, False), "int16": (16, True), "int4": (4, True), "int2": (2, True)}


class _Building:
    """
    Attributes:
        known: constants by place.
        stored: those that came as integers of a grid; `known` has what they stand for.
        kinds: of all other values: sizes, or what flows.
    """

    def __init__(self, model: Any, path: Path) -> None:
        self.model, self.where = model, path.name
        self.tensors = model.subgraphs[0].tensors
        self.names, self.types = file.operators(), file.types()
        self.known: dict[int, Known] = {}
        self.stored: dict[int, Stored] = {}
        self.kinds: dict[int, str] = {}
        self.steps: list[tuple[str, Step]] = []
        for place, tensor in enumerate(self.tensors):
            try:
                self._hold(place, tensor)
            except ValueError as error:
                raise damaged(f"{self.where}: {file.text(tensor.name)}", error) from error

    def begin(self, place: int) -> None:
        """An input; integers of a grid are rounded to it first."""
        self.kinds[place] = _FLOWS
        grid = grid_of(self.tensors[place])
        if grid is not None:
            run, name = partial(_rounded, grid), file.text(self.tensors[place].name)
            self.steps.append((name, Step(run, [Read(_value(place))], [_value(place)], f"{self.where}: {name}")))

    def end(self, place: int) -> None:
        """An output, with its axes in the file's order."""
        if place in self.known:
            held: Any = torch.from_numpy(self.known[place])
        elif place in self.kinds:
            held = Read(_value(place))
        else:
            raise damaged(self.where, "nothing writes an output")
        name = file.text(self.tensors[place].name)
        self.steps.append((name, Step(as_filed, [held], [_value(place)], f"{self.where}: {name}")))

    def add(self, operator: Any) -> None:
        code = self.model.operatorCodes[operator.opcodeIndex]
        number = max(code.builtinCode or 0, code.deprecatedBuiltinCode or 0)
        op = self.names.get(number, f"number {number}")
        if op == "CUSTOM":
            op = f"{file.text(code.customCode)} (custom)"
        writes = [int(place) for place in operator.outputs]
        name = file.text(self.tensors[writes[0]].name).split(";")[0] or op if writes else op
        place = f"{self.where}: {name}"
        reads = [int(place) for place in (operator.inputs if operator.inputs is not None else ())]
        missing = [one for one in reads if one >= 0 and one not in self.known and one not in self.kinds]
        if missing:
            raise damaged(place, f"nothing writes {file.text(self.tensors[missing[0]].name)!r}, which it reads")
        node = Node(op, operator.builtinOptions, len(writes))
        try:
            self._add(node, reads, writes, name, place)
        except EdgeqError as error:
            error.where = error.where or place
            raise
        except (ValueError, TypeError, LookupError, RuntimeError, ArithmeticError, AttributeError) as error:
            raise damaged(place, error) from error

    def _add(self, node: Node, reads: list[int], writes: list[int], name: str, place: str) -> None:
        if node.op in ("DEQUANTIZE", "QUANTIZE"):
            self._convert(reads[0], writes[0], name, place)
            return
        kinds = {self.kinds.get(one) for one in reads if one >= 0 and one not in self.known}
        if node.op == "SHAPE" or (kinds == {_SIZES} and node.op in SIZES):
            run = shape if node.op == "SHAPE" else SIZES[node.op]
            arguments = [None if one < 0 else self.known.get(one, Read(_value(one))) for one in reads]
            self._step(name, partial(run, node), arguments, writes, place, _SIZES)
            return
        if node.op not in OPERATORS:
            steers = node.op in _CONTROL_FLOW
            raise UnsupportedError(
                f"the operator {node.op} is not read here",
                where=place,
                remedy="export a network whose steps are the same for every input, without state"
                if steers
                else "export the model without it",
            )
        operator = OPERATORS[node.op]
        for position in operator.known:
            if position < len(reads) and self.kinds.get(reads[position]) == _FLOWS:
                raise UnsupportedError(
                    f"how {node.op} computes depends on a value",
                    where=place,
                    remedy="export the network with fixed sizes",
                )
        grids = [grid_of(self.tensors[one]) for one in writes]
        run = partial(_computed, operator, node, grids)
        arguments = [self._argument(operator, node.op, position, one) for position, one in enumerate(reads)]
        if kinds:
            self._step(name, run, arguments, writes, place, _FLOWS)
            return
        step = Step(run, arguments, [], place)
        with torch.no_grad():
            for one, value in zip(writes, step(*()), strict=False):
                self.known[one] = as_filed(value).contiguous().numpy()

    def _convert(self, source: int, target: int, name: str, place: str) -> None:
        """Values are held as the numbers that they stand for: what is left is to round them to another grid."""
        grid = grid_of(self.tensors[target])
        if source in self.known and grid is None:
            self.known[target] = self.known[source]
            if source in self.stored:
                self.stored[target] = self.stored[source]
            return
        value: Any = torch.from_numpy(self.known[source]) if source in self.known else Read(_value(source))
        run = partial(_rounded, grid) if grid is not None else _same
        self._step(name, run, [value], [target], place, _FLOWS)

    def _step(self, name: str, run: Any, arguments: Sequence[Any], writes: list[int], place: str, kind: str) -> None:
        self.steps.append((name, Step(run, arguments, [_value(one) for one in writes], place)))
        self.kinds.update(dict.fromkeys(writes, kind))

    def _hold(self, place: int, tensor: Any) -> None:
        if tensor.isVariable:
            raise UnsupportedError(
                "it keeps state between calls",
                where=f"{self.where}: {file.text(tensor.name)}",
                remedy="export it with its state as an input and an output",
            )
        grid, value = grid_of(tensor), file.constant(self.model, tensor, self.where)
        if value is None:
            return
        if grid is None and tensor.quantization is not None and self.types[tensor.type] in ("int32", "int64"):
            grid = _grid_of_bias(tensor)
        if grid is None:
            self.known[place] = value
            return
        scale, zero, axis, ends = grid
        check_grid(scale, zero, axis, 0, value.shape)
        one = Stored(value, scale, zero, axis, 0, ends)
        self.known[place] = one.real
        if ends.dtype != "int32":
            self.stored[place] = one

    def _argument(self, operator: Operator, op: str, position: int, place: int) -> Any:
        if place < 0:
            return None
        if place not in self.known:
            return Read(_value(place))
        if position in operator.known or (op == "GATHER" and position == 1):
            return self.known[place]
        order = _WEIGHTS.get(op) if position == 1 else None
        weighs = order is not None or (op == "FULLY_CONNECTED" and position == 1)
        if weighs and place in self.stored:
            stored = self.stored[place]
            return (stored.permuted(order) if order is not None else stored).argument(turned=False)
        value = self.known[place]
        return torch.from_numpy(np.ascontiguousarray(value.transpose(order) if order is not None else value))


def _grid_of_bias(tensor: Any) -> tuple[Known, Known, int, Ends] | None:
    said = tensor.quantization
    if said.scale is None or not len(said.scale):
        return None
    scale = np.asarray(said.scale, np.float32)
    return scale, np.zeros(scale.shape, np.int64), 0, Ends(-(1 << 31), (1 << 31) - 1, "int32")


def _computed(operator: Operator, node: Node, grids: Sequence[Any], *given: Any) -> tuple[Any, ...]:
    found = compute(operator, node, *(_tensor(one, operator, n) for n, one in enumerate(given)))
    every = found if isinstance(found, tuple) and not isinstance(found, Turned) else (found,)
    return tuple(value if grid is None else _rounded(grid, value) for value, grid in zip(every, grids, strict=False))


def _tensor(one: Any, operator: Operator, position: int) -> Any:
    """Sizes that meet values become a tensor."""
    if isinstance(one, np.ndarray) and one.dtype == object and position not in operator.known:
        return torch.stack([torch.scalar_tensor(n, dtype=torch.int64) for n in one.reshape(-1)]).reshape(one.shape)
    return one


def _rounded(grid: tuple[Known, Known, int, Ends], value: Any) -> Any:
    scale, zero, _, ends = grid
    x = value.held if isinstance(value, Turned) else value
    if not x.is_floating_point():
        return value
    y = dequantize(quantize(x, scale=scale, zero=zero, ends=ends), scale=scale, zero=zero, ends=ends)
    return Turned(y) if isinstance(value, Turned) else y


def _same(value: Any) -> Any:
    return value


def _value(place: int) -> str:
    return f"t{int(place)}"
