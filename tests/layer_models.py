"""Networks of one layer, with what they are given, for tests of methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import torch
from torch import nn

from edgeq.calibration.calibrate import calibrate
from edgeq.calibration.calibration import Calibration
from edgeq.frontends.load import load
from edgeq.lowering.assign import Assignment
from edgeq.methods import method
from edgeq.methods.method import Seen, Wanted
from edgeq.methods.nearest import quantize_weight
from edgeq.model.model import Model
from edgeq.model.ops import WEIGHTED, output_channels_axis
from edgeq.numerics import Scheme
from edgeq.progress import Silent
from edgeq.quantization.quantized import Quantized
from edgeq.registry.load import load_target

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(12, 5), (12,)),
    "tokens": (lambda: nn.Linear(12, 5), (6, 12)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2), (4, 11)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), (4, 8, 7)),
    "pointwise": (lambda: nn.Conv2d(8, 6, 1), (8, 4, 4)),
    "grouped": (lambda: nn.Conv2d(8, 6, 3, padding=1, groups=2), (8, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(6, 12, 3, padding=1, groups=6), (6, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 4, (2, 3, 2), padding=(1, 1, 0)), (2, 4, 5, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (4, 4, 5)),
    "cropped": (lambda: nn.ConvTranspose2d(4, 6, (2, 3), stride=(1, 3), padding=(3, 1), dilation=(2, 1)), (4, 9, 4)),
    "transposed-grouped": (lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, dilation=2, groups=2), (6, 4, 4)),
}


def seen_of(model: Model, samples: np.ndarray) -> Seen:
    inputs = {model.inputs[0].name: samples}
    return seen_by(calibrate(model, inputs), inputs)


def seen_by(calibration: Calibration, inputs: Mapping[str, np.ndarray], wanted: Sequence[Wanted] = ()) -> Seen:
    """What a method sees of a model whose activations stay in float, and of whose weights some are to be rounded."""
    nothing = Assignment({}, {}, {}, {}, frozenset(), {}, {})
    weights = {one.layer: quantize_weight(one) for one in wanted}
    biases = {one.layer: one.bias for one in wanted}
    known = Quantized(load_target("x86-avx512").runtimes[0], nothing, {}, {}, weights, biases, {})
    return Seen(calibration, None, inputs, known, 3, Silent(), method)


def correlated(shape: Sequence[int], samples: int = 48, seed: int = 0) -> np.ndarray:
    """Samples whose numbers hang on a few others, as activations do, and are not of zero mean."""
    random = np.random.default_rng(seed)
    size = int(np.prod(shape))
    mixed = random.normal(size=(samples, 3)) @ random.normal(size=(3, size))
    return (mixed + 1 + 0.3 * random.normal(size=(samples, size))).reshape(samples, *shape).astype(np.float32)


@cache
def layer(name: str) -> tuple[Model, Seen]:
    make, shape = LAYERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = make().eval()
    samples = correlated(shape)
    model = load(net, example=(torch.from_numpy(samples[:2]),))
    return model, seen_of(model, samples)


def wanted_of(model: Model, scheme: Scheme, input_scale: float | None = None) -> list[Wanted]:
    """The layers of a model that can be stored so."""
    found = []
    for group in model.groups:
        if group.op not in WEIGHTED or not group.inputs:
            continue
        weight, bias = (model.state[name or ""] for name in (group.weight, group.bias))
        axis, scale = output_channels_axis(group.op), None if input_scale is None else np.float32(input_scale)
        row = weight.size // weight.shape[axis]
        fits = scheme.group is None or (axis == 0 and row % scheme.group == 0)
        if fits and (axis == 0 or len(bias) == weight.shape[1]):  # groups of transposed ones share their scales
            found.append(Wanted(group.name, weight, bias, scheme, axis, None if scale is None else np.asarray(scale)))
    return found
