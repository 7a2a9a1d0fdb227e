"""Distillation: the whole network learns, scales of activations too, and what was learned before a stop is kept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import small_models
import torch
from layer_models import correlated
from torch import nn

from edgeq.calibration.calibrate import calibrate
from edgeq.errors import UsageError
from edgeq.frontends.load import load
from edgeq.lowering.choices import ladder, uniform
from edgeq.methods import DISTIL, METHODS, RECONSTRUCT, method
from edgeq.methods.learned_scale import REACH, rounded_by
from edgeq.methods.method import HELD_OUT, STEPS, Change, Method, Seen, Wanted
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.model.ops import upper_bound
from edgeq.numerics import Scheme, per_tensor
from edgeq.progress import Silent
from edgeq.quantization.activations import ends
from edgeq.quantization.quantized import Quantized
from edgeq.quantization.simulate import sqnr_of

CPU = small_models.runtime("onnxruntime")


def chain() -> Model:
    """Layers enough for several blocks."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [layer for _ in range(12) for layer in (nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())]
        net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(6 * 36, 5)).eval()
    return load(net, example=(torch.from_numpy(correlated((6, 6, 6))[:2]),))


def quantized(model: Model, name: str, choice: str, by: Callable[[str], Method] = method, steps: int = 40) -> Quantized:
    inputs = {model.inputs[0].name: correlated((6, 6, 6), 64)}
    seen = calibrate(model, inputs)
    choices = uniform(ladder(model, CPU, seen.histograms), choice)
    names = {group.name: name for group in model.groups}
    return quantize_model(model, CPU, seen, choices=choices, methods=names, inputs=inputs, steps=steps, by=by)


@pytest.mark.parametrize("choice", ["w8a8", "w4a8"])
def test_outputs_come_nearer_and_scales_of_activations_are_learned(choice: str) -> None:
    model = chain()
    held = {model.inputs[0].name: correlated((6, 6, 6), 32, seed=9)}
    before, after = (quantized(model, name, choice) for name in ("nearest", DISTIL))
    assert sqnr_of(model, after, held) > sqnr_of(model, before, held)
    at_the_ends = ends(model)
    moved = 0
    for node, tensor in after.activations.items():
        was, now = before.activations[node].q, tensor.q
        assert now.zero_point == was.zero_point and now.scheme == was.scheme
        if node in at_the_ends:
            assert now.scale == was.scale
        assert abs(np.log(now.scale / was.scale)) <= REACH + 1e-3
        moved += bool(now.scale != was.scale)
        assert all(other.q is tensor.q or other.q.scale == now.scale for other in _sharing(after, tensor.version))
    assert moved > len(after.activations) / 2


def _sharing(quantized: Quantized, version: tuple[str, str]) -> list[object]:
    return [tensor for tensor in quantized.activations.values() if tensor.version == version]


def test_the_gradient_of_a_scale_is_that_of_the_paper() -> None:
    """Esser et al. 2020, equation 3, computed by hand: -x/s + round(x/s) inside, the ends of the range outside."""
    scheme = Scheme("uint8")
    q = per_tensor(scheme, 0.1, 100)
    x = torch.linspace(-15, 20, 997)
    scale = torch.tensor([0.1], requires_grad=True)
    rounded_by(x, q, scale).sum().backward()
    steps = x.double().numpy() / np.float32(0.1)
    inside = (np.rint(steps) + 100 >= 0) & (np.rint(steps) + 100 <= 255)
    expected = np.where(inside, np.rint(steps) - steps, np.where(steps < 0, -100, 155)).sum()
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(expected, rel=1e-3)


def test_more_steps_are_never_worse_on_the_samples_that_are_held_out() -> None:
    """A run begins with the best of those before it, and the first one is all that a hundred steps are."""
    model = chain()
    name = model.inputs[0].name
    held = {name: correlated((6, 6, 6), 64)[::HELD_OUT]}
    few, more = (quantized(model, DISTIL, "w8a8", steps=steps) for steps in (STEPS, 5 * STEPS))
    assert sqnr_of(model, more, held) >= sqnr_of(model, few, held) > 0


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
def test_a_range_does_not_go_beyond_what_its_activation_gives(padded: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        # what pads a value shares its scale
        pad = nn.ZeroPad2d((0, 1, 0, 1)) if padded else nn.Identity()
        layers = [
            layer for _ in range(4) for layer in (nn.Conv2d(6, 6, 3 - padded, padding=1 - padded), nn.ReLU6(), pad)
        ]
        net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(6 * 36, 5)).eval()
        for layer in layers[::3]:
            layer.weight.data *= 6  # type: ignore[operator]  # values reach the 6
    model = load(net, example=(torch.from_numpy(correlated((6, 6, 6))[:2]),))
    after = quantized(model, DISTIL, "w8a8")
    highs = [after.activations[n.name].q.high for n in model.nodes.values() if upper_bound(n) == 6.0]
    assert len(highs) == 4 and max(highs) > 5 and all(high <= 6.0 for high in highs)


class Interrupted(Exception):
    pass


def test_what_blocks_learned_before_a_stop_is_not_learned_again() -> None:
    model = chain()
    parts: dict[str, Change] = {}
    made: list[str] = []

    class Stop(Silent):
        most = 0.6

        def step(self, done: int, total: int) -> None:
            if done >= self.most * total:
                raise Interrupted

    stop = Stop()

    def kept(part: str, make: Callable[[], Change]) -> Change:
        if part not in parts:
            made.append(part)
            parts[part] = make()
        return parts[part]

    def by(name: str) -> Method:
        def called(model: Model, wanted: list[Wanted], seen: Seen) -> Change:
            return METHODS[name](model, wanted, seen._replace(kept=kept, progress=stop))

        return called if name == RECONSTRUCT else method(name)

    with pytest.raises(Interrupted):
        quantized(model, RECONSTRUCT, "w4a8", by)
    done, stop.most = list(parts), 2.0
    assert len(done) >= 2
    made.clear()
    resumed = quantized(model, RECONSTRUCT, "w4a8", by)
    assert made and not set(made) & set(done)
    whole = quantized(model, RECONSTRUCT, "w4a8")
    for name, weight in whole.weights.items():
        assert np.array_equal(weight.integers, resumed.weights[name].integers)
        assert np.array_equal(weight.q.scale, resumed.weights[name].q.scale)
        assert np.array_equal(whole.biases[name], resumed.biases[name])
    for node, tensor in whole.activations.items():
        assert tensor.q.scale == resumed.activations[node].q.scale


@pytest.mark.parametrize("name", [DISTIL, "re-estimate"])
def test_without_samples_it_is_refused(name: str) -> None:
    model = chain()
    seen = calibrate(model, {model.inputs[0].name: correlated((6, 6, 6), 8)})
    with pytest.raises(UsageError, match="calibration samples"):
        quantize_model(model, CPU, seen, methods=dict.fromkeys((g.name for g in model.groups), name))
