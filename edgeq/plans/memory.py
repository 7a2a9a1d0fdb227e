"""How many bytes of activations are alive at once while a plan runs: from the order in which the layers run and the
type that each value has then. Exact arithmetic on a schedule, no measurement: a runtime that keeps values longer,
aligns them, or gives its kernels room to work takes more, and one that computes in place takes less."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgeq.lowering.assign import writes_integers
from edgeq.lowering.boundaries import elements
from edgeq.model.graph import Node, itemsize
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.model.values import tensor_of
from edgeq.plans.plan import FloatPrecision
from edgeq.quantization.quantized import Quantized
from edgeq.registry.roofline import WIDTHS


@dataclass(frozen=True)
class Step:
    """One operator: what it reads has to be there until it is done, what it writes from when it begins."""

    reads: frozenset[str]
    writes: frozenset[str]


def peak(
    steps: Sequence[Step], sizes: Mapping[str, int], inputs: Iterable[str] = (), outputs: Iterable[str] = ()
) -> int:
    """The most bytes that are alive at any step.

    Args:
        steps: in the order in which they run.
        sizes: bytes by value.
        inputs: values that are there from the beginning, until the last step that reads them.
        outputs: values that are there until the end.
    """
    last = dict.fromkeys(inputs, 0)
    last |= {name: number for number, step in enumerate(steps) for name in (*step.writes, *step.reads)}
    last |= dict.fromkeys(outputs, len(steps))
    alive = set(inputs)
    most = sum(sizes[name] for name in alive)
    for number, step in enumerate(steps):
        alive |= step.writes
        most = max(most, sum(sizes[name] for name in alive))
        alive = {name for name in alive if last[name] > number}
    return most


def peak_memory(model: Model, quantized: Quantized, precision: FloatPrecision = "float32") -> int:
    """Bytes of activations that a plan needs at once, for one sample.

    Args:
        quantized: the model with the plan's types.
        precision: what stays in float is kept in this.
    """
    schedule = _Schedule(model, quantized, precision)
    for group in model.groups:
        schedule.run(group)
    made = [name for name in model.output_nodes if name in schedule.made]
    outputs = [schedule.as_wanted(name, schedule.end_form(name)) for name in made]
    return peak(schedule.steps, schedule.sizes, schedule.inputs, outputs)


class _Schedule:
    """Steps in the making, with conversions between types as steps of their own right before their first reader.

    Attributes:
        made: by graph node, the type in which it is computed.
        places: by graph node and type, the name of the bytes that hold it: a view has those of what it is a view of.
    """

    def __init__(self, model: Model, quantized: Quantized, precision: FloatPrecision) -> None:
        self.model, self.quantized, self.precision = model, quantized, precision
        self.steps: list[Step] = []
        self.sizes: dict[str, int] = {}
        self.made: dict[str, str] = {}
        self.places: dict[tuple[str, str], str] = {}
        for name in model.input_nodes:
            self.made[name] = self.end_form(name)
            self._place(name, self.made[name])
        self.inputs = list(self.sizes)

    def run(self, group: Group) -> None:
        nodes = [self.model.nodes[member] for member in group.members]
        read = [n.name for node in nodes for n in node.all_input_nodes if n.name in self.made and n not in nodes]
        if not read or group.output in self.made:
            return  # of constants alone, which are computed once, or a part of what was computed before
        kernel = self.quantized.assignment.kernels.get(group.name)
        integer = kernel is not None and not kernel.activations.startswith(("float", "bfloat"))
        wanted = {n: self._integer(n, group) if integer else self._float(n) for n in read}
        reads = frozenset(self.as_wanted(name, form) for name, form in wanted.items())
        leaves = integer and writes_integers(self.model, self.quantized.runtime, group)
        written = []
        for node in _parts(self.model.nodes[group.output]):
            form = self._float(node.name)
            if leaves and form in WIDTHS:
                form = self._integer(node.name) if node.name in self.quantized.activations else wanted[read[0]]
            self.made[node.name] = form
            if group.op == "reshape" and form == wanted[read[0]]:
                self.places[node.name, form] = self.places[read[0], form]
            else:
                written.append(self._place(node.name, form))
        if written:
            self.steps.append(Step(reads, frozenset(written)))

    def as_wanted(self, name: str, form: str) -> str:
        """Where a value lies in the type that a reader needs, which it is converted to if it does not yet."""
        if (name, form) not in self.places:
            source = self.places[name, self.made[name]]
            self.steps.append(Step(frozenset({source}), frozenset({self._place(name, form)})))
        return self.places[name, form]

    def end_form(self, name: str) -> str:
        """The type of an input or output of the model."""
        integer = self.quantized.runtime.io == "integer"
        return self._integer(name) if integer else self._value_type(name)

    def _integer(self, name: str, reader: Group | None = None) -> str:
        quantized = self.quantized
        tensor = quantized.activations.get(name) if reader is None else quantized.read(reader, name)
        return self.made.get(name, self._value_type(name)) if tensor is None else tensor.q.scheme.dtype

    def _float(self, name: str) -> str:
        form = self._value_type(name)
        return self.precision if form == "float32" else form

    def _value_type(self, name: str) -> str:
        value = tensor_of(self.model.nodes[name])
        return "float32" if value is None else value.dtype

    def _place(self, name: str, form: str) -> str:
        place = f"{name} as {form}"
        width = WIDTHS.get(form.removeprefix("u")) or float(itemsize(form))
        self.sizes[place] = int(-(-elements(self.model, name) * width // 1))
        self.places[name, form] = place
        return place


def _parts(node: Node) -> list[Node]:
    """The values of an operator: its own, or each of those that it gives several of."""
    if tensor_of(node) is not None:
        return [node]
    return [user for user in node.users if user.target == "operator.getitem"]
