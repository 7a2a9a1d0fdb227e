"""Which layers run on integers, which stay in float and why, and which tensors share a scale."""

from __future__ import annotations

import pytest
import small_models as small
import torch
import torch.nn.functional as F
from torch import nn

from edgeq.calibration.histogram import Histogram
from edgeq.frontends.load import load
from edgeq.lowering.assign import WIDEST_SHARE, Assignment, assign
from edgeq.methods.quantize import quantize_model
from edgeq.model.graph import Node
from edgeq.model.model import Model
from edgeq.registry.schema import Runtime


def assigned(name: str, by: Runtime) -> Assignment:
    return assign(small.model(name), by, small.calibration(name).histograms)


def named(net: nn.Module, **inputs: torch.Tensor) -> tuple[Model, dict[str, Histogram]]:
    model = load(net.eval(), example=tuple(inputs.values()))
    histograms: dict[str, Histogram] = {}

    def observe(node: Node, values: list[torch.Tensor]) -> list[torch.Tensor]:
        histograms.setdefault(node.name, Histogram()).add(values[0])
        return values

    model.run([list(inputs.values())], observe)
    return model, histograms


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "litert"])
@pytest.mark.parametrize("name", small.SMALL)
def test_every_layer_has_a_reason_and_kernels_quantize_what_they_read(name: str, runtime: str) -> None:
    by = small.runtime(runtime)
    model, found = small.model(name), assigned(name, by)
    assert set(found.reasons) == {g.name for g in model.groups}
    assert all(found.reasons.values())
    for group in model.groups:
        kernel = found.kernels.get(group.name)
        if kernel is None:
            assert f"{by.name} has an integer kernel" not in found.reasons[group.name]
            continue
        assert kernel == by.kernel(group.op)
        assert set(group.inputs) <= set(found.tensors)
    assert {found.tensors[s] for s in found.tensors} <= set(found.schemes)


def test_operators_without_a_kernel_stay_in_float() -> None:
    found = assigned("attention", small.runtime("onnxruntime"))
    assert "norm" not in found.kernels
    assert found.reasons["norm"] == "onnxruntime has no integer kernel for layer_norm"
    assert found.reasons["add"] == "one side is a constant"
    found = assigned("attention", small.runtime("litert"))
    assert "softmax" not in found.kernels and found.reasons["softmax"] == "nothing in front of it runs on integers"


def test_a_grouped_transposed_convolution_stays_in_float() -> None:
    found = assigned("upconv", small.runtime("litert"))
    assert "up" in found.kernels and "grouped" not in found.kernels
    assert "groups" in found.reasons["grouped"]


def test_a_computed_weight_stays_in_float() -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.make.weight * x.mean())

    model, histograms = named(Computed(), x=torch.randn(1, 4))
    found = assign(model, small.runtime("onnxruntime"), histograms)
    (layer,) = [g for g in model.groups if g.op == "linear"]
    assert found.reasons[layer.name] == "its weight is computed, not constant"


def test_what_only_shapes_a_float_output_stays_in_float() -> None:
    by = small.runtime("litert")
    found = assigned("gate", by)
    softmax = next(g for g in small.model("gate").groups if g.op == "softmax")
    assert found.reasons[softmax.name] == "it only shapes a float output of the model"
    # where its kernel can, the linear layer before it writes float
    head = next(g for g in small.model("gate").groups if g.name == "head")
    assert head.output in found.tensors
    by = small.runtime("onnxruntime")
    assert head.output not in assigned("gate", by).tensors
    assert assigned("input-to-end", by).reasons["add"] == "it only shapes a float output of the model"


def test_integer_ends_quantize_every_output() -> None:
    by = small.runtime("onnxruntime", io="integer")
    for name in ("two-inputs", "two-outputs", "mlp", "pools", "norm-first", "norm-over-tokens", "gate"):
        model, found = small.model(name), assigned(name, by)
        assert set(model.input_nodes) | set(model.output_nodes) <= set(found.tensors)


def test_an_activation_without_a_kernel_ends_the_integers() -> None:
    found = assigned("activations", small.runtime("onnxruntime"))
    a = next(g for g in small.model("activations").groups if g.name == "a")
    assert a.root in found.tensors
    assert found.reasons["a"].endswith("its hardswish stays in float")
    fused = assigned("activations", small.runtime("openvino"))
    assert a.root not in fused.tensors and a.output in fused.tensors


def test_operators_that_copy_values_share_one_scale() -> None:
    model, by = small.model("split-shuffle"), small.runtime("onnxruntime")
    found = assigned("split-shuffle", by)
    tied = [g for g in model.groups if g.op in by.shared_scale]
    shares = {found.tensors[n] for g in tied for n in (*g.inputs, g.output)}
    assert len(tied) == 6 and len(shares) == 1
    quantized = quantize_model(model, by, small.calibration("split-shuffle"))
    carried = {(float(quantized.activations[n].q.scale), int(quantized.activations[n].q.zero_point))
               for n, share in found.tensors.items() if share in shares}  # fmt: skip
    assert len(carried) == 1
    highest = max(small.calibration("split-shuffle").histograms[n].high for g in tied for n in g.inputs)
    assert quantized.activations[tied[0].inputs[0]].q.high <= highest * 1.01


class Uneven(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.a, self.b, self.head, self.factor = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 2), factor
        self.b.load_state_dict(self.a.state_dict())
        with torch.no_grad():
            self.b.weight.mul_(factor)
            self.b.bias.mul_(factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], 1))


@pytest.mark.parametrize(("factor", "together"), [(1.0, True), (WIDEST_SHARE * 0.9, True), (WIDEST_SHARE * 1.2, False)])
def test_a_concatenation_of_ranges_too_different_stays_in_float(factor: float, together: bool) -> None:
    torch.manual_seed(0)
    model, histograms = named(Uneven(factor), x=torch.randn(8, 4))
    found = assign(model, small.runtime("onnxruntime"), histograms)
    (concat,) = [g for g in model.groups if g.op == "concat"]
    assert (concat.name in found.kernels) is together
    assert len({found.tensors[n] for n in concat.inputs}) == (1 if together else 2)
    if not together:
        assert "differ too much" in found.reasons[concat.name]
    apart = small.runtime("onnxruntime").model_copy(update={"shared_scale": []})
    alone = assign(model, apart, histograms)
    ends = {*concat.inputs, concat.output}
    assert concat.name in alone.kernels and len({alone.tensors[n] for n in ends}) == len(ends)


def test_a_prescribed_scale_is_not_shared() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.cat([torch.sigmoid(self.a(x)), self.b(x).relu()], 1))

    model, histograms = named(Joined(), x=torch.randn(8, 4))
    by = small.runtime("litert")
    found = assign(model, by, histograms)
    (concat,) = [g for g in model.groups if g.op == "concat"]
    assert "prescribes" in found.reasons[concat.name] and concat.name not in found.kernels


def test_the_sum_of_a_value_with_itself_runs_on_integers() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            return self.head(x + x)

    model, histograms = named(Doubled(), x=torch.randn(8, 4))
    found = assign(model, small.runtime("onnxruntime"), histograms)
    assert next(g.name for g in model.groups if g.op == "add") in found.kernels
