"""A quantized model as a module that learns: its parameters, and the scales that they and the activations have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from edgeq.errors import UnsupportedError, UsageError
from edgeq.lowering.assign import Version
from edgeq.methods.given import GIVEN
from edgeq.methods.method import Wanted
from edgeq.model.graph import Node
from edgeq.model.model import Model
from edgeq.model.ops import output_channels_axis, upper_bound
from edgeq.numerics import QParams, qparams, quantize
from edgeq.numerics.weights import QuantizedWeight, rows
from edgeq.quantization.activations import QuantizedTensor
from edgeq.quantization.dynamic import dynamic_reads
from edgeq.quantization.quantized import LEARNED, LEARNED_FROM, Quantized
from edgeq.training.fake import rounded_bias, straight_through
from edgeq.training.projected import PROJECTED
from edgeq.training.ranges import RANGES

MOMENTUM = 0.99
"""Of a range that follows the values, with each batch."""

REACH = 3.0
"""How far the logarithm of a scale goes at most."""


class Scale(torch.nn.Module):
    """A scale and its zero point, of integers from `low` to `high`.

    It is learned by its logarithm, so that it stays positive, and goes by the same parts whatever its size.
    """

    start: torch.Tensor
    zero: torch.Tensor

    def __init__(self, q: QParams, rank: int, *, learns: bool, most: float = REACH) -> None:
        super().__init__()
        scale, zero = (np.array(part) for part in q.shaped(rank))
        self.q, self.most = q, most
        self.low, self.high = q.scheme.quant_min, q.scheme.quant_max
        self.register_buffer("start", torch.from_numpy(np.atleast_1d(scale)))
        self.register_buffer("zero", torch.from_numpy(np.atleast_1d(zero)).float())
        self.growth = torch.nn.Parameter(torch.zeros_like(self.start), requires_grad=learns)

    def now(self) -> torch.Tensor:
        """Float32, ready to be broadcast."""
        return self.start * self.growth.clamp(-REACH, self.most).exp()

    def be(self, q: QParams) -> None:
        """Takes another scale and zero point."""
        with torch.no_grad():
            self.start.copy_(torch.from_numpy(np.atleast_1d(q.scale)).reshape(self.start.shape))
            self.zero.copy_(torch.from_numpy(np.atleast_1d(q.zero_point)).reshape(self.zero.shape))

    def found(self) -> QParams:
        with torch.no_grad():
            shape = self.q.scale.shape
            scale = self.now().numpy().reshape(shape).astype(np.float32)
            return replace(self.q, scale=scale, zero_point=self.zero.numpy().reshape(shape).astype(np.int32))


class View(torch.nn.Module):
    """Computes what the quantized model will, from parameters in float32 that are rounded on their way.

    Args:
        model: the float model.
        start: what it is quantized to, before anything is learned.
        ranges: a name in `edgeq.training.ranges.RANGES`.
        features: graph nodes whose values are given out behind the outputs.

    Raises:
        UsageError: there is no such rule.
        UnsupportedError: a layer's weights have levels that are not evenly spaced.
    """

    def __init__(self, model: Model, start: Quantized, ranges: str, features: tuple[str, ...] = ()) -> None:
        super().__init__()
        if ranges not in RANGES:
            raise UsageError(
                f"there is no {ranges!r} among the ways to set ranges", remedy=f"one of {', '.join(RANGES)}"
            )
        self.model, self.quantized, self.rule, self.features = model, start, RANGES[ranges], features
        learned = {name for kind, _, name, *_ in model.program.calling["inputs"] if kind == "PARAMETER"}
        self.names = [n for n, array in model.state.items() if n in learned and array.dtype == np.float32]
        biases = {group.bias: start.biases[group.name] for group in model.groups if group.name in start.biases}
        self.values = torch.nn.ParameterList(
            torch.nn.Parameter(torch.from_numpy(np.array(biases.get(name, model.state[name])))) for name in self.names
        )
        self.rounded = {g.weight: g.name for g in model.groups if g.weight and g.name in start.weights}
        self.projected = {g.name: g for g in model.groups if start.methods.get(g.name) in PROJECTED}
        self.scales = list(self._scales())
        self.learned = torch.nn.ModuleList(self.scales)
        self.versions = {tensor.version: i for i, tensor in enumerate(self._tensors())}
        self.weight_scales = {layer: len(self.versions) + i for i, layer in enumerate(self.rounded.values())}
        self.integer_biases = dict(self._integer_biases())
        self.ranges: torch.Tensor
        self.register_buffer("ranges", torch.tensor([[t.low, t.high] for t in self._tensors()]).reshape(-1, 2))

    def _scales(self) -> Iterator[Scale]:
        """Of activations, then of weights, in the order of their layers."""
        bounds: dict[Version, float] = {}
        for node in self.model.program.nodes:
            tensor = self.quantized.activations.get(node.name)
            bound = upper_bound(node) if tensor is not None and node.op == "call_function" else None
            if tensor is not None and bound is not None and bound > 0:
                # behind a range that went beyond it, runtimes would have to clip, and do so in float
                most = max(0.0, float(np.log(bound / max(tensor.q.high, 1e-12))) - 1e-6)
                bounds[tensor.version] = min(bounds.get(tensor.version, REACH), most)
        for tensor in self._tensors():
            learns = "activations" in self.rule.learns and self._moves(tensor)
            yield Scale(tensor.q, 1, learns=learns, most=bounds.get(tensor.version, REACH))
        for layer in self.rounded.values():
            weight = self.quantized.weights[layer]
            if weight.levels is not None:
                raise UnsupportedError(
                    f"its weights are to be one of {len(weight.levels)} levels that are not evenly spaced",
                    where=f"layer {layer}",
                    remedy="give it another choice in the plan",
                )
            own = layer not in self.projected and not weight.q.scheme.power_of_two
            learns = "weights" in self.rule.learns and own
            yield Scale(weight.q, rows(weight.integers, weight.q.scheme).ndim, learns=learns)

    def _integer_biases(self) -> Iterator[tuple[str, tuple[str, Version]]]:
        """By layer, a bias that is stored as integers of its input's scale times its weight's, and that input."""
        for group in self.model.groups:
            kernel = self.quantized.assignment.kernel(group.name)
            if kernel is None or kernel.bias not in ("int32", "int64") or group.name not in self.quantized.weights:
                continue
            read = self.quantized.read(group, group.inputs[0])
            if group.bias is not None and read is not None:
                yield group.name, (group.bias, read.version)

    def _tensors(self) -> list[QuantizedTensor]:
        """One for each scale of activations."""
        every = (*self.quantized.activations.values(), *self.quantized.again.values())
        return list({tensor.version: tensor for tensor in every}.values())

    def _moves(self, tensor: QuantizedTensor) -> bool:
        """Whether a range may be another one than it is: neither prescribed, nor that of an input."""
        given = any(self.quantized.activations.get(name) is tensor for name in self.model.input_nodes)
        return tensor.estimator != "fixed" and not tensor.q.scheme.power_of_two and not given

    def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """The outputs, and then the features, for one tensor per input, [N, ...]."""
        quantized, written = self.quantized, self.quantized.rounded
        nodes = {name: node for node, name in self.model.program.lifted.items()}
        constants = {nodes[name]: value for name, value in self._parameters_now().items()}
        features: dict[str, torch.Tensor] = {}

        def hook(node: Node, values: list[Any]) -> list[Any]:
            tensor = written.get(node.name)
            if tensor is not None:
                values = [self._round(tensor, value.float()) for value in values]
            if node.name in self.features:
                features[node.name] = values[0]
            return values

        def way(tensor: QuantizedTensor) -> Callable[[torch.Tensor], torch.Tensor]:
            return lambda value: self._round(tensor, value.float())

        dynamic = {pair: [_straight(one)] for pair, one in dynamic_reads(self.model, quantized).items()}
        reads = {pair: [way(tensor)] for pair, tensor in quantized.rounded_by_readers(self.model).items()}
        grads = torch.is_grad_enabled()
        (outputs,) = self.model.run([inputs], hook, constants, {**reads, **dynamic}, differentiable=grads)
        return [*outputs, *(features[name] for name in self.features)]

    def _parameters_now(self) -> dict[str, torch.Tensor]:
        """What layers compute with, by name."""
        found: dict[str, torch.Tensor] = dict(zip(self.names, self.values, strict=True))
        for name, layer in self.rounded.items():
            found[name], steps = self._round_weight(layer, found[name])
            if layer in self.integer_biases:
                bias, read = self.integer_biases[layer]
                value = found[bias] if bias in found else torch.from_numpy(self.quantized.biases[layer])
                found[bias] = rounded_bias(value, self.scales[self.versions[read]].now().detach() * steps)
        return found

    def _project(self, layer: str, weight: np.ndarray) -> QuantizedWeight:
        axis, scheme = output_channels_axis(self.projected[layer].op), self.quantized.weights[layer].q.scheme
        none = np.zeros(weight.shape[axis], np.float32)
        return PROJECTED[self.quantized.methods[layer]](Wanted(layer, weight, none, scheme, axis, None))

    def _round_weight(self, layer: str, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A weight, and its scales, [channels] or [1]."""
        if layer in self.projected:
            made = self._project(layer, value.detach().numpy())
            return straight_through(torch.from_numpy(made.real), value), torch.from_numpy(made.q.scale).reshape(-1)
        scale = self.scales[self.weight_scales[layer]]
        grouped = value if scale.q.scheme.group is None else value.reshape(-1, scale.q.scheme.group)
        if self.rule.follows and self.training:
            scale.be(_reaching(grouped.detach().numpy(), scale.q))
        now = scale.now()
        rounded = self.rule.weights(grouped, now, scale.zero, scale.low, scale.high).reshape(value.shape)
        return rounded, now.detach().reshape(-1)

    def _round(self, tensor: QuantizedTensor, value: torch.Tensor) -> torch.Tensor:
        index = self.versions[tensor.version]
        scale = self.scales[index]
        if self.rule.follows and self.training and self._moves(tensor):
            seen = torch.stack([value.detach().amin(), value.detach().amax()])
            self.ranges[index] = MOMENTUM * self.ranges[index] + (1 - MOMENTUM) * seen
            low, high = self.ranges[index].tolist()
            scale.be(qparams(low, high, tensor.q.scheme))
        return self.rule.activations(value, scale.now(), scale.zero, scale.low, scale.high)

    def rates(self, weights: float, scales: float) -> list[dict[str, Any]]:
        """Groups of parameters for an optimizer, each with how fast it learns: parameters by parts of their own size,
        since that differs a hundredfold from layer to layer once batch norms are folded.

        Source: Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", section 8.
        """
        sizes = [max(float(value.detach().square().mean().sqrt()), 1e-3) for value in self.values]
        groups = [{"params": [v], "lr": weights * size} for v, size in zip(self.values, sizes, strict=True)]
        learned = [scale.growth for scale in self.scales if scale.growth.requires_grad]
        return [*groups, *([{"params": learned, "lr": scales}] if learned else [])]

    def found(self) -> tuple[Model, Quantized]:
        """What was learned: the model with its float parameters, and its integers."""
        with torch.no_grad():
            state = {n: value.numpy().copy() for n, value in zip(self.names, self.values, strict=True)}
            now = {name: value.numpy().copy() for name, value in self._parameters_now().items()}
        scales = [scale.found() for scale in self.scales]
        weights = {}
        for name, layer in self.rounded.items():
            if layer in self.projected:
                weights[layer] = self._project(layer, state[name])
                continue
            q = scales[self.weight_scales[layer]]
            integers = quantize(rows(state[name], q.scheme), q).reshape(state[name].shape)
            weights[layer] = QuantizedWeight(integers, q)
        biases = {g.name: now[g.bias] for g in self.model.groups if g.bias and g.bias in now}
        quantized = replace(
            self.quantized,
            activations={node: self._as_found(t, scales) for node, t in self.quantized.activations.items()},
            again={version: self._as_found(t, scales) for version, t in self.quantized.again.items()},
            weights=weights,
            biases={**self.quantized.biases, **biases},
            methods=dict.fromkeys(weights, GIVEN),
        )
        real = {name: weights[layer].real for name, layer in self.rounded.items()}
        return self.model.with_state({**now, **real}), quantized

    def _as_found(self, tensor: QuantizedTensor, scales: list[QParams]) -> QuantizedTensor:
        q = scales[self.versions[tensor.version]]
        return replace(tensor, q=q, low=q.low, high=q.high, estimator=LEARNED, reason=LEARNED_FROM)


def _reaching(weight: np.ndarray, q: QParams) -> QParams:
    """Scales with which the integers reach the largest weights."""
    axes = tuple(axis for axis in range(weight.ndim) if axis != q.axis)
    extremes = (weight.min(), weight.max()) if q.axis is None else (weight.min(axis=axes), weight.max(axis=axes))
    return qparams(*extremes, q.scheme, q.axis)


def _straight(rounding: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """With the gradient of what is rounded."""
    return lambda value: straight_through(rounding(value.detach()), value)
