"""The quantized model against brute force over the data, and the tables that are made from it."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import small_models as small
import torch

from edgeq.calibration.gradients import measure_impact
from edgeq.data.dataset import make_dataset
from edgeq.methods.bias_correction import bias_shift
from edgeq.methods.quantize import quantize_model
from edgeq.model.graph import Node
from edgeq.model.operators import operator_of
from edgeq.model.ops import WEIGHTED, channel_axis_of_output
from edgeq.numerics.fake import fake_quantize
from edgeq.numerics.weights import BIAS_HEADROOM
from edgeq.plans.describe import describe
from edgeq.plans.plan import Plan
from edgeq.quantization.simulate import simulate
from edgeq.report.layers import layer_table

BY = small.runtime("onnxruntime")


def seen_values(name: str, data: small.Arrays) -> dict[str, torch.Tensor]:
    model, found = small.model(name), {}

    def keep(node: Node, values: list[torch.Tensor]) -> list[torch.Tensor]:
        found[node.name] = values[0]
        return values

    model.run([[torch.from_numpy(c) for c in data.values()]], keep)
    return found


@pytest.mark.parametrize(
    "name", ["depthwise", "grouped", "pad-stride", "upconv", "conv1d", "mlp", "token-mlp", "layer-twice"]
)
def test_bias_shift_is_the_mean_output_difference_over_the_data(name: str) -> None:
    model, calibration = small.model(name), small.calibration(name)
    values = seen_values(name, small.arrays(name, 32))
    for group in model.groups:
        if group.op not in WEIGHTED:
            continue
        node = model.nodes[group.root]
        layer = operator_of(model.program, node.target)
        weight = model.state[group.weight or ""]
        error = 0.1 * np.random.default_rng(0).standard_normal(weight.shape).astype(np.float32)
        x = values[group.inputs[0]]
        without, rounded = (
            layer(x, torch.from_numpy(w), None, *node.args[3:]).numpy() for w in (weight, weight + error)
        )
        axis = channel_axis_of_output(group.op) % without.ndim
        expected = (rounded - without).mean(tuple(d for d in range(without.ndim) if d != axis))
        found = bias_shift(group.op, error, calibration.mean_patches[group.root])
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["depthwise", "token-mlp", "layer-twice"])
def test_correction_takes_the_shift_off_the_bias(name: str) -> None:
    model, calibration = small.model(name), small.calibration(name)
    corrected = quantize_model(model, BY, calibration)
    plain = quantize_model(model, BY, calibration, correct_bias=False)
    for group in model.groups:
        if group.name not in plain.weights:
            continue
        assert np.array_equal(plain.biases[group.name], model.state[group.bias or ""])
        error = plain.weights[group.name].real - model.state[group.weight or ""]
        shift = bias_shift(group.op, error, calibration.mean_patches[group.root])
        np.testing.assert_allclose(corrected.biases[group.name], plain.biases[group.name] - shift, atol=1e-6)


@pytest.mark.parametrize("name", small.SMALL)
@pytest.mark.parametrize("runtime", ["onnxruntime", "litert"])
def test_simulation_stays_near_the_float_model(name: str, runtime: str) -> None:
    model, inputs = small.model(name), small.SMALL[name].example(1, 9)
    quantized = quantize_model(model, small.runtime(runtime), small.calibration(name))
    for want, got in zip(model.run([inputs])[0], simulate(model, quantized, inputs), strict=True):
        assert float((want - got).abs().max()) < 0.05 * float(want.max() - want.min())


def test_simulation_uses_each_calls_own_constants() -> None:
    """The same arithmetic, written out."""
    model, (image,) = small.model("layer-twice"), small.SMALL["layer-twice"].example(2, 3)
    q = quantize_model(model, BY, small.calibration("layer-twice"))
    groups = {g.name: g for g in model.groups}

    def rounded(node: str, x: torch.Tensor) -> torch.Tensor:
        return fake_quantize(x, q.activations[node].q) if node in q.activations else x

    def layer(name: str, x: torch.Tensor, padding: int) -> torch.Tensor:
        weight, bias = torch.from_numpy(q.weights[name].real), torch.from_numpy(q.biases[name])
        return torch.nn.functional.conv2d(x, weight, bias, padding=padding)

    x = rounded(model.input_nodes[0], image)
    x = rounded(groups["stem"].output, layer("stem", x, 0).relu())
    x = rounded(groups["layer"].output, layer("layer", x, 1).relu())
    x = rounded("mul_8", x * 3.0)
    x = rounded(groups["layer#2"].output, layer("layer#2", x, 1).relu())
    x = rounded(groups["head"].output, layer("head", x, 0))
    assert torch.allclose(simulate(model, q, [image])[0], x, atol=1e-6)


def test_a_channel_of_tiny_weights_and_a_big_bias_keeps_its_bias() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
    with torch.no_grad():
        net[0].weight[1] = 1e-9
        net[0].bias[1] = 500.0
    from edgeq.calibration.calibrate import calibrate
    from edgeq.frontends.load import load
    from edgeq.numerics.weights import quantize_bias

    x = torch.randn(16, 4)
    model = load(net, example=(x,))
    q = quantize_model(model, BY, calibrate(model, {model.inputs[0].name: x.numpy()}))
    first = model.groups[0]
    integers = quantize_bias(q.biases[first.name], q.activations[first.inputs[0]].q.scale, q.weights[first.name].q)
    assert int(np.abs(integers).max()) <= BIAS_HEADROOM * 1.0001
    assert float(integers[1]) * float(q.activations[first.inputs[0]].q.scale) * float(
        q.weights[first.name].q.scale[1]
    ) == pytest.approx(500.0, rel=1e-6)


def test_named_estimators_and_prescribed_outputs_are_obeyed() -> None:
    model, calibration = small.model("activations"), small.calibration("activations")
    q = quantize_model(model, small.runtime("litert"), calibration, estimator="min-max")
    sigmoid = next(g.output for g in model.groups if g.activation_op == "sigmoid")
    for node, tensor in q.activations.items():
        if node == sigmoid:
            assert tensor.estimator == "fixed"
            assert (float(tensor.q.scale), int(tensor.q.zero_point)) == (1 / 256, -128)
        else:
            assert tensor.estimator == "min-max"
            assert (tensor.low, tensor.high) == (calibration.histograms[node].low, calibration.histograms[node].high)


def test_ends_keep_their_extremes_and_the_rest_follows_the_impact() -> None:
    model, calibration = small.model("residual"), small.calibration("residual")
    data = small.arrays("residual", 16)
    impact = measure_impact(model, data, calibration.histograms, calibration.histograms)
    q = quantize_model(model, BY, calibration, impact)
    for node, tensor in q.activations.items():
        histogram = calibration.histograms[node]
        if node in (*model.input_nodes, *model.output_nodes):
            assert (tensor.estimator, tensor.low, tensor.high) == ("min-max", histogram.low, histogram.high)
        else:
            full = quantize_model(model, BY, calibration, estimator="min-max").activations[node]
            assert impact.of([node], tensor.q) <= impact.of([node], full.q)


@pytest.mark.parametrize("name", ["split-shuffle", "attention", "two-outputs", "constant-branch"])
def test_the_plan_and_the_layer_table_say_what_is_stored(name: str) -> None:
    model, quantized = small.model(name), small.quantized(name, BY)
    plan = describe(model, quantized, target="x86-avx512", data_hash="0" * 64)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert [layer.name for layer in plan.layers] == [g.name for g in model.groups]
    for layer in plan.layers:
        stored = quantized.weights.get(layer.name)
        assert (layer.weight is None) == (stored is None)
        if stored is not None and layer.weight is not None:
            both = stored.integers.tobytes() + stored.q.scale.tobytes()
            assert layer.weight.sha256 == hashlib.sha256(both).hexdigest()
    data = make_dataset(small.arrays(name, 4), model.inputs, labels=None, source="memory")
    rows = layer_table(model, quantized, data)
    assert [row.name for row in rows] == [g.name for g in model.groups]
    for row in rows:
        assert row.precision == ("integer" if row.name in quantized.assignment.kernels else "float32")
        assert row.simulated_sqnr_db is None or row.simulated_sqnr_db > 15
    assert any(row.simulated_sqnr_db is not None for row in rows)


def test_integers_do_not_depend_on_the_order_or_batching_of_samples() -> None:
    model, data = small.model("depthwise"), small.arrays("depthwise", 32)
    from edgeq.calibration.calibrate import calibrate

    first = quantize_model(model, BY, calibrate(model, data))
    turned = quantize_model(model, BY, calibrate(model, {k: np.ascontiguousarray(v[::-1]) for k, v in data.items()}))
    for name, weight in first.weights.items():
        assert np.array_equal(weight.integers, turned.weights[name].integers)
    for node, tensor in first.activations.items():
        assert float(tensor.q.scale) == pytest.approx(float(turned.activations[node].q.scale), rel=1e-3)
