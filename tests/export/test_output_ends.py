"""Outputs of every kind in ONNX and OpenVINO files: integers, truth values, repeated, inputs, constants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models as small
import torch
from test_onnx import RUN
from torch import nn

from edgeq.calibration.calibrate import calibrate
from edgeq.errors import UnsupportedError
from edgeq.export.artifact import Exporter
from edgeq.export.audit import audit
from edgeq.export.onnx_convert import _export
from edgeq.export.onnx_match import match, same
from edgeq.frontends.load import load
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.numerics import sqnr_db


class EveryOutput(nn.Module):
    """What a network can return, in one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.register_buffer("anchors", torch.arange(3.0))

    def forward(self, image: torch.Tensor) -> dict[object, object]:
        features = torch.relu(self.body(image))
        scores = self.head(features.mean((2, 3)))
        values, indices = scores.softmax(-1).topk(2)
        return {
            0: features,
            1: features,
            "image": image,
            "anchors": self.anchors,
            "same": scores / 1.0,
            "scores": scores,
            "class": scores.argmax(-1),
            "sure": scores > 0,
            "top": (values, indices),
            "double": features * 2,
        }


NAMES = ["0", "1", "image_2", "anchors", "same", "scores", "class", "sure", "getitem", "getitem_1", "double"]


def samples(count: int) -> torch.Tensor:
    return torch.randn((count, 3, 8, 8), generator=torch.Generator().manual_seed(count))


@pytest.fixture(scope="module")
def everything() -> Model:
    torch.manual_seed(3)
    return load(EveryOutput().eval(), example=(samples(2),))


@pytest.fixture(scope="module")
def exporter(everything: Model, tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    return Exporter(everything, tmp_path_factory.mktemp("outputs"))


@pytest.mark.parametrize("io", ["float", "integer"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_outputs_of_every_kind_keep_order_name_and_value(
    runtime: str, io: str, everything: Model, exporter: Exporter, tmp_path: Path
) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    by = small.exact_here(small.runtime(runtime, io=io))
    quantized = quantize_model(everything, by, calibrate(everything, {"image": samples(64).numpy()}))
    path = exporter.write(quantized, tmp_path)[0]
    audit(everything, quantized, exporter.read_back(quantized, path))
    assert list(everything.output_names) == NAMES
    if runtime == "onnxruntime":
        proto = onnx.load(path)
        onnx.checker.check_model(proto, full_check=True)
        assert [o.name for o in proto.graph.output] == NAMES
    else:
        import openvino

        read = openvino.Core().read_model(path)
        assert all(name in port.get_names() for name, port in zip(NAMES, read.outputs, strict=True))
    if io == "integer":
        return  # types at the ends are those of the plan; the values are told by its scales
    image = samples(1)
    want = [x.numpy() for x in everything.run([[image]])[0]]
    for name, real, got in zip(NAMES, want, RUN[runtime](path, [image]), strict=True):
        assert got.shape == real.shape and got.dtype.kind == real.dtype.kind, name
        if real.dtype.kind == "f":
            assert np.linalg.norm(got - real) <= 0.03 * np.linalg.norm(real), name
        else:
            assert np.mean(got == real) >= 0.5, name


def test_integer_ends_are_integers_for_copies_too(everything: Model, exporter: Exporter, tmp_path: Path) -> None:
    by = small.runtime("onnxruntime", io="integer")
    quantized = quantize_model(everything, by, calibrate(everything, {"image": samples(64).numpy()}))
    graph = onnx.load(exporter.write(quantized, tmp_path)[0]).graph
    kinds = {o.name: o.type.tensor_type.elem_type for o in graph.output}
    assert kinds["0"] == kinds["1"] != onnx.TensorProto.FLOAT
    assert kinds["image_2"] == graph.input[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT


def test_values_that_are_equal_are_told_by_their_place(everything: Model) -> None:
    exported = _export(everything)
    found = match(everything, exported)
    assert len(set(found.values())) == len(found)
    makers = {str(v.name): node.op_type for node in exported.graph for v in node.outputs}
    nodes = everything.nodes
    for node, name in found.items():
        if nodes[node].target in ("aten.conv2d.default", "aten.relu.default", "aten.linear.default"):
            assert makers[name] == {"conv2d": "Conv", "relu": "Relu", "linear": "Gemm"}[node.split("_")[0]]


class Saturated(nn.Module):
    """Rectified where everything is positive: three nodes have the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        nn.init.constant_(self.conv.bias, 100.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return torch.relu(x).abs() * 2


def test_activations_that_change_nothing_on_the_samples_are_told_apart() -> None:
    torch.manual_seed(0)
    model = load(Saturated().eval(), example=(samples(2),))
    exported = _export(model)
    found = match(model, exported)
    makers = {str(v.name): node.op_type for node in exported.graph for v in node.outputs}
    kinds = [makers[found[n.name]] for n in model.program.nodes if n.op == "call_function"]
    assert kinds == ["Conv", "Relu", "Abs", "Mul"]


def test_a_file_that_computes_something_else_is_refused(everything: Model) -> None:
    exported = _export(everything)
    weight = exported.graph.initializers["head.weight"]
    assert weight.const_value is not None
    import onnx_ir as ir

    weight.const_value = ir.tensor(weight.const_value.numpy() * 1.01, name="head.weight")
    with pytest.raises(UnsupportedError, match="changed what the model computes"):
        match(everything, exported)


def test_sameness_goes_by_the_power_of_the_values() -> None:
    real = np.random.default_rng(0).normal(0, 1e-4, 1000).astype(np.float32)
    assert same(real, real * np.float32(1.0001)) and not same(real, real * np.float32(1.01) + np.float32(3e-6))
    masked = np.array([np.finfo(np.float32).min, 1.0, -np.inf, np.nan], np.float32)
    assert same(masked, masked.copy()) and not same(masked, np.nan_to_num(masked))
    assert same(np.arange(5), np.arange(5)) and not same(np.arange(5), np.arange(5) + 1)
    assert not same(np.arange(5), np.arange(5, dtype=np.float32))
    assert same(np.zeros(9, np.float32), np.full(9, 1e-7, np.float32))


class Attention(nn.Module):
    """With or without heads, a scale and a mask."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.qkv = kind, nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        mask: torch.Tensor | None = None
        if self.kind != "causal":
            mask = torch.ones(5, 5, dtype=torch.bool).tril(1)
        if self.kind == "float":
            assert mask is not None
            mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
        if self.kind == "by sample":
            assert mask is not None
            mask = mask & (x[:, :, :1] > -1).transpose(1, 2) | torch.eye(5, dtype=torch.bool)
        if self.kind == "heads":
            q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k, v))
        if self.kind == "one sample":
            q, k, v = q[0], k[0], v[0]
        y = nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=self.kind == "causal", scale=0.7
        )
        return y.transpose(1, 2).flatten(2) if self.kind == "heads" else y


@pytest.mark.parametrize("kind", ["causal", "bool", "float", "by sample", "one sample", "heads"])
def test_attention_is_exported_without_heads_too(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 5, 8)
    model = load(Attention(kind).eval(), example=(x,))
    (found,) = RUN["onnxruntime"](Exporter(model, tmp_path).float_model("onnx")[0], [x])
    assert np.allclose(found, model.run([[x]])[0][0].numpy(), atol=1e-5)


class PaddingMask(nn.Module):
    """A transformer's layer that is told which of its tokens are only padding."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, tokens: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(tokens, src_key_padding_mask=padding)
        return result


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_padding_mask_stays_out_of_the_integers(runtime: str, tmp_path: Path) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    torch.manual_seed(0)
    tokens = torch.randn(32, 5, 8)
    padding = torch.arange(5) >= torch.randint(1, 6, (32, 1))
    model = load(PaddingMask().eval(), example=(tokens[:2], padding[:2]))
    by = small.exact_here(small.runtime(runtime))
    quantized = quantize_model(model, by, calibrate(model, {"tokens": tokens.numpy(), "padding": padding.numpy()}))
    assert sum(group.op == "linear" and group.name in quantized.weights for group in model.groups) == 4
    path = Exporter(model, tmp_path / "work").write(quantized, tmp_path)[0]
    (wanted,) = model.run([[tokens[:8], padding[:8]]])[0]
    (got,) = RUN[runtime](path, (tokens[:8], padding[:8]))
    assert sqnr_db(wanted.numpy(), got) > 30


class Padded(nn.Module):
    """Attention that hides the tokens whose first number is negative."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = (x[:, :, 0] >= 0)[:, None, None]
        q = x[:, None]
        return nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=seen)[:, 0]


@pytest.mark.parametrize("form", ["onnx", "tflite"])
def test_a_mask_that_hides_everything_is_told(form: str, tmp_path: Path) -> None:
    if form == "tflite":
        pytest.importorskip("litert_torch")
    x = torch.randn(1, 5, 8)
    x[:, :, 0] = -1
    hidden = load(torch.export.export(Padded().eval(), (x,)))
    with pytest.raises(UnsupportedError, match="hides every key") as caught:
        Exporter(hidden, tmp_path).float_model(form)
    assert caught.value.where == "layer scaled_dot_product_attention"
