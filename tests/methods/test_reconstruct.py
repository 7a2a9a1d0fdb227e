"""Block reconstruction: nearer to the float model than rounding to nearest, in the file as well, and only where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_models

from edgeq import deploy
from edgeq.lowering.choices import ladder, uniform
from edgeq.methods import RECONSTRUCT
from edgeq.methods.quantize import quantize_model
from edgeq.numerics.weights import BIAS_HEADROOM
from edgeq.plans.plan import Plan, read_plan
from edgeq.quantization.quantized import Quantized
from edgeq.quantization.simulate import sqnr_of
from edgeq.registry.schema import Runtime

CPU = small_models.runtime("onnxruntime")


def rounded(name: str, choice: str, method: str, steps: int = 60, by: Runtime = CPU) -> Quantized:
    net, seen = small_models.model(name), small_models.calibration(name)
    inputs = small_models.arrays(name, 32, seed=5)
    choices = uniform(ladder(net, by, seen.histograms), choice)
    methods = {group.name: method for group in net.groups}
    return quantize_model(net, by, seen, choices=choices, methods=methods, inputs=inputs, steps=steps)


@pytest.mark.parametrize("name", ["residual", "grouped", "conv1d", "two_inputs", "two_outputs", "mlp", "upconv"])
def test_outputs_come_nearer_on_samples_that_were_not_learned_from(name: str) -> None:
    held = small_models.arrays(name, 16, seed=77)
    old, new = (sqnr_of(small_models.model(name), rounded(name, "w4a8", by), held) for by in ("nearest", RECONSTRUCT))
    assert new > old + 1


@pytest.mark.parametrize("choice", ["w8a8", "w4a8"])
def test_integers_stay_near_the_weights_and_biases_fit(choice: str) -> None:
    net = small_models.model("residual")
    before, after = (rounded("residual", choice, by) for by in ("nearest", RECONSTRUCT))
    groups = {group.name: group for group in net.groups}
    for name, weight in after.weights.items():
        scale, _ = before.weights[name].q.shaped(weight.integers.ndim)
        steps = net.state[groups[name].weight or ""] / scale
        far = np.abs(weight.integers - steps)
        assert far.max() <= 1.5 + 1e-3
        fits = np.abs(after.biases[name]) / (after.input_scale(groups[name]) * weight.q.scale)
        assert fits.max() <= 2 * BIAS_HEADROOM


def test_the_same_comes_of_the_same() -> None:
    first, second = (rounded("residual", "w4a8", RECONSTRUCT, steps=10) for _ in range(2))
    for name, weight in first.weights.items():
        assert np.array_equal(weight.integers, second.weights[name].integers)
        assert np.array_equal(first.biases[name], second.biases[name])


def test_layers_that_are_not_wanted_stay_as_they_are() -> None:
    net, seen = small_models.model("residual"), small_models.calibration("residual")
    plain = quantize_model(net, CPU, seen)
    one = next(iter(plain.weights))
    found = quantize_model(
        net, CPU, seen, methods={one: RECONSTRUCT}, inputs=small_models.arrays("residual", 16), steps=5
    )
    assert found.methods == {name: RECONSTRUCT if name == one else "nearest" for name in plain.weights}
    for name, weight in plain.weights.items():
        assert name == one or np.array_equal(weight.integers, found.weights[name].integers)


def hashes(plan: Plan) -> list[str]:
    return [layer.weight.sha256 for layer in plan.layers if layer.weight]


def four_bits(folder: Path, files: Path) -> Plan:
    """A plan for 4 bits wherever they can be."""
    deploy(files / "model.pt2", target="x86-avx512", format="onnx", calibration=files / "calib.npz", out=folder)
    plan = read_plan(folder / "plan.json")
    return plan.model_copy(
        update={
            "layers": [
                layer.model_copy(update={"choice": "w4a8" if layer.choice == "w8a8" else layer.choice})
                for layer in plan.layers
            ]
        }
    )
