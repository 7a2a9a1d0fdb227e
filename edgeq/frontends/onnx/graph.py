"""The nodes of an ONNX graph as steps in PyTorch. What only constants say is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import AttributeProto, GraphProto, ModelProto

from edgeq.errors import EdgeqError, UnsupportedError
from edgeq.frontends.interpreted import Network, Read, Step
from edgeq.frontends.onnx import file
from edgeq.frontends.onnx.operators import OPERATORS
from edgeq.frontends.onnx.operators.node import Known, Node, Operator, listed
from edgeq.frontends.onnx.sizes import SIZES
from edgeq.frontends.qdq import Ends, Stored, check_grid, dequantize, ends_of, quantize, rounded, scaled
from edgeq.model.refusals import damaged

STORED = {
    2: (8, False), 3: (8, True), 4: (16, False), 5: (16, True), 21: (4, False), 22: (4, True), 25: (2, False),
    26: (2, True),
}  # fmt: skip
"""Types that grids are stored in, by the numbers that the standard gives them: bits, and whether they have a sign."""

_SIZES = "sizes"
_FLOWS = "flows"

_ON_INTEGERS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")


def inputs_of(model: ModelProto) -> list[onnx.ValueInfoProto]:
    """Those that the caller gives: older files list weights among them."""
    held = {one.name for one in model.graph.initializer}
    return [one for one in model.graph.input if one.name not in held]


def network_of(model: ModelProto, path: Path, example: Sequence[torch.Tensor]) -> Network:
    """A module that computes what the graph says, with its weights as parameters.

    Args:
        example: the inputs, whose sizes decide where a branch hangs on a size.

    Raises:
        UsageError: the graph does not hang together, or a constant cannot be read.
        UnsupportedError: an operator, or a form of it, is not computed here.
    """
    building = _Building(model, path, example)
    building.add(model.graph)
    outputs = [one.name for one in model.graph.output]
    for name in outputs:
        building.end(name)
    return Network(building.inputs, outputs, building.steps)


class _Building:
    """
    Attributes:
        known: constants by name.
        kinds: of all other values: sizes, or what flows.
        stored: constants that came as integers, by name; `known` has what they stand for.
        ends: of values that are integers of a grid.
        rounds: by the name of such a value that flows, what was rounded to it, scale and zero point.
    """

    def __init__(self, model: ModelProto, path: Path, example: Sequence[torch.Tensor]) -> None:
        self.path, self.where, self.opset = path, path.name, file.opset(model)
        self.inputs, self.example = [one.name for one in inputs_of(model)], example
        self.known: dict[str, Known] = {}
        self.kinds: dict[str, str] = dict.fromkeys(self.inputs, _FLOWS)
        self.ends: dict[str, Ends] = {}
        self.rounds: dict[str, tuple[str, Known, Known | None]] = {}
        self.stored: dict[str, Stored] = {}
        self.steps: list[tuple[str, Step]] = []

    def add(self, graph: GraphProto) -> None:
        for tensor in graph.initializer:
            self.known[tensor.name] = file.array(tensor, self.path.parent, self.where)
            if tensor.data_type in STORED:
                self.ends[tensor.name] = ends_of(*STORED[tensor.data_type])
        if graph.sparse_initializer:
            raise UnsupportedError("it has sparse weights", where=self.where, remedy="export them as dense ones")
        for node in graph.node:
            missing = [name for name in node.input if name and name not in self.known and name not in self.kinds]
            place = f"{self.where}: {_called(node)}"
            if missing:
                raise damaged(place, f"nothing writes {missing[0]!r}, which it reads")
            try:
                self._add(node, place)
            except EdgeqError as error:
                error.where = error.where or place
                raise
            except (ValueError, TypeError, LookupError, RuntimeError, ArithmeticError) as error:
                raise damaged(place, error) from error

    def end(self, name: str) -> None:
        """An output; one that is a constant gets a step of its own.

        Raises:
            UsageError: nothing writes it.
        """
        if name in self.known:
            self._step(name, torch.clone, [torch.from_numpy(self.known[name].copy())], [name], self.where)
        elif name not in self.kinds:
            raise damaged(self.where, f"nothing writes the output {name!r}")

    def _add(self, node: onnx.NodeProto, place: str) -> None:
        if node.op_type == "If":
            self._branch(node, place)
        elif node.op_type == "Constant":
            self.known[node.output[0]] = self._constant(node, place)
        elif node.op_type == "QuantizeLinear":
            self._quantize(node, place)
        elif node.op_type == "DequantizeLinear":
            self._dequantize(node, place)
        elif node.op_type == "Clip" and node.input[0] in self.ends:
            self._narrow(node, place)
        elif node.op_type not in OPERATORS:
            quantized = node.op_type in _ON_INTEGERS
            raise UnsupportedError(
                f"the operator {node.op_type} is not read here",
                where=place,
                remedy="quantize it in QDQ form, statically, or give the float model"
                if quantized
                else "export the model without it, or give the program of torch.export",
            )
        else:
            self._compute(node, place)

    def _compute(self, node: onnx.NodeProto, place: str) -> None:
        operator = OPERATORS[node.op_type]
        told = Node(node.op_type, self._attributes(node, place), self.opset, sum(map(bool, node.output)))
        given = [name for name in node.input]
        kinds = {self.kinds.get(name) for name in given if name and name not in self.known}
        if not kinds and node.op_type not in ("Shape", "Size"):
            self._fold(node, operator, told, place)
        elif not kinds:
            self.known[node.output[0]] = np.array(operator.run(told, self.known[given[0]]), np.int64)
        elif node.op_type in ("Shape", "Size") or (kinds == {_SIZES} and node.op_type in SIZES):
            run = SIZES[node.op_type] if kinds == {_SIZES} else operator.run
            arguments = [self._as_it_is(name) for name in given]
            self._step(_called(node), partial(run, told), arguments, node.output, place)
            self.kinds.update(dict.fromkeys(node.output, _SIZES))
        else:
            for position in operator.known:
                if position < len(given) and self.kinds.get(given[position]) == _FLOWS:
                    raise UnsupportedError(
                        f"how {node.op_type} computes depends on a value ({given[position]})",
                        where=place,
                        remedy="export the network with fixed sizes",
                    )
            turns = node.op_type == "MatMul" or (node.op_type == "Gemm" and not told.get("transB", 0))
            arguments = [self._argument(operator, position, name, turns) for position, name in enumerate(given)]
            self._step(_called(node), partial(operator.run, told), arguments, node.output, place)
            self.kinds.update(dict.fromkeys(node.output, _FLOWS))

    def _fold(self, node: onnx.NodeProto, operator: Operator, told: Node, place: str) -> None:
        stored = [self.stored[name] for name in node.input if name in self.stored]
        if stored and node.op_type in ("Transpose", "Identity"):
            order = told.get("perm") or list(reversed(range(stored[0].integers.ndim)))
            self.stored[node.output[0]] = stored[0].permuted(order) if node.op_type == "Transpose" else stored[0]
        elif stored:
            raise UnsupportedError(
                "a weight that is stored as integers is changed before it is used",
                where=place,
                remedy="fold such steps before the model is quantized, or give the float model",
            )
        arguments = [
            None if not name
            else self.known[name] if position in operator.known | operator.indices
            else torch.from_numpy(np.array(self.known[name]))
            for position, name in enumerate(node.input)
        ]  # fmt: skip
        step = Step(partial(operator.run, told), [Read(str(n)) for n in range(len(arguments))], node.output, place)
        with torch.no_grad():
            found = step(*arguments)
        for name, value in zip(node.output, found, strict=False):
            self.known[name] = value.detach().contiguous().numpy() if isinstance(value, torch.Tensor) else value

    def _argument(self, operator: Operator, position: int, name: str, turns: bool) -> Any:
        if not name:
            return None
        if name in self.stored and position not in operator.known:
            stored = self.stored[name]
            return stored.argument(turned=turns and position == 1 and stored.integers.ndim == 2)
        if name not in self.known:
            return Read(name)
        value = self.known[name]
        if position in operator.known | operator.indices or (operator.scalars and value.size == 1):
            return value
        return torch.from_numpy(np.array(value))

    def _as_it_is(self, name: str) -> Any:
        return None if not name else self.known[name] if name in self.known else Read(name)

    def _step(self, name: str, run: Any, arguments: Sequence[Any], writes: Sequence[str], place: str) -> None:
        self.steps.append((name, Step(run, arguments, writes, place)))

    def _constant(self, node: onnx.NodeProto, place: str) -> Known:
        for one in node.attribute:
            match one.name:
                case "value":
                    if one.t.data_type in STORED:
                        self.ends[node.output[0]] = ends_of(*STORED[one.t.data_type])
                    return file.array(one.t, self.path.parent, place)
                case "value_float" | "value_floats":
                    return np.array(onnx.helper.get_attribute_value(one), np.float32)
                case "value_int" | "value_ints":
                    return np.array(onnx.helper.get_attribute_value(one), np.int64)
        raise UnsupportedError("a constant is a text or sparse", where=place, remedy="export the model without it")

    def _attributes(self, node: onnx.NodeProto, place: str) -> Mapping[str, Any]:
        found: dict[str, Any] = {}
        for one in node.attribute:
            if one.type == AttributeProto.TENSOR:
                found[one.name] = file.array(one.t, self.path.parent, place)
            elif one.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
                continue
            else:
                value = onnx.helper.get_attribute_value(one)
                found[one.name] = value if isinstance(value, int | float) else _text(value)
        return found

    def _branch(self, node: onnx.NodeProto, place: str) -> None:
        """The one branch that is taken, where that is known."""
        name = node.input[0]
        condition = self.known.get(name)
        if self.kinds.get(name) == _SIZES:
            (condition,) = Network(self.inputs, [name], self.steps)(*self.example)
        if condition is None:
            raise UnsupportedError(
                "which branch of If is taken depends on a value",
                where=place,
                remedy="export a network whose steps are the same for every input",
            )
        wanted = "then_branch" if bool(listed(condition)[0]) else "else_branch"
        graph = GraphProto()
        graph.CopyFrom(next(one.g for one in node.attribute if one.name == wanted))
        file.rename(graph, f"{_called(node)}/{len(self.steps)}/", {})
        self.add(graph)
        for name, inner in zip(node.output, graph.output, strict=True):
            if inner.name in self.known:
                self.known[name] = self.known[inner.name]
            else:
                self._step(_called(node), lambda x: x, [Read(inner.name)], [name], place)
                self.kinds[name] = self.kinds[inner.name]

    def _quantize(self, node: onnx.NodeProto, place: str) -> None:
        scale, zero, axis, _ = self._grid(node, place)
        source, name = node.input[0], node.output[0]
        ends = self.ends.get(node.input[2]) if len(node.input) > 2 else None
        wanted = self._attributes(node, place).get("output_dtype", 0)
        if ends is None:
            if wanted and wanted not in STORED:
                raise UnsupportedError("it rounds to no integers", where=place, remedy="give the float model")
            ends = ends_of(*STORED[wanted or 2])
        self.ends[name] = ends
        if source in self.known:
            if self.known[source].ndim == 0 or scale.size == 1:
                axis = 0
            self.known[name] = rounded(self.known[source], scale, zero, axis, ends)
        else:
            self.rounds[name] = source, scale, zero
            self._step(
                _called(node), partial(quantize, scale=scale, zero=zero, ends=ends), [Read(source)], [name], place
            )
            self.kinds[name] = _FLOWS

    def _dequantize(self, node: onnx.NodeProto, place: str) -> None:
        scale, zero, axis, block = self._grid(node, place)
        source, name = node.input[0], node.output[0]
        ends = self.ends.get(source)
        if source in self.known:
            integers = self.known[source]
            if integers.ndim:
                axis %= integers.ndim
            one = Stored(integers, scale, zero, axis if scale.size > 1 else 0, block, ends or ends_of(8, True))
            self.known[name] = one.real
            if ends is not None:  # biases are made anew of what is read and of the weights: the same integers
                self.stored[name] = one
            return
        run = partial(dequantize, ends=ends) if ends is not None else scaled
        self._step(_called(node), partial(run, scale=scale, zero=zero), [Read(source)], [name], place)
        self.kinds[name] = _FLOWS

    def _narrow(self, node: onnx.NodeProto, place: str) -> None:
        """A Clip behind integers: the grid has these ends."""
        source, name = node.input[0], node.output[0]
        old = self.ends[source]
        names = (*node.input[1:], "", "")[:2]
        if any(one and one not in self.known for one in names):
            raise UnsupportedError(
                "the ends of a grid depend on a value",
                where=place,
                remedy="quantize it statically, or give the float model",
            )
        given = [listed(self.known[one])[0] if one else None for one in names]
        ends = old.narrowed(*(int(new) if new is not None else end for new, end in zip(given, old[:2], strict=True)))
        self.ends[name] = ends
        if source in self.known:
            self.known[name] = np.clip(self.known[source], ends.low, ends.high)
            return
        read, scale, zero = self.rounds[name] = self.rounds[source]
        self._step(_called(node), partial(quantize, scale=scale, zero=zero, ends=ends), [Read(read)], [name], place)
        self.kinds[name] = _FLOWS

    def _grid(self, node: onnx.NodeProto, place: str) -> tuple[Known, Known | None, int, int]:
        """Scale, zero point, axis and block size."""
        names = [name for name in node.input[1:] if name]
        if any(name not in self.known for name in names):
            raise UnsupportedError(
                "it rounds by scales that are found while it runs",
                where=place,
                remedy="quantize it statically, or give the float model and let edgeq quantize it",
            )
        told = self._attributes(node, place)
        scale, zero = self.known[names[0]], self.known[names[1]] if len(names) > 1 else None
        axis, block, source = int(told.get("axis", 1)), int(told.get("block_size", 0)), self.known.get(node.input[0])
        check_grid(scale, zero, axis, block, None if source is None else source.shape)
        return scale, zero, axis, block


def _text(value: Any) -> Any:
    """Texts, which come as bytes, also in lists."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return [_text(one) for one in value] if isinstance(value, Sequence) else value


def _called(node: onnx.NodeProto) -> str:
    """What its layer is called: by its weight, as PyTorch names those of modules, or as the node is."""
    weight = node.input[1] if len(node.input) > 1 else ""
    if weight.endswith(".weight"):
        return str(weight.removesuffix(".weight"))
    return str(node.name or next((name for name in node.output if name), node.op_type))
