"""Where a plan loses fusion: conversions beside layers that its choices left in float, activations outside kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeq.lowering.assign import writes_integers
from edgeq.lowering.boundaries import Crossing, crossings, edges
from edgeq.lowering.form import form, on_integers
from edgeq.model.model import Model
from edgeq.planning.solver.solve import Boundary, Problem
from edgeq.plans.explained import Explanation, LostFusion, What
from edgeq.quantization.quantized import Quantized

Charged = list[tuple[Crossing, Boundary | None]]
"""Conversions that a plan needs, each with its entry in the plan's costs."""


def charged(model: Model, quantized: Quantized, choices: Mapping[str, str], problem: Problem | None) -> Charged:
    """The conversions that these choices need, and what the plan says of their costs."""
    known: dict[tuple[Any, ...], list[Boundary]] = {}
    for one in problem.boundaries if problem else ():
        before = next(map(form, one.leaves), None)
        after = next((form(c) for entering in one.readers.values() for c in entering), None)
        known.setdefault((one.producer, frozenset(one.readers), before, after), []).append(one)
    found: Charged = []
    for crossing in crossings(edges(model, quantized.runtime), choices):
        edge = crossing.edge
        producer = None if edge.float_anyway else edge.producer
        before = None if producer is None else form(choices[producer])
        alike = known.get((producer, frozenset(edge.readers), before, crossing.form))
        # tensors on the same way cross together: their entries stand in the order of the edges
        found.append((crossing, alike.pop(0) if alike else None))
    return found


def lost_fusion(
    model: Model,
    quantized: Quantized,
    choices: Mapping[str, str],
    conversions: Charged,
    explained: Explanation | None = None,
) -> list[LostFusion]:
    """What each layer's choice costs in conversions and unfused activations, the longest first.

    A conversion is laid to the float layer beside it, whose choice differs from its neighbours'. What converts an input
    of the model is nobody's choice, and left out.

    Args:
        explained: what other choices would change, by the plan's own costs.
    """
    changes = {layer.name: layer.alternatives for layer in explained.layers} if explained is not None else {}
    groups = {group.name: group for group in model.groups}
    found: list[LostFusion] = []

    def lost(layer: str, what: What, neighbours: list[str], seconds: float | None, text: str) -> None:
        integers = [change for change in changes.get(layer, []) if on_integers(change.choice)]
        fastest = min(integers, key=lambda change: change.latency or 0.0, default=None)
        found.append(
            LostFusion(layer=layer, what=what, neighbours=neighbours, latency=seconds, text=text, instead=fastest)
        )

    for (edge, kind, wanted), entry in conversions:
        seconds = None if entry is None else entry.costs.get("latency")
        readers = [r for r in edge.readers if form(choices[r]) == wanted]
        if kind == "quantize" and edge.producer is not None:
            group = groups[edge.producer]
            own = f"its {group.activation_op}" if on_integers(choices[group.name]) and group.activation else "it"
            text = f"{own} writes float, which is made integers for {_names(readers)}"
            lost(group.name, kind, readers, seconds, text)
        if kind != "quantize":
            reads = "float, which is" if wanted is None else f"{wanted.removeprefix('a')}-bit integers, which are"
            for reader in readers:
                text = f"it reads {reads} made from the integers of {edge.producer}"
                lost(reader, kind, [edge.producer or ""], seconds, text)
    for group in model.groups:
        if on_integers(choices[group.name]) and group.activation and group.root in quantized.activations:
            how = "a kernel of its own" if writes_integers(model, quantized.runtime, group) else "float"
            text = f"its {group.activation_op} runs in {how}: {quantized.runtime.name} does not fuse it"
            lost(group.name, "activation", [], None, text)
    return sorted(found, key=lambda one: -(one.latency or 0.0))


def _names(layers: list[str]) -> str:
    return layers[0] if len(layers) == 1 else f"{layers[0]} and {len(layers) - 1} more"
