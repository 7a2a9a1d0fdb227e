"""What each layer is where a model came with grids: the kernel that computes on the very integers."""

from __future__ import annotations

from edgeq.errors import UnsupportedError
from edgeq.lowering.assign import FLOAT
from edgeq.model.grids import Rounded
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.model.ops import output_channels_axis
from edgeq.registry.schema import Kernel, Runtime


def given_choices(model: Model, runtime: Runtime) -> dict[str, str]:
    """By layer, the name of its kernel, or `float32` where the model rounds nothing of it.

    Raises:
        UnsupportedError: weights are integers, and the runtime has no kernel with a place for them.
    """
    return {group.name: _choice(model, group, runtime) for group in model.groups}


def _choice(model: Model, group: Group, runtime: Runtime) -> str:
    assert model.grids is not None
    rounded = model.grids.weights.get(group.weight or "")
    reads = bool(group.inputs) and all(model.grids.read(group.root, node) for node in group.inputs)
    kernels = [k for k in runtime.kernels if group.op in k.ops and k.dynamic is None]
    if rounded is None:
        kernels = [k for k in kernels if k.weights is None]
        return next((k.name for k in kernels if reads and _reads(model, group, k)), FLOAT)
    for kernel in kernels:
        if (
            reads != kernel.weight_only
            and _holds(kernel, group, rounded)
            and (not reads or _reads(model, group, kernel))
        ):
            return kernel.name
    inputs = ", ".join(str(model.grids.read(group.root, node) or "float") for node in group.inputs)
    has = sorted({k.name for k in kernels})
    raise UnsupportedError(
        f"{runtime.name} has no kernel for its weights, {rounded.grid}, on its input, {inputs}",
        where=f"layer {group.name}",
        remedy=f"take another target, or quantize the float model: {group.op} can be {', '.join(has) or 'float alone'}",
    )


def _reads(model: Model, group: Group, kernel: Kernel) -> bool:
    assert model.grids is not None
    scheme = kernel.activation_scheme
    grids = [model.grids.read(group.root, node) for node in group.inputs]
    return all(grid is not None and grid.of_activations(scheme) is not None for grid in grids)


def _holds(kernel: Kernel, group: Group, rounded: Rounded) -> bool:
    axis, scheme = output_channels_axis(group.op), kernel.weight_scheme
    channels = axis, rounded.integers.shape[axis]
    return scheme is not None and rounded.grid.of_weights(scheme, rounded.integers, channels) is not None
