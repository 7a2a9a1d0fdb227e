"""Modules of packed integers: what they hold and answer, against sums by hand in NumPy and PyTorch's own layers."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgeq
from edgeq.errors import UsageError
from edgeq.packed.layers import PackedEmbedding, PackedLinear
from edgeq.packed.weight import PackedWeight

BITS = {"int8": 8, "int4": 4, "int2": 2}


def by_hand(packed: PackedWeight, *, signed: bool) -> Any:
    """float64 [rows, columns], bit by bit from the buffers."""
    bits, group = packed.bits, packed.layout.group
    scale = packed.scale.double().numpy()

    def numbers(buffer: torch.Tensor, count: int) -> Any:
        held = buffer.numpy()
        found = np.zeros((len(held), count), np.int64)
        for column in range(count):
            place = column * bits
            found[:, column] = (held[:, place // 8].astype(np.int64) >> (place % 8)) & ((1 << bits) - 1)
        return found

    whole = numbers(packed.integers, scale.shape[1] * group)
    if packed.zero_point is not None:
        zero = numbers(packed.zero_point, scale.shape[1])
    elif signed and bits == 8:
        whole, zero = np.where(whole > 127, whole - 256, whole), np.zeros(scale.shape, np.int64)
    else:
        zero = np.full(scale.shape, 1 << (bits - 1))
    return ((whole - zero.repeat(group, 1)) * scale.repeat(group, 1))[:, : packed.shape[1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("weights", BITS)
def test_a_layer_answers_what_its_integers_say(weights: str, symmetric: bool, dtype: torch.dtype) -> None:
    """Rows of 75 numbers end in a group of 11."""
    torch.manual_seed(0)
    layer = nn.Linear(75, 30).to(dtype)
    packed = edgeq.quantize(layer, weights, 32, symmetric=symmetric)
    assert isinstance(packed, PackedLinear)
    real = by_hand(packed.packed, signed=symmetric)
    kept = torch.from_numpy(real).to(dtype)
    assert torch.equal(packed.weight, kept)
    # half a step where integers reach the largest; two bits cut it off
    step = packed.packed.scale.double().repeat_interleave(32, 1)[:, :75]
    off = (layer.weight.detach().double() - torch.from_numpy(real)).abs() / step
    assert off.max() < {8: 0.52, 4: 0.53, 2: 3}[BITS[weights]] or dtype == torch.bfloat16
    assert (off < 0.52).double().mean() > 0.7
    x = torch.randn(2, 5, 75, dtype=dtype)
    wanted = nn.functional.linear(x, kept) + layer.bias
    assert torch.allclose(packed(x), wanted, atol=1e-2 if dtype == torch.bfloat16 else 2e-3)


@pytest.mark.parametrize("method", ["nearest", "hqq"])
def test_the_report_counts_bytes_and_errors(method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 96, bias=False), nn.ReLU(), nn.Linear(96, 10)).half()
    packed = edgeq.quantize(model, "int4", 32, method=method, skip="2")
    report = edgeq.packed_report(packed)
    (layer,) = report.layers
    # half a byte a number, and two a scale
    assert layer.bytes_after == 96 * 128 // 2 + 96 * 4 * 2
    assert layer.bytes_before == 96 * 128 * 2
    assert report.bytes_after == layer.bytes_after + (96 * 10 + 10) * 2
    assert report.bytes_before == sum(one.numel() * 2 for one in model.parameters())
    held = sum(one.numel() * one.element_size() for one in (*packed.parameters(), *packed.buffers()))
    assert report.bytes_after == held
    assert report.left == ("2",) and layer.names == ("0",)
    real, was = by_hand(packed[0].packed, signed=True), model[0].weight.detach().double().numpy()
    assert layer.relative_error == pytest.approx(np.linalg.norm(real - was) / np.linalg.norm(was), rel=1e-5)
    assert 0.02 < layer.relative_error < 0.2


def test_methods_differ_and_fewer_bits_cost_more() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(256, 64)

    def error(*arguments: Any, **more: Any) -> float:
        return edgeq.packed_report(edgeq.quantize(layer, *arguments, **more)).layers[0].relative_error

    assert error("int8") < error("int4") / 10 < error("int2") / 20
    assert error("int4", 32) < error("int4", None)
    assert error("int4", method="hqq") != error("int4")


def test_the_module_stays_as_it_was_unless_it_is_asked_for() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Sequential(nn.Linear(16, 4)))
    before = copy.deepcopy(model.state_dict())
    packed = edgeq.quantize(model)
    assert packed is not model and type(model[0]) is nn.Linear and type(packed[1][0]) is PackedLinear
    with torch.no_grad():
        packed[0].bias += 1
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert edgeq.quantize(model, inplace=True) is model
    assert type(model[0]) is PackedLinear and type(model[1][0]) is PackedLinear


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 24, padding_idx=0)
        self.inner = nn.Linear(24, 24)
        self.again = nn.Linear(24, 24, bias=False)
        self.again.weight = self.inner.weight
        self.head = nn.Linear(24, 50, bias=False)
        self.head.weight = self.words.weight
        self.same = self.inner

    def forward(self, words: torch.Tensor) -> Any:
        return self.head(self.again(self.same(self.words(words))))


@pytest.mark.parametrize("inplace", [True, False])
def test_tied_weights_stay_tied(inplace: bool) -> None:
    torch.manual_seed(0)
    model = Tied()
    words = torch.randint(0, 50, (3, 7))
    plain = model(words)
    packed = edgeq.quantize(copy.deepcopy(model), "int4", 8, embeddings="int8", inplace=inplace)
    assert packed.words.packed is packed.head.packed and packed.words.packed.bits == 8
    assert packed.inner.packed is packed.again.packed and packed.inner.packed.bits == 4
    assert packed.same is packed.inner
    moved = copy.deepcopy(packed).double().half().float()
    assert moved.words.packed is moved.head.packed
    report = edgeq.packed_report(packed)
    assert {one.names for one in report.layers} == {("words", "head"), ("inner", "again")}
    assert report.bytes_before == sum(one.numel() * 4 for one in model.parameters())
    assert report.left == ()
    table, matrix = (torch.from_numpy(by_hand(one.packed, signed=True)).float() for one in (packed.words, packed.inner))
    assert torch.equal(packed.words(words), table[words])
    wanted = (table[words] @ matrix.T + model.inner.bias) @ matrix.T @ table.T
    assert torch.allclose(packed(words), wanted, atol=1e-4)
    assert (packed(words) - plain).norm() < 0.3 * plain.norm()


def test_ends_that_are_tied_to_what_stays_stay() -> None:
    model = Tied()
    packed = edgeq.quantize(model)
    assert type(packed.words) is nn.Embedding and packed.head.weight is packed.words.weight
    assert set(edgeq.packed_report(packed).left) == {"words", "head"}
    skipped = edgeq.quantize(model, embeddings="int8", skip=["aga*"])
    assert skipped.again.weight is skipped.inner.weight


def test_gradients_flow_to_inputs_and_not_to_integers() -> None:
    torch.manual_seed(0)
    packed = edgeq.quantize(nn.Linear(40, 24), "int4", 16)
    matrix = torch.from_numpy(by_hand(packed.packed, signed=True)).float()
    x, other = (torch.ones(3, 2, 40).mul_(torch.arange(40)).div_(40).requires_grad_() for _ in range(2))
    packed(x).square().sum().backward()
    nn.functional.linear(other, matrix, packed.bias.detach()).square().sum().backward()
    assert torch.allclose(x.grad, other.grad, rtol=1e-4, atol=1e-4)
    assert packed.bias.grad is not None
    assert [name for name, _ in packed.named_parameters()] == ["bias"]


def test_nothing_in_float_is_kept_for_the_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever autograd holds is the packed buffers; and parts of rows give what the whole does."""
    torch.manual_seed(0)
    packed = edgeq.quantize(nn.Linear(64, 50, bias=False), "int4", 16, symmetric=False)
    x = torch.randn(4, 64, requires_grad=True)
    whole = packed(x)
    (grad,) = torch.autograd.grad(whole.sum(), x)
    monkeypatch.setattr("edgeq.packed.weight.AT_ONCE", 7 * 64)
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: held.append(one) or one, lambda one: one):
        y = packed(x)
    assert {one.data_ptr() for one in held} == {one.data_ptr() for one in packed.buffers()}
    assert torch.allclose(y, whole, atol=1e-6)
    assert torch.allclose(torch.autograd.grad(y.sum(), x)[0], grad, atol=1e-5)
    assert torch.equal(packed.weight, torch.from_numpy(by_hand(packed.packed, signed=False)).float())


def test_state_pickles_and_copies_come_back() -> None:
    torch.manual_seed(0)
    model, other = Tied(), Tied()
    packed = edgeq.quantize(model, "int2", 8, embeddings="int4", symmetric=False)
    words = torch.randint(0, 50, (2, 9))
    wanted = packed(words)
    loaded = edgeq.quantize(other, "int2", 8, embeddings="int4", symmetric=False)
    assert not torch.equal(loaded(words), wanted)
    file = io.BytesIO()
    torch.save(packed.state_dict(), file)
    file.seek(0)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for again in (loaded, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(again(words), wanted)
        assert again.head.packed is again.words.packed
    with pytest.raises(RuntimeError):
        edgeq.quantize(other, "int4", 8, embeddings="int4", symmetric=False).load_state_dict(packed.state_dict())


def test_other_types_follow_the_input() -> None:
    """Under autocast as PyTorch's own layer, forward and back."""
    torch.manual_seed(0)
    packed = edgeq.quantize(nn.Linear(32, 16), "int8")
    x = torch.randn(4, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = packed(x)
    assert y.dtype in (torch.bfloat16, torch.float32)
    y.float().sum().backward()
    assert x.grad is not None and torch.allclose(x.grad[0], packed.weight.sum(0), atol=0.1)
    assert packed.half()(x.half()).dtype == torch.float16


def test_code_that_reads_weights_of_layers_runs() -> None:
    """The fast path of PyTorch's transformers takes the weights of its layers, and does not call them."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    packed = edgeq.quantize(model, "int8", 32)
    assert type(packed.linear1) is PackedLinear and "self_attn.out_proj" in edgeq.packed_report(packed).left
    x = torch.randn(2, 5, 32)
    with torch.inference_mode():
        fast = packed(x)
        assert (fast - model(x)).abs().max() < 0.05
    assert torch.allclose(fast, packed(x), atol=1e-5)


def test_layers_that_do_more_than_their_type_says_stay() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = nn.Sequential(
        nn.Linear(8, 8), Scaled(8, 8), nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8)
    )
    model[3].register_forward_hook(lambda *_: None)
    packed = edgeq.quantize(model, embeddings="int8")
    assert [type(one) is PackedLinear for one in packed] == [True, False, False, False]
    renormed = nn.Sequential(nn.Embedding(5, 4, max_norm=1.0), nn.Embedding(5, 4))
    packed = edgeq.quantize(renormed, embeddings="int8")
    assert [type(one) is PackedEmbedding for one in packed] == [False, True]


def test_words_beyond_the_table_are_refused() -> None:
    packed = edgeq.quantize(nn.Embedding(5, 4), embeddings="int8")
    for word in (-1, 5):
        with pytest.raises((IndexError, RuntimeError)):
            packed(torch.tensor([word]))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"weights": "int3"}, "int3"),
        ({"embeddings": "float8"}, "float8"),
        ({"group": 0}, "groups of 0"),
        ({"group": 2.5}, "groups of 2.5"),
        ({"method": "gptq"}, "no method 'gptq'"),
        ({"skip": "lm_head"}, "no layer is called 'lm_head'"),
        ({"skip": ["0"]}, "no layer that could be packed"),
    ],
)
def test_wrong_arguments_are_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        edgeq.quantize(nn.Sequential(nn.Linear(8, 8)), **more)


def test_a_module_is_not_half_packed() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        model[1].weight[2, 3] = torch.nan
    with pytest.raises(UsageError, match="not finite"):
        edgeq.quantize(model, inplace=True)
    assert type(model[0]) is nn.Linear
    with pytest.raises(UsageError, match="its own place"):
        edgeq.quantize(nn.Linear(8, 8), inplace=True)


def test_a_language_model_foretells_as_before() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.1,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    words = torch.randint(0, 100, (2, 12))
    packed = edgeq.quantize(model, "int8", 32, embeddings="int8")
    report = edgeq.packed_report(packed)
    assert report.left == () and report.bytes_after < report.bytes_before / 3
    with torch.no_grad():
        wanted = model(words).logits
        assert (packed(words).logits - wanted).norm() < 0.03 * wanted.norm()
        assert packed.generate(words[:1], max_new_tokens=3, do_sample=False).shape == (1, 15)


def test_layers_of_other_kinds_that_stay_float_are_told() -> None:
    conv, norm = torch.nn.Conv1d(8, 8, 3), torch.nn.LayerNorm(8)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), conv, norm)
    assert edgeq.packed_report(edgeq.quantize(model, group=8)).left == ("1",)
