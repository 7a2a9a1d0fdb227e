"""Puts planned integers, scales and zero points into a float graph, operator by operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeq.errors import UnsupportedError
from edgeq.export.tflite_forms import INTEGER_FORMS, JOINS, KEEPS_SCALE, TAKES_CONSTANTS
from edgeq.export.tflite_graph import Graph
from edgeq.export.tflite_match import MOVERS, makers, origins, owners, source
from edgeq.export.tflite_pointwise import pointwise_as_product
from edgeq.export.tflite_weights import store_dynamic_weights, store_float_bias, store_weights, store_weights_alone
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.model.ops import WEIGHTED
from edgeq.numerics import QParams
from edgeq.quantization.quantized import Quantized

_ACTIVATION_TYPES = ("int8", "int16")


@dataclass(frozen=True)
class Grid:
    """The integers that a tensor is stored in."""

    dtype: str
    scale: float
    zero_point: int


@dataclass(frozen=True)
class _Integer:
    """How an operator runs on integers: the grids that it reads, by slot, writes, and is wanted in afterwards."""

    reads: dict[int, Grid]
    writes: Grid
    wanted: Grid


def quantize(model: Model, quantized: Quantized, graph: Graph, nodes: dict[int, str]) -> None:
    """Rewrites a float graph in place.

    Args:
        graph: with activations separated as `edgeq.export.tflite_tidy` does it.
        nodes: graph node by tensor (see `edgeq.export.tflite_match`).

    Raises:
        UnsupportedError: a weight is not where it should be, or a type has no place in a `.tflite` file.
    """
    for tensor in (*quantized.activations.values(), *quantized.again.values()):
        if tensor.q.scheme.dtype not in _ACTIVATION_TYPES:
            raise UnsupportedError(
                f"a .tflite file has no {tensor.q.scheme.dtype} activations", remedy="choose int8 activations"
            )
    _Rewriter(model, quantized, graph, nodes).run()


def planned_values(model: Model, quantized: Quantized, graph: Graph, nodes: Mapping[int, str]) -> frozenset[str]:
    """Graph nodes whose values operators of integer groups read or write in a float graph.

    What the converter left out of a file needs no integers there: where a transposition of an input is gone, an
    operator in float may be all that reads it.
    """
    groups, kernels = owners(model), quantized.assignment.kernels
    made_by = makers(graph)
    found: set[str] = set()
    for operator in graph.operators:
        outputs = [int(i) for i in operator.outputs if int(i) in nodes]
        if any((group := groups.get(nodes[i])) is not None and group.name in kernels for i in outputs):
            reads = [source(graph, made_by, nodes, int(i)) for i in operator.inputs if graph.is_float(int(i))]
            found |= {nodes[i] for i in outputs} | {name for name in reads if name is not None}
    if quantized.runtime.io == "integer":
        found |= {*model.input_nodes, *model.output_nodes}
    return frozenset(found & set(nodes.values()))


class _Rewriter:
    """One rewriting. Every float tensor of the source graph has a native form, float or a grid, and maybe others."""

    def __init__(self, model: Model, quantized: Quantized, graph: Graph, nodes: dict[int, str]) -> None:
        self.model, self.quantized, self.graph, self.nodes = model, quantized, graph, nodes
        self.owner = owners(model)
        self.same = origins(model)
        self.grids = {name: _grid(t.q) for name, t in quantized.activations.items()}
        self.again = {version: _grid(t.q) for version, t in quantized.again.items()}
        self.also_float = {self.same[name] for name in quantized.assignment.also_float}
        self.by_value: dict[str, Grid] = {}
        for name, grid in self.grids.items():
            self.by_value.setdefault(self.same[name], grid)
        # Where a tensor comes from is asked of the graph as it was; types and operators change under way.
        floats = {int(i) for op in graph.operators for i in (*op.inputs, *op.outputs) if graph.is_float(int(i))}
        self.floats = floats | {i for i in graph.inputs if graph.is_float(i)}
        made_by = makers(graph)
        self.readers: dict[int, list[Any]] = {}
        for operator in graph.operators:
            for index in {int(i) for i in operator.inputs}:
                self.readers.setdefault(index, []).append(operator)
        self.source = {i: source(graph, made_by, nodes, i) for i in self.floats}
        self.forms: dict[int, dict[Grid | None, int]] = {}
        self.native: dict[int, Grid | None] = {}
        self.labels: dict[int, str] = {}
        self.taken: set[str] = set()
        self.stored: set[str] = set()
        self.layers = {group.name for group in model.groups}  # one that is called again has a number in its name
        self.ends: set[str] = set()
        self.operators: list[Any] = []

    def run(self) -> None:
        graph, integer_io = self.graph, self.quantized.runtime.io == "integer"
        inputs, outputs = [s.name for s in self.model.inputs], list(self.model.output_names)
        self.ends = {*inputs, *outputs}
        self.taken |= self.ends
        for index, name, node in zip(graph.inputs, inputs, self.model.input_nodes, strict=True):
            if index in self.floats:
                self._settle([index], self.grids.get(node) if integer_io else None)
                self.labels[index] = name
        for operator in graph.operators:
            self._rewrite(operator)
        ends = []
        for index, node in zip(graph.outputs, self.model.output_nodes, strict=True):
            if index not in self.floats:
                ends.append(index)
            elif integer_io:
                ends.append(self._form(index, self.native.get(index) or self.grids.get(node)))
            else:
                ends.append(self._form(index, None))
        self._expect_all_weights()
        graph.set_operators(self.operators)
        graph.set_ends(graph.inputs, ends, (inputs, outputs))
        for index, name in [*zip(graph.inputs, inputs, strict=True), *zip(ends, outputs, strict=True)]:
            graph.tensors[index].name = name.encode()

    def _rewrite(self, operator: Any) -> None:
        reads = [slot for slot, i in enumerate(operator.inputs) if int(i) in self.floats]
        writes = [int(i) for i in operator.outputs if int(i) in self.floats]
        group = self._group(operator, writes)
        plan = self._plan(operator, group, reads, writes)
        self._label(operator, group)
        inputs = [int(i) for i in operator.inputs]
        for slot in reads:
            inputs[slot] = self._form(inputs[slot], plan.reads[slot] if plan else None)
        if plan is not None and self.graph.kind(operator) in TAKES_CONSTANTS:
            inputs = [i if s in reads else self._integer_constant(i, plan.writes.dtype) for s, i in enumerate(inputs)]
        if plan is not None and self.graph.kind(operator) in JOINS:
            inputs = [i if s in reads else self._constant_on(i, plan.writes) for s, i in enumerate(inputs)]
        operator.inputs = np.array(inputs, dtype=np.int32)
        if group is not None and group.op in WEIGHTED and self.graph.kind(operator) in INTEGER_FORMS[group.op]:
            if plan is not None:
                self.stored.add(group.name)
                store_weights(self.model, self.quantized, group, self.graph, operator, plan.writes.dtype)
                pointwise_as_product(self.graph, operator)
            elif group.name in self.quantized.assignment.dynamic:
                self.stored.add(group.name)
                store_dynamic_weights(self.model, self.quantized, group, self.graph, operator)
            elif group.name in self.quantized.assignment.weight_only:
                self.stored.add(group.name)
                name = self._free(f"{group.name}/weight")
                self.operators.append(
                    store_weights_alone(self.model, self.quantized, group, self.graph, operator, name)
                )
            else:
                store_float_bias(self.model, self.quantized, group, self.graph, operator)
        if plan is not None and self.graph.kind(operator) == "PADV2":
            self._integer_padding(operator, plan.writes)
        self.operators.append(operator)
        self._settle(writes, plan.writes if plan else None)
        if plan is not None and plan.wanted != plan.writes:
            for index in writes:
                self._form(index, plan.wanted)

    def _expect_all_weights(self) -> None:
        missing = next((name for name in self.quantized.weights if name not in self.stored), None)
        if missing is not None:
            raise UnsupportedError(
                "the TFLite converter makes no single operator of it, which its integers could go into",
                where=f"layer {missing}",
                remedy="leave it in float by a plan, or choose another format for this model",
            )

    def _group(self, operator: Any, writes: list[int]) -> Group | None:
        """The group that an operator computes, None for movers and parts."""
        if len(writes) != 1 or self.graph.kind(operator) in MOVERS or writes[0] not in self.nodes:
            return None
        return self.owner.get(self.nodes[writes[0]])

    def _plan(self, operator: Any, group: Group | None, reads: list[int], writes: list[int]) -> _Integer | None:
        """How an operator runs on integers, None if it stays in float."""
        if not reads or not writes:
            return None
        if self.graph.kind(operator) in MOVERS:
            grid = self._moved(operator, reads, writes)
            return _Integer(dict.fromkeys(reads, grid), grid, grid) if grid else None
        if group is None or group.name not in self.quantized.assignment.kernels:
            return None
        return self._computed(operator, group, reads, writes[0])

    def _moved(self, operator: Any, reads: list[int], writes: list[int]) -> Grid | None:
        """A mover carries the grid of what it moves: that costs no accuracy, and moves a quarter of the bytes."""
        kind = self.graph.kind(operator)
        tensors = [int(operator.inputs[slot]) for slot in reads]
        constants = [int(i) for i in operator.inputs if int(i) >= 0 and int(i) not in self.floats]
        if kind not in ("PADV2", *JOINS) and any(self.graph.dtype(i) == "float32" for i in constants):
            return None
        node = self.nodes.get(writes[0])
        group = self.owner.get(node) if node is not None and node != self.source.get(tensors[0]) else None
        planned = group is not None and group.name in self.quantized.assignment.kernels
        if planned and node in self.grids:
            return self.grids[node]
        if group is not None and not planned and self.quantized.runtime.kernel(group.op) is None:
            return None
        if kind in JOINS:
            grids = {self.native[i] for i in tensors}
            grids |= {None} if any(self.graph.dtype(i) == "float32" for i in constants) else set()
            return grids.pop() if group is None and len(grids) == 1 else None
        as_it_is = self.native[tensors[0]] is None and self.source[tensors[0]] in self.also_float
        if as_it_is and not all(map(self._for_integers, writes)):
            return None  # what is computed in float reaches operators in float as it is
        return self._available(tensors[0])

    def _for_integers(self, index: int) -> bool:
        """Whether all that reads a tensor, however it is moved before, belongs to layers on integers."""
        if index in self.graph.outputs:
            return False
        for reader in self.readers.get(index, ()):
            outputs = [int(i) for i in reader.outputs]
            owners = [self.owner.get(self.nodes.get(i, "")) for i in outputs]
            planned = all(one is not None and one.name in self.quantized.assignment.kernels for one in owners)
            moved = self.graph.kind(reader) in MOVERS and all(map(self._for_integers, outputs))
            if not planned and not moved:
                return False
        return True

    def _available(self, index: int) -> Grid | None:
        """The grid that a tensor has, or that something else wants it in."""
        native = self.native[index]
        return native if native is not None else self.by_value.get(self.source[index] or "")

    def _computed(self, operator: Any, group: Group, reads: list[int], output: int) -> _Integer | None:
        kind, node = self.graph.kind(operator), self.nodes[output]
        alone = self._alone(operator, group, output)
        form = group.activation_op if alone else group.op
        wanted = self.grids.get(node)
        if wanted is None and node == group.root and group.activation is not None:
            # The converter left a fusible activation apart: what it would cut off may as well saturate before it,
            # where nothing else reads it.
            wanted = self.grids.get(group.activation) if self._only_activated(output, group.activation) else None
        if wanted is None or kind not in INTEGER_FORMS.get(form or "", ()):
            return None
        given = self._inputs(operator, [group.root] if alone else list(group.inputs), reads, wanted.dtype, alone)
        if given is None:
            return None
        keeps = kind in KEEPS_SCALE
        return _Integer(given, given[reads[0]] if keeps else wanted, wanted)

    def _only_activated(self, index: int, activation: str) -> bool:
        """Whether all that reads a tensor computes an activation of it, or moves what it reads for that."""
        if index in self.graph.outputs:
            return False
        for reader in self.readers.get(index, ()):
            (output, *_) = (int(i) for i in reader.outputs)
            moves = self.graph.kind(reader) in MOVERS and self._only_activated(output, activation)
            if not moves and self.nodes.get(output) != activation:
                return False
        return True

    def _alone(self, operator: Any, group: Group, output: int) -> bool:
        """Whether an operator computes only the activation of its group."""
        if self.nodes.get(output) != group.activation:
            return False
        # an activation may be made of the same operators as what is in front of it: SiLU behind a product
        reads_root = any(self.source.get(int(i)) == self.same[group.root] for i in operator.inputs)
        return reads_root or self.graph.kind(operator) not in INTEGER_FORMS.get(group.op, ())

    def _inputs(
        self, operator: Any, names: list[str], reads: list[int], dtype: str, alone: bool
    ) -> dict[int, Grid] | None:
        """The planned grid of each input in this type, by slot; None if one of them is not planned."""
        found: dict[int, Grid] = {}
        for slot in reads:
            value = self.source[int(operator.inputs[slot])]
            fits = [n for n in names if self.same[n] == value] or (names if len(names) == 1 else [])
            grid = self.again.get((fits[0], dtype)) or self.grids.get(fits[0]) if fits else None
            if grid is None and alone:
                grid = self._available(int(operator.inputs[slot]))
            if grid is None:
                return None
            found[slot] = grid
        return found

    def _integer_constant(self, index: int, dtype: str) -> int:
        """A constant operand as an integer tensor; a single number is one step of its own size, and exact."""
        values = self.graph.constant(index)
        if values is None or values.dtype != np.float32:
            return index
        largest = float(np.abs(values).max(initial=0.0)) or 1.0
        scale = np.float32(largest / (1 if values.size == 1 else np.iinfo(dtype).max))
        integers = np.round(values / scale).astype(dtype)
        new = self.graph.tensor(self._free(f"{self.graph.name(index)}/{dtype}"), dtype, values.shape, integers)
        self.graph.quantize(new, dtype, np.array([scale], np.float32), np.array([0], np.int64))
        return new

    def _constant_on(self, index: int, grid: Grid) -> int:
        """A constant that is put beside other values, on their grid."""
        values = self.graph.constant(index)
        if values is None or values.dtype != np.float32:
            return index
        steps = _steps(values, grid).astype(grid.dtype)
        new = self.graph.tensor(self._free(f"{self.graph.name(index)}/{grid.dtype}"), grid.dtype, values.shape, steps)
        self._set_grid(new, grid)
        return new

    def _integer_padding(self, operator: Any, grid: Grid) -> None:
        """The value to pad with, on the grid; minus infinity in front of a maximum becomes the lowest integer."""
        value = self.graph.constant(int(operator.inputs[2]))
        assert value is not None
        steps = _steps(value, grid)
        if int(steps) == grid.zero_point:
            # Plain padding, for which more runtimes have a fast kernel.
            plain = self.graph.operator("PAD", operator.inputs[:2], operator.outputs, schema.PadOptionsT())
            vars(operator).update(vars(plain))
            return
        index = self.graph.tensor("padding", grid.dtype, value.shape, steps.astype(grid.dtype))
        self._set_grid(index, grid)
        operator.inputs[2] = index

    def _settle(self, indices: list[int], grid: Grid | None) -> None:
        """Fixes the native form of computed tensors."""
        for index in indices:
            self.native[index] = grid
            self.forms[index] = {grid: index}
            if grid is not None:
                self._set_grid(index, grid)

    def _form(self, index: int, grid: Grid | None) -> int:
        """A tensor in the form asked for, converted if it is not at hand."""
        forms = self.forms[index]
        if grid not in forms:
            name = self._free(f"{self.labels[index]}/{grid.dtype if grid else 'float32'}")
            new = self.graph.tensor(name, "float32", self.graph.shape(index))
            if grid is not None:
                self._set_grid(new, grid)
            kind = "DEQUANTIZE" if grid is None else "QUANTIZE"
            options = schema.DequantizeOptionsT() if grid is None else schema.QuantizeOptionsT()
            self.operators.append(self.graph.operator(kind, [index], [new], options))
            forms[grid] = new
        return forms[grid]

    def _set_grid(self, index: int, grid: Grid) -> None:
        self.graph.quantize(
            index, grid.dtype, np.array([grid.scale], np.float32), np.array([grid.zero_point], np.int64)
        )

    def _label(self, operator: Any, group: Group | None) -> None:
        """Names tensors after the group that computes them: runtimes report operators by these names."""
        kind = self.graph.kind(operator).lower()
        for index in (int(i) for i in operator.outputs):
            if group is None:
                first = next((int(i) for i in operator.inputs if int(i) in self.labels), -1)
                node = self.nodes.get(index)
                own = self.owner.get(node) if node is not None and node != self.source.get(first) else None
                # of a part the kind alone: what a recurrent layer unrolls to would carry the names of all its steps
                name = own.name if own else f"{self.labels[first].split('/')[0]}/{kind}" if first >= 0 else kind
            elif self._alone(operator, group, index):
                name = f"{group.name}/{group.activation_op}"
            else:
                name = group.name
            if name in self.ends:
                name = f"{name}/inner"
            self.labels[index] = name = self._free(name)
            self.graph.tensors[index].name = name.encode()

    def _free(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self.taken or (count > 1 and candidate in self.layers):
            count += 1
            candidate = f"{name}#{count}"
        self.taken.add(candidate)
        return candidate


def _grid(q: QParams) -> Grid:
    return Grid(q.scheme.dtype, float(q.scale), int(q.zero_point))


def _steps(values: np.ndarray, grid: Grid) -> np.ndarray:
    """Values as whole steps of a grid, the nearest that it has."""
    limits = np.iinfo(grid.dtype)
    with np.errstate(over="ignore"):
        return np.asarray(np.clip(np.round(values / grid.scale) + grid.zero_point, limits.min, limits.max))
