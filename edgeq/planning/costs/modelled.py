"""What each choice would take and cost on a device that cannot be timed here, by the figures of its profile. Nothing of
it is measured, and whatever shows a number of it says so.

Bytes are those of the weights as they are stored, of what the layer reads and of what it writes; a conversion between
float and integers reads one form and writes the other.
"""

from __future__ import annotations

from edgeq.lowering.assign import writes_integers
from edgeq.lowering.boundaries import Edge, Kind, elements
from edgeq.lowering.form import on_integers
from edgeq.lowering.space import Space
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.planning.costs.size import stored_bytes
from edgeq.planning.costs.timing import Timing
from edgeq.plans.plan import FloatPrecision
from edgeq.registry.roofline import WIDTHS, Energies, Roofline, Work
from edgeq.registry.schema import Runtime


def work_of(model: Model, runtime: Runtime, group: Group, choice: str, precision: FloatPrecision) -> Work:
    """What a layer has to do with a choice.

    Args:
        precision: what stays in float is computed and kept in this.
    """
    # weights alone are expanded when the file is loaded: what runs is a float layer
    kernel = runtime.kernel(group.op, choice) if on_integers(choice) else None
    dtype = precision if kernel is None else kernel.activations.removeprefix("u")
    read = WIDTHS[dtype]
    if kernel is not None and kernel.weights is not None and kernel.weights.removeprefix("u") != dtype:
        dtype = f"{dtype}_{kernel.weights.removeprefix('u')}"
    written = read if kernel is None or writes_integers(model, runtime, group) else WIDTHS[precision]
    weights = WIDTHS[precision] * group.parameters if kernel is None else stored_bytes(model, group, kernel)
    values = read * sum(elements(model, name) for name in group.inputs) + written * elements(model, group.output)
    if group.op == "reshape" or model.nodes[group.root].target == "operator.getitem":
        values = 0.0  # another view of the same numbers
    return Work(group.macs, dtype, weights, values)


def conversions(
    space: Space, by: Roofline | Energies | None, precision: FloatPrecision
) -> dict[str, dict[Kind, float]]:
    """By tensor and kind, seconds or joules of reading one form and writing the other; 0 where nothing is known."""
    price, runtime = 0.0 if by is None else by.of_byte, space.runtime
    widths = [WIDTHS[k.activations.removeprefix("u")] for k in runtime.kernels if not k.weight_only] or [0.0]
    both = WIDTHS[precision] + widths[0]
    bytes_of: dict[Kind, float] = {"quantize": both, "dequantize": both, "requantize": min(widths) + max(widths)}

    def priced(edge: Edge) -> dict[Kind, float]:
        given = edge.producer is None and runtime.io == "integer"  # a model whose ends are integers is given them
        return {kind: 0.0 if given else edge.elements * moved * price for kind, moved in bytes_of.items()}

    return {edge.tensor: priced(edge) for edge in space.edges}


def table(space: Space, by: Roofline | Energies, precision: FloatPrecision) -> Timing:
    """Everything that a plan can consist of, in seconds or joules; choices that the profile has no figure for are
    absent."""
    model, layers = space.model, dict[str, dict[str, float]]()
    for group in model.groups:
        offered = space.options[group.name]
        priced = {c: by.price(work_of(model, space.runtime, group, c, precision)) for c in offered}
        layers[group.name] = {choice: value for choice, value in priced.items() if value is not None}
    return Timing(layers, conversions(space, by, precision))
