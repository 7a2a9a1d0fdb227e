"""Where a quantized model loses accuracy, and by what: each cause as the change that takes it away, and nothing else.

The parts do not overlap:

- clipping: values beyond the ends of the range. Without it, the same steps go on for ever.
- activations: rounding between the ends. Without it, values are only cut.
- weights: rounded weights, but for the shift of the layer's mean output that they cause.
- bias: that shift, on the inputs that the layer really gets, after the correction that calibration gave it.

Without all four, the layer computes in float on what its neighbours hand it, and leaves float behind.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edgeq.calibration.calibration import Calibration
from edgeq.calibration.patches import mean_patch
from edgeq.methods.bias_correction import bias_shift
from edgeq.model.batches import batches, side_by_side
from edgeq.model.graph import Node
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.numerics import QParams, same_steps
from edgeq.planning.explain.counterfactual import clipped, copies, exact, unclipped
from edgeq.planning.sensitivity.edits import Edit, rounded, weight_and_bias
from edgeq.quantization.activations import QuantizedTensor
from edgeq.quantization.dynamic import Rounding
from edgeq.quantization.quantized import Quantized
from edgeq.quantization.simulate import simulate


class Place(NamedTuple):
    """Where loss arises: a layer, or an input of the model.

    Attributes:
        name: the layer's; for an input of the model, `input` and its name.
        group: None for an input.
        tensors: graph nodes that are rounded here, also anew for readers that want another type.
    """

    name: str
    group: Group | None
    tensors: tuple[str, ...]


class Seen(NamedTuple):
    """What the quantized model's values look like.

    Attributes:
        mean_patches: by graph node of a layer's root, as in `Calibration`.
        at_ends: by graph node, the shares of its values at the lowest and the highest integer, where the float model's
            values go on beyond it: behind a ReLU, zero is an answer.
    """

    mean_patches: dict[str, NDArray[np.float32]]
    at_ends: dict[str, tuple[float, float]]


def places(model: Model, quantized: Quantized) -> list[Place]:
    """Every place at which something is rounded, inputs first, then layers in the model's order. What only passes on
    values that were rounded to the same steps before is none (see `copies`)."""
    copied = copies(model, quantized)
    found = [
        Place(f"input {spec.name}", None, (node,))
        for spec, node in zip(model.inputs, model.input_nodes, strict=True)
        if node in quantized.activations
    ]
    for group in model.groups:
        tensors = tuple(node for node in group.members if node in quantized.activations and node not in copied)
        if tensors or group.name in quantized.weights:
            found.append(Place(group.name, group, tensors))
    return found


def observe(
    model: Model,
    quantized: Quantized,
    calibration: Calibration,
    inputs: Mapping[str, np.ndarray],
    wanted: Collection[Place],
) -> Seen:
    """Runs the quantized model, in simulation, and looks at these places.

    Args:
        inputs: by input name, [N, ...].
    """
    groups = [p.group for p in wanted if p.group is not None and p.group.name in quantized.weights]
    sources = {g.root: model.nodes[g.root].all_input_nodes[0].name for g in groups}
    read, looked_at = set(sources.values()), {node for place in wanted for node in place.tensors}

    def look(batch: list[torch.Tensor]) -> dict[tuple[str, str], np.ndarray]:
        found: dict[tuple[str, str], np.ndarray] = {}

        def see(node: Node, values: list[torch.Tensor]) -> list[torch.Tensor]:
            value = values[0]
            if node.name in read:
                found["sum", node.name] = value.double().sum(0, keepdim=True).numpy()
                found["rows", node.name] = np.array(len(value))
            if node.name in looked_at and node.name in calibration.histograms:
                q = quantized.activations[node.name].q
                half, float_values = float(q.scale) / 2, calibration.histograms[node.name]
                low = float((value < q.low + half).sum()) if float_values.low < q.low - half else 0.0
                high = float((value > q.high - half).sum()) if float_values.high > q.high + half else 0.0
                found["ends", node.name] = np.array([low, high, value.numel()])
            return values

        simulate(model, quantized, batch, see)
        return found

    totals: dict[tuple[str, str], np.ndarray] = {}
    for found in side_by_side(look, batches(model, inputs)):
        for key, counted in found.items():
            totals[key] = totals.get(key, 0) + counted
    means = {root: torch.from_numpy(totals["sum", node] / totals["rows", node]) for root, node in sources.items()}
    ends = {node: (float(n[0] / n[2]), float(n[1] / n[2])) for (what, node), n in totals.items() if what == "ends"}
    return Seen({root: mean_patch(model.nodes[root], mean.float()) for root, mean in means.items()}, ends)


def removals(model: Model, quantized: Quantized, place: Place, seen: Seen) -> dict[str, Edit]:
    """By cause, the change that takes it away at one place; `all` takes away all of them.

    `correction` is no cause: it takes away what the analytic bias correction did (see `bias_shift`).
    """
    scales = {node: quantized.activations[node].q for node in place.tensors}
    written = scales.keys() & quantized.rounded.keys()
    reads = {pair: t.q for pair, t in quantized.rounded_by_readers(model).items() if pair[1] in scales}

    def changed(how: Callable[[QParams], Rounding]) -> Edit:
        return Edit({node: how(scales[node]) for node in written}, {}, {pair: how(q) for pair, q in reads.items()})

    everything, group = changed(lambda _: exact), place.group
    found = {"clipping": changed(unclipped), "activations": changed(clipped)} if scales else {}
    if group is not None and group.name in quantized.weights:
        weight_node, bias_node = weight_and_bias(model, group)
        weight, bias = (model.state[name or ""] for name in (group.weight, group.bias))
        used = quantized.biases[group.name]
        error = quantized.weights[group.name].real - weight
        left = bias_shift(group.op, error, seen.mean_patches[group.root]) + (used - bias)
        constants = {
            "weights": {weight_node: weight, bias_node: bias + left},
            "bias": {bias_node: used - left},
            "all": {weight_node: weight, bias_node: bias},
        }
        if not np.array_equal(used, bias):
            constants["correction"] = {bias_node: bias}
        found |= {
            cause: Edit({}, {node: torch.from_numpy(value) for node, value in values.items()})
            for cause, values in constants.items()
        }
        if group.name in quantized.assignment.dynamic:
            found["activations"] = Edit({}, {}, {(group.root, node): exact for node in group.inputs})
            found["all"] = found["all"].and_also(found["activations"])
    return {**found, "all": everything.and_also(found.get("all", Edit()))}


def widening(model: Model, quantized: Quantized, widest: Mapping[str, QuantizedTensor], place: Place) -> Edit | None:
    """What a person can do about clipping: the range goes to the true extremes, in the same integer type; also of the
    tensors that share its scale. None where nothing would change.

    Args:
        widest: by graph node, the scale for the true extremes.
    """
    shares = {(own.share, own.q.scheme) for node in place.tensors for own in [quantized.activations[node]]}

    def wider(node: str, tensor: QuantizedTensor) -> bool:
        return (tensor.share, tensor.q.scheme) in shares and not same_steps(tensor.q, widest[node].q)

    tensors = {node: rounded(widest[node].q) for node, t in quantized.rounded.items() if wider(node, t)}
    also_float = quantized.assignment.also_float
    read = {pair: t for pair, t in quantized.rounded_by_readers(model).items() if pair[1] in also_float}
    reads = {pair: rounded(widest[pair[1]].q) for pair, t in read.items() if wider(pair[1], t)}
    return Edit(tensors, {}, reads) if tensors or reads else None


def spread(inputs: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Samples evenly spread over all of them: data often comes class by class."""
    available = len(next(iter(inputs.values())))
    kept: Sequence[int] = np.linspace(0, available - 1, min(count, available)).round().astype(int).tolist()
    return {name: array[kept] for name, array in inputs.items()}
