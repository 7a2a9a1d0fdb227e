"""The quantized model: integers and scales for every tensor that an artefact stores, before any file is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgeq.lowering.assign import Assignment, Version
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.numerics.weights import QuantizedWeight
from edgeq.quantization.activations import QuantizedTensor
from edgeq.registry.schema import Runtime

LEARNED = "learned"
LEARNED_FROM = "learned together with the weights"


@dataclass(frozen=True)
class Quantized:
    """Everything that the exporters write.

    Attributes:
        runtime: whose kernels it is for.
        assignment: which groups run on integers, and which only store them.
        activations: by graph node, in the type that its value has first; also of values that integer groups alone read
            rounded (`Assignment.also_float`).
        again: by graph node and type, rounded anew for those that read another type.
        weights: by group name.
        biases: float32, corrected, by group name; also of groups that stay in float.
        methods: by group name, how its weights were rounded (see `edgeq.methods`).
        remarks: what there is to say of what was tried.
    """

    runtime: Runtime
    assignment: Assignment
    activations: dict[str, QuantizedTensor]
    again: dict[Version, QuantizedTensor]
    weights: dict[str, QuantizedWeight]
    biases: dict[str, NDArray[np.float32]]
    methods: dict[str, str]
    remarks: tuple[str, ...] = ()

    def rescaled(self, scales: Mapping[Version, NDArray[np.float32]]) -> Quantized:
        """With other scales of activations, float32 []; their zero points stay."""

        def other(tensor: QuantizedTensor) -> QuantizedTensor:
            scale = scales.get(tensor.version)
            if scale is None:
                return tensor
            q = replace(tensor.q, scale=scale)
            return replace(tensor, q=q, low=q.low, high=q.high, estimator=LEARNED, reason=LEARNED_FROM)

        activations = {node: other(tensor) for node, tensor in self.activations.items()}
        again = {version: other(tensor) for version, tensor in self.again.items()}
        return replace(self, activations=activations, again=again)

    def read(self, group: Group, node: str) -> QuantizedTensor | None:
        """A value as a group reads it; None where that is float."""
        kernel = self.assignment.kernels.get(group.name)
        if kernel is None:
            return None
        return self.again.get((node, kernel.activations)) or self.activations.get(node)

    def input_scale(self, group: Group) -> NDArray[np.float32]:
        """The scale, [], of what an integer group multiplies its weights by."""
        read = self.read(group, group.inputs[0])
        assert read is not None
        return read.q.scale

    def read_anew(self, group: Group) -> dict[str, QuantizedTensor]:
        """By graph node, what a group reads in another type than that is written in."""
        kernel = self.assignment.kernels.get(group.name)
        versions = [] if kernel is None else [(node, kernel.activations) for node in group.inputs]
        return {version[0]: self.again[version] for version in versions if version in self.again}

    @property
    def rounded(self) -> dict[str, QuantizedTensor]:
        """By graph node, the activations that everyone reads rounded."""
        return {n: tensor for n, tensor in self.activations.items() if n not in self.assignment.also_float}

    def rounded_by_readers(self, model: Model) -> dict[tuple[str, str], QuantizedTensor]:
        """By the graph nodes of a reader and of what it reads, what that one rounds: in another type than it is written
        in, or where others read it in float."""
        also_float = self.assignment.also_float
        return {
            (group.root, node): tensor
            for group in model.groups
            for node in group.inputs
            if (tensor := self.read(group, node)) and (node in also_float or node in self.read_anew(group))
        }
