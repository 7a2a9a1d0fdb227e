"""How long each layer takes with each choice, and each conversion between forms: fitted to what a runtime says of a few
builds of the whole model.

A layer's time depends on its neighbours: every build gives one equation for each layer,

    seconds(layer, build) = seconds(layer, choice) + sum of conversions of what it reads + of what it writes,

and the non-negative least-squares solution of all of them is the table. Errors count in units of their build's time: a
hundredth of a build with kernels of 16 bits may be the whole time of one with 8.

Two choices may run in one kernel, such as weights of 4 bits that are widened when a file is loaded. Were they told
apart by noise, a plan would pay with accuracy for the luckier of two equal numbers. So they are one unknown where the
runtime's own account of the layer is the same and the times are alike.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from edgeq.export.onnx_names import layer_of
from edgeq.lowering.boundaries import Edge, Kind, crossings, elements
from edgeq.lowering.form import dynamic, form
from edgeq.model.model import Model
from edgeq.records.schema import Placement


@dataclass(frozen=True)
class Observed:
    """One build, as its runtime profiled it.

    Attributes:
        choices: by group name.
        seconds: by group name, of its own operators and of those that prepare its inputs.
        total: median seconds of a whole run without the profiler.
        ran_as: by group name, its operators and where they ran, in the runtime's words; absent where it gave none.
    """

    choices: Mapping[str, str]
    seconds: Mapping[str, float]
    total: float
    ran_as: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """Seconds on one device in one runtime.

    Attributes:
        layers: by group name and choice, where all neighbours are of one kind.
        conversions: by tensor (graph node) and kind; those from integers to integers where builds had several types.
    """

    layers: dict[str, dict[str, float]]
    conversions: dict[str, dict[Kind, float]]

    def of(self, edges: Sequence[Edge], choices: Mapping[str, str]) -> float:
        """Seconds that a plan is expected to take."""
        own = sum(self.layers[name][choice] for name, choice in choices.items() if name in self.layers)
        return own + sum(self.conversions[edge.tensor][kind] for edge, kind, _ in crossings(edges, choices))


def attribute(
    model: Model, rows: Sequence[Placement], labels: Mapping[str, str], choices: Mapping[str, str], total: float
) -> Observed:
    """Sums a profile by layer. An operator without a layer's name counts for the next layer that runs, which it
    prepares the input of; the last ones count for the last layer. Where a profile has no times, a run is shared out by
    what layers compute and write.

    Args:
        rows: in the order in which they ran.
        labels: by a name that an operator or its output may carry, the layer (see `Exporter.labels`).
        total: seconds of a run, to which the rows are scaled: profiling slows them down.
    """
    seconds = dict.fromkeys((g.name for g in model.groups), 0.0)
    ran_as: dict[str, tuple[str, ...]] = {}
    waiting, last = 0.0, None
    for row in rows:
        waiting += row.microseconds or 0.0
        layer = layer_of(row.name, labels)
        if layer is not None:
            seconds[layer] += waiting
            waiting, last = 0.0, layer
            if row.op:
                ran_as[layer] = (*ran_as.get(layer, ()), f"{row.op}, {row.where}")
    if last is not None:
        seconds[last] += waiting
    if not any(seconds.values()):
        seconds = {g.name: float(g.macs + elements(model, g.output)) for g in model.groups}
    scale = total / sum(seconds.values())
    return Observed(choices, {name: value * scale for name, value in seconds.items()}, total, ran_as)


def fit(model: Model, edges: Sequence[Edge], observed: Sequence[Observed]) -> Timing:
    """The table that explains the builds best.

    Conversions that no build had, or that the equations cannot tell apart, are drawn to a common cost per element.
    """
    one_kernel = _one_kernel(observed)
    types = {form(choice) for build in observed for choice in build.choices.values()} - {None}
    kinds: list[Kind] = [kind for kind in get_args(Kind) if kind != "requantize" or len(types) > 1]
    # whose time a conversion may show up in: no layer writes an input of the model
    sides = {edge.tensor: ("read", "write") if edge.producer is not None else ("read",) for edge in edges}
    mean = float(np.mean([build.total for build in observed]))
    unit = mean / max(1, len(model.groups))
    rows: list[dict[Hashable, float]] = []
    values: list[float] = []
    for build in observed:
        own = {name: [("layer", name, one_kernel[name, build.choices[name]])] for name in build.seconds}
        for edge, kind, wanted in crossings(edges, build.choices):
            # the first reader meets the conversion; the others find its result
            first = next(reader for reader in edge.readers if form(build.choices[reader]) == wanted)
            for side in sides[edge.tensor]:
                own[first if side == "read" else edge.producer or ""].append((side, edge.tensor, kind))
        weight = mean / build.total
        rows += [dict.fromkeys(terms, weight) for terms in own.values()]
        values += [build.seconds[name] / unit * weight for name in own]
    for edge, kind in product(edges, kinds):
        for side in sides[edge.tensor]:
            rows.append({(side, edge.tensor, kind): PULL, (side, kind): -PULL * edge.elements / 1e5})
            values.append(0.0)
    found = _non_negative(rows, values)
    layers: dict[str, dict[str, float]] = {}
    for (name, choice), standing in one_kernel.items():
        layers.setdefault(name, {})[choice] = unit * found["layer", name, standing]
    between = {
        tensor: {kind: unit * sum(found[side, tensor, kind] for side in of) for kind in kinds}
        for tensor, of in sides.items()
    }
    return Timing(layers, between)


ALIKE = 1.25
"""Times of one operator in one kernel differ by less than this from build to build. More is a kernel of another speed
behind the same words."""


def _one_kernel(observed: Sequence[Observed]) -> dict[tuple[str, str], str]:
    """For every layer and choice the one that stands for it: the first that ran in the same kernel, most often itself.

    Choices are compared in the first builds that have them, in which neighbours are alike.
    """
    first: dict[tuple[str, str], Observed] = {}
    for build in observed:
        for name in build.seconds:
            first.setdefault((name, build.choices[name]), build)

    def same(name: str, one: str, other: str) -> bool:
        a, b = first[name, one], first[name, other]
        low, high = sorted((a.seconds[name], b.seconds[name]))
        told = name in a.ran_as and a.ran_as[name] == b.ran_as.get(name)
        alike = form(one) == form(other) and dynamic(one) == dynamic(other)
        return told and alike and high <= ALIKE * low

    found: dict[tuple[str, str], str] = {}
    standing: dict[str, list[str]] = {}
    for name, choice in first:
        others = standing.setdefault(name, [])
        found[name, choice] = next((other for other in others if same(name, choice, other)), choice)
        if found[name, choice] == choice:
            others.append(choice)
    return found


PULL = 0.1
"""Weight of the common cost per element beside what was observed."""


def _non_negative(rows: Sequence[Mapping[Hashable, float]], values: Sequence[float]) -> dict[Hashable, float]:
    """The non-negative least-squares solution of a sparse system, by unknown.

    By L-BFGS-B, whose time grows with the number of entries: an active-set method takes minutes for 200 layers.

    Args:
        rows: by unknown, the coefficients of each equation.
    """
    from scipy.optimize import minimize
    from scipy.sparse import csr_array

    column = {name: at for at, name in enumerate(dict.fromkeys(name for row in rows for name in row))}
    entries = [(at, column[name], value) for at, row in enumerate(rows) for name, value in row.items()]
    at, to, coefficients = (np.array(part) for part in zip(*entries, strict=True))
    norms = np.sqrt(np.bincount(to, coefficients**2))
    norms[norms == 0.0] = 1.0  # of tensors without elements
    matrix = csr_array((coefficients / norms[to], (at, to)), shape=(len(rows), len(column)))
    transposed, wanted = matrix.T.tocsr(), np.asarray(values)

    def error(found: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        left = matrix @ found - wanted
        return float(left @ left) / 2, np.asarray(transposed @ left)

    options = {"maxiter": 20000, "maxfun": 40000, "ftol": 0.0, "gtol": 1e-9, "maxcor": 30}
    bounds, found = [(0.0, None)] * len(column), np.zeros(len(column))
    for _ in range(STARTS):
        answer = minimize(error, found, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        found = np.asarray(answer.x)
        downhill = np.where((found > 0.0) | (answer.jac < 0.0), np.abs(answer.jac), 0.0)
        if downhill.max(initial=0.0) <= STEEP:
            break
    return dict(zip(column, (found / norms).tolist(), strict=True))


STARTS = 10
"""Runs of L-BFGS-B, each from where the last one stopped: on some CPUs that is far from the solution."""

STEEP = 1e-7
"""The largest slope of the error at a solution, in units of a layer's mean time."""
