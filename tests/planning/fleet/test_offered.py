"""Which artefacts one runtime makes and another runs natively, by what target files say."""

from __future__ import annotations

from itertools import product

import pytest
import small_models as small

from edgeq.lowering.assign import FLOAT, writes_integers
from edgeq.lowering.choices import ladder, uniform
from edgeq.methods.quantize import quantize_model
from edgeq.planning.fleet.offered import offered_too, refusal, takes
from edgeq.registry.load import load_target, target_names
from edgeq.registry.schema import Kernel, Runtime

SHIPPED = [k for name in target_names() for r in load_target(name).runtimes for k in r.kernels]


def kernel(**changes: object) -> Kernel:
    return Kernel.model_validate(
        {"ops": ["linear"], "activations": "uint8", "weights": "int8", "bias": "int32", "source": "a test"} | changes
    )


VARIANTS = [
    kernel(weight_bits=bits, weight_narrow=narrow, weight_symmetry=symmetry, weight_granularity=grain, power_of_two=two)
    for bits, narrow, symmetry, grain, two in product(
        (None, 7), (False, True), ("symmetric", "asymmetric"), ("tensor", "channel"), (False, True)
    )
]


def test_every_kernel_takes_what_was_made_for_it() -> None:
    assert SHIPPED and all(takes(one, one) for one in SHIPPED + VARIANTS)


def test_what_two_kernels_take_in_turn_the_last_takes_from_the_first() -> None:
    pairs = {(a, b) for a, b in product(range(len(VARIANTS)), repeat=2) if takes(VARIANTS[a], VARIANTS[b])}
    assert len(pairs) > len(VARIANTS)
    assert all((a, c) in pairs for a, b in pairs for x, c in pairs if b == x)


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ({}, {"weight_bits": 7}),
        ({"weight_narrow": True}, {"weight_bits": 7}),
        ({}, {"weight_narrow": True}),
        ({"weight_symmetry": "asymmetric"}, {}),
        ({}, {"activation_symmetry": "symmetric"}),
        ({}, {"power_of_two": True}),
    ],
)
def test_a_narrow_scheme_fits_a_wide_one_and_not_the_other_way_round(
    wide: dict[str, object], narrow: dict[str, object]
) -> None:
    assert takes(kernel(**wide), kernel(**narrow))
    assert not takes(kernel(**narrow), kernel(**wide))


@pytest.mark.parametrize(
    "other",
    [
        {"weights": "int4"},
        {"activations": "int8"},
        {"bias": "float32"},
        {"weight_granularity": "tensor"},
        {"weights": None},
    ],
)
def test_other_types_fit_neither_way(other: dict[str, object]) -> None:
    assert not takes(kernel(), kernel(**other)) and not takes(kernel(**other), kernel())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "litert"])
@pytest.mark.parametrize("name", ["residual", "two-outputs", "gate"])
def test_a_runtime_offers_all_of_its_own_choices(name: str, runtime: str) -> None:
    by = small.runtime(runtime)
    options = ladder(small.model(name), by, small.calibration(name).histograms)
    assert offered_too(small.model(name), by, by, options) == options


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_weights_of_seven_bits_serve_both_kinds_of_cpu(runtime: str) -> None:
    model = small.model("residual")
    with_vnni, without = small.runtime(runtime), small.runtime(runtime, "x86-avx2")
    own = ladder(model, without, small.calibration("residual").histograms)
    assert offered_too(model, without, with_vnni, own) == own
    back = offered_too(model, with_vnni, without, ladder(model, with_vnni, small.calibration("residual").histograms))
    weighted = [group.name for group in model.groups if group.weight]
    assert weighted and all("w8a8" not in back[name] and FLOAT in back[name] for name in weighted)
    assert all("w4a8" in back[name] for name in weighted)
    # what the files hold says the same
    for by, fits in ((without, True), (with_vnni, False)):
        quantized = quantize_model(model, by, small.calibration("residual"), choices=uniform(own))
        limit = without.kernel("linear").weight_scheme  # type: ignore[union-attr]
        assert limit is not None
        integers = [w.integers for w in quantized.weights.values()]
        inside = all(limit.quant_min <= int(i.min()) and int(i.max()) <= limit.quant_max for i in integers)
        assert inside is fits


def changed(by: Runtime, **changes: object) -> Runtime:
    return by.model_copy(update=changes)


def test_a_kernel_that_is_missing_leaves_float() -> None:
    model, by = small.model("residual"), small.runtime("onnxruntime")
    options = ladder(model, by, small.calibration("residual").histograms)
    poorer = changed(by, kernels=[k for k in by.kernels if "add" not in k.ops])
    left = offered_too(model, by, poorer, options)
    for group in model.groups:
        assert left[group.name] == ((FLOAT,) if group.op == "add" else options[group.name])


def test_a_runtime_that_cannot_write_float_takes_no_layer_that_does() -> None:
    model, by = small.model("residual"), small.runtime("openvino")
    options = ladder(model, by, small.calibration("residual").histograms)
    rounding = changed(by, float_outputs=[])
    ends = {g.name for g in model.groups if g.weight and not writes_integers(model, by, g)}
    left = offered_too(model, by, rounding, options)
    assert ends and all((left[name] == (FLOAT,)) == (name in ends) for name in left if options[name] != (FLOAT,))
    back = offered_too(model, rounding, by, options)
    assert back == options


def test_activations_run_as_they_are_in_the_file() -> None:
    model, by = small.model("conv-norm-relu6"), small.runtime("onnxruntime")
    options = ladder(model, by, small.calibration("conv-norm-relu6").histograms)
    apart = changed(by, fused_activations=["relu"])
    left = offered_too(model, by, apart, options)
    fused = [g.name for g in model.groups if g.activation_op == "relu6"]
    assert fused and all(left[name] == (FLOAT,) for name in fused)


def test_a_float_layer_is_protected_only_where_the_runtime_would_round_it() -> None:
    model, by = small.model("residual"), small.runtime("onnxruntime")
    options = ladder(model, by, small.calibration("residual").histograms)
    left = offered_too(model, changed(by, rounds_float_layers=False), by, options)
    assert all((FLOAT in left[g.name]) == (g.weight is None) for g in model.groups)


def test_formats_ends_and_precision_come_first() -> None:
    by = small.runtime("onnxruntime")
    assert refusal(by, by) == ""
    assert "tflite" in refusal(by, small.runtime("litert"))
    assert "integer" in refusal(by, changed(by, io="integer"))
    assert "bfloat16" in refusal(by, by, "bfloat16")
    wide = small.runtime("openvino")
    assert refusal(wide, wide, "bfloat16") == ""
