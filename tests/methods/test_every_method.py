"""What holds of every method: its integers can be stored, whatever is asked for."""

from __future__ import annotations

import layer_models as layers
import numpy as np
import pytest
import small_models as small
from typer.testing import CliRunner

from edgeq.cli.app import app
from edgeq.errors import UsageError
from edgeq.methods import METHODS, fits
from edgeq.methods.quantize import quantize_model
from edgeq.numerics import Scheme
from edgeq.numerics.weights import BIAS_HEADROOM, bias_scale

NAMES = tuple(METHODS)
SCHEMES = {
    "int8": Scheme("int8", "symmetric", "channel", narrow=True),
    "int8-tensor": Scheme("int8", "symmetric", "tensor"),
    "7-bit": Scheme("int8", "symmetric", "channel", bits=7),
    "power-of-two": Scheme("int8", "symmetric", "tensor", power_of_two=True),
    "int4": Scheme("int4", "symmetric", "channel"),
    "int4-tensor": Scheme("int4", "symmetric", "tensor"),
    "int4-group": Scheme("int4", "symmetric", "group", group=4),
    "uint4": Scheme("uint4", "asymmetric", "channel"),
    "uint4-group": Scheme("uint4", "asymmetric", "group", group=4),
    "int2": Scheme("int2", "symmetric", "channel"),
    "int2-group": Scheme("int2", "symmetric", "group", group=4),
    "codebook-4": Scheme("uint4", "symmetric", "channel", levels="codebook"),
    "codebook-2": Scheme("uint2", "symmetric", "channel", levels="codebook"),
    "pow2-4": Scheme("uint4", "symmetric", "channel", levels="pow2"),
}
NETWORKS = ["depthwise", "grouped", "upconv", "conv1d", "token-mlp", "layer-twice", "residual-batch-1"]


@pytest.mark.parametrize(("name", "scheme"), [(n, s) for n in NAMES for s in SCHEMES if fits(n, SCHEMES[s])])
def test_integers_can_be_stored(name: str, scheme: str) -> None:
    for network in NETWORKS:
        model, inputs = small.model(network), small.arrays(network, 8)
        for whole_bias in (False, True):
            wanted = SCHEMES[scheme]
            if whole_bias and (wanted.group or wanted.levels or wanted.symmetry == "asymmetric"):
                continue  # such layers have float biases
            some = layers.wanted_of(model, wanted, 1e-9 if whole_bias else None)
            seen = layers.seen_by(small.calibration(network), inputs, some)
            weights = METHODS[name](model, some, seen).weights
            assert set(weights) == {one.layer for one in some}
            for one in some:
                found = weights[one.layer]
                assert found.q.scheme == wanted and found.integers.shape == one.weight.shape
                assert np.issubdtype(found.integers.dtype, np.integer)
                assert wanted.quant_min <= found.integers.min() and found.integers.max() <= wanted.quant_max
                assert (found.levels is None) == (wanted.levels is None)
                assert found.levels is None or found.integers.max() < len(found.levels)
                assert found.q.scale.shape == found.q.zero_point.shape
                assert np.isfinite(found.q.scale).all() and (found.q.scale > 0).all()
                assert wanted.symmetry == "asymmetric" or not found.q.zero_point.any()
                assert not wanted.power_of_two or np.array_equal(
                    np.exp2(np.rint(np.log2(found.q.scale))), found.q.scale
                )
                assert found.real.shape == one.weight.shape and np.isfinite(found.real).all()
                if one.input_scale is not None:
                    steps = np.abs(one.bias) / bias_scale(one.input_scale, found.q).astype(np.float64)
                    assert steps.max() <= BIAS_HEADROOM * (1 + 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_method_does_not_round_to_is_refused(name: str) -> None:
    """In the words of the kernel that was chosen, and with those methods that can."""
    model, inputs = small.model("residual"), small.arrays("residual", 8)
    layer = next(group.name for group in model.groups if group.weight)
    for kernel in ("w8", "w2codebook"):
        scheme = small.runtime("onnxruntime").kernel("conv2d", kernel)
        assert scheme is not None and scheme.weight_scheme is not None
        choices = dict.fromkeys((g.name for g in model.groups), "float32") | {layer: kernel}
        args = (model, small.runtime("onnxruntime"), small.calibration("residual"))
        if fits(name, scheme.weight_scheme):
            made = quantize_model(*args, choices=choices, methods={layer: name}, inputs=inputs, steps=2)
            assert made.methods == {layer: name}
        else:
            with pytest.raises(UsageError, match=f"{name} does not round to") as told:
                quantize_model(*args, choices=choices, methods={layer: name}, inputs=inputs)
            able = told.value.remedy.removeprefix("one of ").split(", ")
            assert "nearest" in able and all(fits(other, scheme.weight_scheme) for other in able)


def test_a_method_that_there_is_not_is_refused_with_its_layer() -> None:
    layer = next(group.name for group in small.model("residual").groups if group.weight)
    with pytest.raises(UsageError, match="no method 'none'") as told:
        quantize_model(
            small.model("residual"),
            small.runtime("onnxruntime"),
            small.calibration("residual"),
            methods={layer: "none"},
        )
    assert told.value.where == f"layer {layer}"


@pytest.mark.parametrize("command", ["deploy", "plan"])
def test_the_command_line_names_them(command: str) -> None:
    text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
    (said,) = [line for line in text.splitlines() if "How all weights are rounded" in line]
    assert all(name in said for name in NAMES)
