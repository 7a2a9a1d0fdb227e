"""Names the operators of the float ONNX model after their layers: runtimes report these names when they say where an
operator ran and how long it took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgeq.model.model import Model
from edgeq.model.ops import WEIGHTED

if TYPE_CHECKING:
    from edgeq.export.onnx_float import FloatOnnx


def name_operators(model: Model, source: FloatOnnx) -> None:
    """Gives the operator that computes a layer's root the layer's name, and those of its activation
    `<layer>/<activation>`. Operators that belong to no layer keep what the exporter called them."""
    from edgeq.export.onnx import weighted

    makers = {str(v.name): node for node in source.model.graph for v in node.outputs}
    for group in model.groups:
        for node, suffix in ((group.root, ""), (group.activation, f"/{group.activation_op}")):
            operator = makers.get(source.values.get(node or "", ""))
            if operator is None:
                continue
            operator.name = group.name + suffix
            # a linear layer on three dimensions is a MatMul with its bias added behind it
            product = weighted(operator.outputs[0]) if group.op in WEIGHTED and node == group.root else None
            if product is not None and product is not operator:
                operator.name, product.name = f"{group.name}/bias", group.name


def labels(model: Model, source: FloatOnnx) -> dict[str, str]:
    """By each name that a runtime may give an operator, its own or that of the value it computes, its layer."""
    own = {group.name: group.name for group in model.groups}
    values = {
        source.values[member]: group.name
        for group in model.groups
        for member in group.members
        if member in source.values
    }
    # ONNX Runtime names what it lays out anew after the value, and a layer may be called like another one's value
    return values | own | {f"{value}_nchwc": layer for value, layer in values.items()}


def layer_of(name: str, labels: Mapping[str, str]) -> str | None:
    """The layer that an operator belongs to by its name, also after a runtime has put its own marks behind it."""
    stem = name
    while stem not in labels:
        # `features.0.0/relu6`, `features.0.0_token_7`, `hardtanh_nchwc`: what is behind the last mark goes
        cut = max(stem.rfind(mark) for mark in ("/", "_token_", "_nchwc"))
        if cut <= 0:
            return None
        stem = stem[:cut]
    return labels[stem]
