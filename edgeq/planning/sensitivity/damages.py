"""Measures the damage that each choice does (see `edgeq.planning.sensitivity.value`).

To first order an error e in a layer's weights moves the outputs z by J e. With random signs v, E_v[(v^T J e)^2] =
|J e|^2, and v^T J e is the inner product of e with the gradient of v^T z: one backward pass a sample prices every
choice of every layer at once, at the cost of one product of two weights each. No labels are needed.

Source: the Gauss-Newton form of the second-order damage in Nagel et al. 2020, "Up or Down? Adaptive Rounding for
Post-Training Quantization", section 3, and of HAWQ-V2 (Dong et al. 2020, equation 3), on the model's own outputs, with
Hutchinson's probes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from edgeq.calibration.gradients import random_direction
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
from edgeq.planning.sensitivity.value import Choice, Rounded, Sensitivity
from edgeq.progress import Progress
from edgeq.quantization.quantize import Quantized

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
    readers = _integer_readers(model, alternatives)
    few = {name: array[:SAMPLES] for name, array in inputs.items()}
    # one sample at a time: the gradient of a weight sums over the batch, and its square must not
    given = enumerate(_own(batch) for batch in batches(model, few, 1))
    by_weight: dict[tuple[str, str], list[float]] = {}
    by_tensor: dict[Rounded, list[float]] = {}
    for weights, values in engine.map(_one_sample, given, model, errors, tensors, readers, progress=progress):
        for key, moved in weights:
            by_weight.setdefault(key, []).append(moved**2)
        for rounded, moved in values:
            by_tensor.setdefault(rounded, []).append(moved**2)
    result: dict[str, dict[str, float]] = {}
    for (group, choice), moves in by_weight.items():
        result.setdefault(group, {})[choice] = float(np.mean(moves))
    return Sensitivity(result, {rounded: float(np.mean(moves)) for rounded, moves in by_tensor.items()})


def measure_alone(
    model: Model,
    inputs: Mapping[str, np.ndarray],
    alternatives: Mapping[str, Quantized],
    wanted: Sequence[Choice],
    engine: Engine = LOCAL,
) -> dict[Choice, float]:
    """What choices really do: each layer is quantized alone, in simulation, and all of them run side by side, so that
    each computes only what lies behind its layer.

    Args:
        alternatives: as for `measure_sensitivity`.
        wanted: pairs of a group's name and a choice.
        engine: where the batches are spread over.

    Returns:
        Damages, in the unit of `Sensitivity`.
    """
    few = {name: array[:ALONE_SAMPLES] for name, array in inputs.items()}
    given = [_own(batch) for batch in batches(model, few, ALONE_BATCH)]
    found = np.zeros(len(wanted))
    total = 0
    for samples, damages in engine.map(_one_batch, given, model, alternatives, wanted):
        found += samples * damages
        total += samples
    return {key: float(value) for key, value in zip(wanted, found / max(1, total), strict=True)}


def _one_batch(
    model: Model, alternatives: Mapping[str, Quantized], wanted: Sequence[Choice], batch: list[torch.Tensor]
) -> tuple[int, np.ndarray]:
    """How many samples there are, and the damage to them of each choice that is wanted."""
    groups = {group.name: group for group in model.groups}
    members = [_rounded_members(model, alternatives[choice], groups[name], choice) for name, choice in wanted]
    held = constants(model.program)
    replaced: dict[str, list[torch.Tensor]] = {}
    for number, (name, choice) in enumerate(wanted, start=1):
        quantized = alternatives[choice]
        if name in quantized.weights:
            _, weight, bias = model.nodes[groups[name].root].all_input_nodes[:3]
            for node, value in ((weight, quantized.weights[name].real), (bias, quantized.biases[name])):
                replaced.setdefault(node.name, [held[node.name]] * (len(wanted) + 1))[number] = torch.from_numpy(value)

    def rounded(node: Node, values: list[torch.Tensor]) -> list[torch.Tensor]:
        result = list(values)
        for number, (_, choice) in enumerate(wanted, start=1):
            tensor = alternatives[choice].activations.get(node.name)
            if tensor is not None and node.name in members[number - 1]:
                result[number] = fake_quantize(values[number], tensor.q)
        return result

    outputs = model.run([batch] * (len(wanted) + 1), rounded, replaced)
    samples = len(batch[0]) if model.inputs[0].batched else 1
    return samples, np.array([damage(one, outputs[0]) for one in outputs[1:]])


def _rounded_members(model: Model, quantized: Quantized, group: Group, choice: str) -> set[str]:
    """The nodes of a group that its choice rounds. What it does not leave behind as integers is rounded where it is
    converted, and paid for there."""
    if not on_integers(choice):
        return set()
    return set(group.members) - (set() if writes_integers(model, quantized.runtime, group) else {group.output})


def damage(outputs: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> float:
    """The measured counterpart: how far outputs are from those of the float model, in the same unit.

    Args:
        outputs, reference: [samples, ...] each.
    """
    total = 0.0
    for found, wanted in zip(outputs, reference, strict=True):
        if wanted.is_floating_point():
            power = wanted.double().square().reshape(len(wanted), -1).sum(1).clamp(min=1e-24)
            moved = (found.double() - wanted.double()).square().reshape(len(wanted), -1).sum(1)
            total += float((moved / power).mean())
    return total


def _weight_errors(model: Model, alternatives: Mapping[str, Quantized]) -> dict[str, list[_Error]]:
    """By constant (placeholder of a weight or bias): its errors."""
    state = model.state
    found: dict[str, list[_Error]] = {}
    for choice, quantized in alternatives.items():
        for group in model.groups:
            weight = quantized.weights.get(group.name)
            if weight is None or quantized.assignment.choice(group.name) != choice:
                continue
            _, weight_node, bias_node = model.nodes[group.root].all_input_nodes[:3]
            key = (group.name, choice)
            for node, value, own in (
                (weight_node, weight.real, state[group.weight or ""]),
                (bias_node, quantized.biases[group.name], state[group.bias or ""]),
            ):
                found.setdefault(node.name, []).append(_Error(key, torch.from_numpy(value - own)))
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


class _Error(NamedTuple):
    """What one choice of one group changes a constant by."""

    key: tuple[str, str]
    value: torch.Tensor


class _Moves(NamedTuple):
    """v^T J e of one sample and one probe each."""

    weights: list[tuple[tuple[str, str], float]]
    tensors: list[tuple[Rounded, float]]


def _one_sample(
    model: Model,
    errors: Mapping[str, Sequence[_Error]],
    tensors: Mapping[Rounded, QParams],
    readers: Mapping[str, Sequence[str]],
    given: tuple[int, list[torch.Tensor]],
) -> _Moves:
    number, batch = given
    generator = torch.Generator().manual_seed(number)
    values: dict[str, torch.Tensor] = {}
    held = constants(model.program)
    leaves = {name: held[name].clone().requires_grad_() for name in errors}

    forms: dict[str, list[str]] = {}
    for name, one in tensors:
        forms.setdefault(name, []).append(one)

    def keep(node: Node, found: list[torch.Tensor]) -> list[torch.Tensor]:
        if node.name not in forms or not is_float(node):
            return found
        found = [v if v.requires_grad else v.clone().requires_grad_() for v in found]
        values[node.name] = found[0]
        return found

    on_the_way: dict[str, list[torch.Tensor]] = {}

    def apart(name: str, value: torch.Tensor) -> torch.Tensor:
        on_the_way.setdefault(name, []).append(value.view_as(value))
        return on_the_way[name][-1]

    reads = {(reader, name): [partial(apart, name)] for name, found in readers.items() for reader in found}
    outputs = [o for o in model.run([batch], keep, leaves, reads, differentiable=True)[0] if o.requires_grad]
    result = _Moves([], [])
    if not outputs:
        return result
    rounding = {
        (name, one): fake_quantize(v.detach(), tensors[name, one]) - v.detach()
        for name, v in values.items()
        for one in forms[name]
    }
    for probe in range(PROBES):
        with torch.enable_grad():
            moved = torch.stack([random_direction(o, generator) for o in outputs]).sum()
        # what integer layers alone read rounded moves the outputs through them
        places = [on_the_way.get(name, [value]) for name, value in values.items()]
        wanted = [*leaves.values(), *(place for found in places for place in found)]
        last = probe == PROBES - 1
        gradients = torch.autograd.grad(moved, wanted, retain_graph=not last, allow_unused=True)
        by_key: dict[tuple[str, str], float] = {}
        for name, gradient in zip(leaves, gradients[: len(leaves)], strict=True):
            for error in errors[name] if gradient is not None else ():
                by_key[error.key] = by_key.get(error.key, 0.0) + float(torch.sum(gradient * error.value))
        result.weights.extend(by_key.items())
        behind = iter(gradients[len(leaves) :])
        for name, found in zip(values, places, strict=True):
            known = [gradient for gradient in islice(behind, len(found)) if gradient is not None]
            for one in forms[name] if known else ():
                moves = sum(float(torch.sum(gradient * rounding[name, one])) for gradient in known)
                result.tensors.append(((name, one), moves))
    return result
