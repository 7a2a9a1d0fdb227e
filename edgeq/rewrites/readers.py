"""Values that linear layers read, whatever computes them: where branches can be put beside these layers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgeq.model.graph import Node
from edgeq.model.groups import Group
from edgeq.model.model import Model


def linear_readers(model: Model) -> Mapping[str, tuple[Group, ...]]:
    """By graph node of a value, the linear layers that read it and alone have their weights, in the order in which they
    run."""
    found: dict[str, tuple[Group, ...]] = {}
    for group in model.groups:
        if group.op == "linear" and group.weight and group.bias and len(group.inputs) == 1 and _owns(model, group):
            found[group.inputs[0]] = (*found.get(group.inputs[0], ()), group)
    return found


def _owns(model: Model, group: Group) -> bool:
    value, weight = model.nodes[group.root].args[:2]
    held = [name for name in model.program.lifted.values() if name == group.weight]
    alone = isinstance(weight, Node) and len(weight.users) == 1 and len(held) == 1
    return alone and isinstance(value, Node) and model.state[group.weight or ""].dtype == np.float32
