"""Measures the damage that each choice does (see `edgeq.planning.sensitivity.value`).

To first order an error e in a layer's weights moves the outputs z by J e. With random signs v, E_v[(v^T J e)^2] =
|J e|^2, and v^T J e is the inner product of e with the gradient of v^T z: one backward pass a sample prices every
choice of every layer at once. No labels are needed.

Source: the Gauss-Newton form of the second-order damage in Nagel et al. 2020, "Up or Down? Adaptive Rounding for
Post-Training Quantization", section 3, and of HAWQ-V2 (Dong et al. 2020, equation 3), on the model's own outputs, with
Hutchinson's probes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain

import numpy as np
import torch

from edgeq.calibration.gradients import random_gradients
from edgeq.engine import LOCAL, Engine
from edgeq.lowering.assign import writes_integers
from edgeq.lowering.form import form_of, on_integers
from edgeq.model.batches import batches
from edgeq.model.execute import constants
from edgeq.model.graph import Node
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.model.ops import is_float
from edgeq.numerics import QParams
from edgeq.numerics.fake import fake_quantize
from edgeq.planning.sensitivity.edits import Edit, losses, rounded, weight_and_bias
from edgeq.planning.sensitivity.value import Choice, Rounded, Sensitivity
from edgeq.progress import Progress
from edgeq.quantization.dynamic import Rounding, dynamic_reads
from edgeq.quantization.quantized import Quantized
from edgeq.quantization.simulate import movement

Moves = list[tuple[tuple[str, str], float]]

Keyed = list[tuple[tuple[str, str], torch.Tensor]]
"""Errors, each with what it is of: a choice of a group, or a node and a form."""

Errors = dict[str, Keyed]
"""By constant (placeholder of a weight or bias), what each choice of a group changes it by."""

Dynamic = dict[tuple[str, str], list[tuple[Choice, Rounding]]]
"""By graph nodes of a reader and of what it reads, what each choice of a group rounds there in every call."""

SAMPLES = 32
PROBES = 2
ALONE_SAMPLES = 16
ALONE_BATCH = 4


def measure_sensitivity(
    model: Model,
    inputs: Mapping[str, np.ndarray],
    alternatives: Mapping[str, Quantized],
    progress: Progress | None = None,
    engine: Engine = LOCAL,
) -> Sensitivity:
    """Prices the layers of several quantized models in one pass over a few samples.

    Args:
        inputs: by input name, [N, ...].
        alternatives: by the name of a choice, the model with every layer that can have it quantized so. All of them
            round the same tensors to the same type alike.
        engine: where the samples are spread over; their order decides the sums.
    """
    errors = _weight_errors(model, alternatives)
    tensors = {
        (name, form_of(tensor.q.scheme)): tensor.q
        for found in alternatives.values()
        for name, tensor in (*found.activations.items(), *((node, t) for (node, _), t in found.again.items()))
    }
    readers, dynamic = _integer_readers(model, alternatives), _dynamic(model, alternatives)
    few = {name: array[:SAMPLES] for name, array in inputs.items()}
    # one sample at a time: the gradient of a weight sums over the batch, and its square must not
    given = enumerate(_own(batch) for batch in batches(model, few, 1))
    found = engine.map(_one_sample, given, model, errors, tensors, readers, dynamic, progress=progress)
    by_weight, by_tensor = (_mean_squares(moves) for moves in zip(*found, strict=True))
    weights: dict[str, dict[str, float]] = {}
    for (group, choice), value in by_weight.items():
        weights.setdefault(group, {})[choice] = value
    return Sensitivity(weights, by_tensor)


def _mean_squares(moves: Iterable[Moves]) -> dict[tuple[str, str], float]:
    squares: dict[tuple[str, str], list[float]] = defaultdict(list)
    for key, value in chain.from_iterable(moves):
        squares[key].append(value**2)
    return {key: float(np.mean(values)) for key, values in squares.items()}


def measure_alone(
    model: Model,
    inputs: Mapping[str, np.ndarray],
    alternatives: Mapping[str, Quantized],
    wanted: Sequence[Choice],
    engine: Engine = LOCAL,
) -> dict[Choice, float]:
    """What choices really do: each layer is quantized alone, in simulation.

    Args:
        alternatives: as for `measure_sensitivity`.
        wanted: pairs of a group's name and a choice.
        engine: where the batches are spread over.

    Returns:
        Damages, in the unit of `Sensitivity`.
    """
    few = {name: array[:ALONE_SAMPLES] for name, array in inputs.items()}
    groups = {group.name: group for group in model.groups}
    edits = [_alone(model, groups[name], choice, alternatives[choice]) for name, choice in wanted]
    found = engine.map(losses, [_own(batch) for batch in batches(model, few, ALONE_BATCH)], model, edits)
    return {key: float(np.concatenate(own).mean()) for key, own in zip(wanted, zip(*found, strict=True), strict=True)}


def damage(outputs: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> float:
    """The measured counterpart, in the same unit (see `movement`)."""
    return float(movement(outputs, reference, 1)[0])


def _alone(model: Model, group: Group, choice: str, quantized: Quantized) -> Edit:
    """What a choice of one layer rounds. What it does not leave behind as integers is rounded where it is converted,
    and paid for there."""
    members = set(group.members) if on_integers(choice) else set()
    if not writes_integers(model, quantized.runtime, group):
        members.discard(group.output)
    tensors = {node: rounded(quantized.activations[node].q) for node in members & quantized.activations.keys()}
    if group.name not in quantized.weights:
        return Edit(tensors)
    values = (quantized.weights[group.name].real, quantized.biases[group.name])
    held = dict(zip(weight_and_bias(model, group), map(torch.from_numpy, values), strict=True))
    reads = {pair: way for pair, way in dynamic_reads(model, quantized).items() if pair[0] == group.root}
    return Edit(tensors, held, reads)


def _weight_errors(model: Model, alternatives: Mapping[str, Quantized]) -> Errors:
    state = model.state
    found: Errors = {}
    for choice, quantized in alternatives.items():
        for group in model.groups:
            weight = quantized.weights.get(group.name)
            if weight is None or quantized.assignment.choice(group.name) != choice:
                continue
            values = (weight.real - state[group.weight or ""], quantized.biases[group.name] - state[group.bias or ""])
            for node, error in zip(weight_and_bias(model, group), values, strict=True):
                found.setdefault(node, []).append(((group.name, choice), torch.from_numpy(error)))
    return found


def _dynamic(model: Model, alternatives: Mapping[str, Quantized]) -> Dynamic:
    names, found = {group.root: group.name for group in model.groups}, Dynamic()
    for choice, quantized in alternatives.items():
        for pair, way in dynamic_reads(model, quantized).items():
            if quantized.assignment.choice(names[pair[0]]) == choice:
                found.setdefault(pair, []).append(((names[pair[0]], choice), way))
    return found


def _integer_readers(model: Model, alternatives: Mapping[str, Quantized]) -> dict[str, list[str]]:
    """By graph node, the readers that round it, where no choice rounds it for the others."""
    pairs = {pair: None for found in alternatives.values() for pair in found.rounded_by_readers(model)}
    for_all = {name for found in alternatives.values() for name in found.rounded}
    result: dict[str, list[str]] = {}
    for reader, name in pairs:
        if name not in for_all:
            result.setdefault(name, []).append(reader)
    return result


def _own(batch: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Samples with memory of their own: sent, a part of a tensor would take the whole of it along."""
    return [tensor.clone() for tensor in batch]


def _errors(value: torch.Tensor, ways: Sequence[tuple[Choice, Rounding]]) -> Keyed:
    return [(key, way(value) - value) for key, way in ways]


def _inner(gradients: Sequence[torch.Tensor | None], errors: Sequence[Keyed]) -> Moves:
    """By what the errors are of, their inner products with the gradients, added up."""
    found: dict[tuple[str, str], float] = defaultdict(float)
    for gradient, some in zip(gradients, errors, strict=True):
        if gradient is not None:
            for key, error in some:
                found[key] += float(torch.sum(gradient * error))
    return [*found.items()]


def _one_sample(
    model: Model,
    errors: Errors,
    tensors: Mapping[Rounded, QParams],
    readers: Mapping[str, Sequence[str]],
    dynamic: Dynamic,
    given: tuple[int, list[torch.Tensor]],
) -> tuple[Moves, Moves]:
    """v^T J e of one sample and each probe, of weights with what is rounded beside them, and of tensors."""
    number, batch = given
    generator = torch.Generator().manual_seed(number)
    values: dict[str, torch.Tensor] = {}
    held = constants(model.program)
    leaves = {name: held[name].clone().requires_grad_() for name in errors}
    forms: dict[str, list[str]] = {name: [] for _, name in dynamic}
    for name, one in tensors:
        forms.setdefault(name, []).append(one)

    def keep(node: Node, found: list[torch.Tensor]) -> list[torch.Tensor]:
        if node.name not in forms or not is_float(node):
            return found
        found = [v if v.requires_grad else v.clone().requires_grad_() for v in found]
        values[node.name] = found[0]
        return found

    on_the_way: dict[tuple[str, str], torch.Tensor] = {}

    def apart(pair: tuple[str, str], value: torch.Tensor) -> torch.Tensor:
        on_the_way[pair] = value.view_as(value)
        return on_the_way[pair]

    by_integers = [(reader, name) for name, found in readers.items() for reader in found]
    reads = {pair: [partial(apart, pair)] for pair in (*by_integers, *dynamic)}
    outputs = [o for o in model.run([batch], keep, leaves, reads, differentiable=True)[0] if o.requires_grad]
    of_weights, of_tensors = Moves(), Moves()
    rounding = {
        name: [((name, one), fake_quantize(v.detach(), tensors[name, one]) - v.detach()) for one in forms[name]]
        for name, v in values.items()
    }
    # what integer layers alone read rounded moves the outputs through them
    places = [
        (name, place)
        for name, value in values.items()
        if forms[name]
        for place in ([on_the_way[reader, name] for reader in readers[name]] if name in readers else [value])
    ]
    beside = [_errors(on_the_way[pair].detach(), found) for pair, found in dynamic.items()]
    wanted = [*leaves.values(), *(on_the_way[pair] for pair in dynamic), *(place for _, place in places)]
    moved = [*(errors[name] for name in leaves), *beside]
    for gradients in random_gradients(outputs, wanted, generator, PROBES):
        of_weights += _inner(gradients[: len(moved)], moved)
        of_tensors += _inner(gradients[len(moved) :], [rounding[name] for name, _ in places])
    return of_weights, of_tensors
