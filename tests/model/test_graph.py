"""Normalised graphs answer as the modules do, and their layers are found as a device sees them."""

from __future__ import annotations

import pytest
import small_models as small
import torch
import torch.nn.functional as F
from torch import nn

from edgeq.frontends.load import load
from edgeq.model.graph import Node, Value
from edgeq.model.groups import Group
from edgeq.model.ops import WEIGHTED

NAMES = list(small.SMALL)


def answers(name: str, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    with torch.no_grad():
        found = small.module(name)(*inputs)
    return list(found.values()) if isinstance(found, dict) else [found]


def group(name: str, which: str) -> Group:
    return next(g for g in small.model(name).groups if g.name == which)


@pytest.mark.parametrize("name", NAMES)
def test_normalised_graphs_answer_as_the_module_does(name: str) -> None:
    model = small.model(name)
    for seed in range(3):
        inputs = small.SMALL[name].example(1 if small.SMALL[name].static else 3, seed)
        for want, got in zip(answers(name, inputs), model.run([inputs])[0], strict=True):
            assert torch.allclose(want, got, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_training_is_left(name: str) -> None:
    model = small.model(name)
    targets = [node.target for node in model.program.nodes if node.op == "call_function"]
    assert "operator.getitem" not in targets
    for target in targets:
        assert not any(word in str(target) for word in ("batch_norm", "dropout", "clone", "_.default", "assert"))
    for node in model.program.nodes:
        if any(g.root == node.name and g.op in WEIGHTED for g in model.groups):
            bias = model.nodes[node.args[2].name]
            assert bias.op == "placeholder"


@pytest.mark.parametrize("name", ["depthwise", "layer-twice", "norm-first", "split-shuffle-batch-1"])
def test_names_are_unique_and_stay_between_runs(name: str) -> None:
    first, again = small.model(name), small.load_anew(name)
    assert first.groups == again.groups
    assert list(first.nodes) == list(again.nodes)
    names = [g.name for g in first.groups]
    assert len(set(names)) == len(names)
    assert first.sha256 == again.sha256


@pytest.mark.parametrize("name", NAMES)
def test_every_computation_is_in_exactly_one_group(name: str) -> None:
    model = small.model(name)
    members = [member for g in model.groups for member in g.members]
    computed = [node.name for node in model.program.nodes if node.op == "call_function"]
    assert sorted(members) == sorted(set(members))
    assert set(members) <= set(computed)
    # what is in no group handles shapes
    for node in set(computed) - set(members):
        assert not isinstance(model.nodes[node].value, Value)
    for g in model.groups:
        if g.op in WEIGHTED and g.inputs:
            weight, bias = (model.state[n or ""] for n in (g.weight, g.bias))
            assert g.parameters == weight.size + bias.size


def test_each_layer_owns_its_constants() -> None:
    for name in ("layer-twice", "shared-weight", "shared-without-norm"):
        owned = [c for g in small.model(name).groups for c in (g.weight, g.bias) if c]
        assert len(set(owned)) == len(owned)
    assert group("layer-twice", "layer#2").weight == "layer#2.weight"


def test_a_weight_that_an_embedding_shares_is_copied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
            self.head.weight, self.norm = self.embed.weight, nn.BatchNorm1d(9)
            self.norm.running_mean.fill_(0.5)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.norm(self.head(self.embed(tokens).mean(1)))

    net, tokens = Tied().eval(), torch.arange(6).reshape(2, 3)
    model = load(net, example=(tokens,))
    assert torch.allclose(model.run([[tokens]])[0][0], net(tokens), atol=1e-6)
    (head,) = [g for g in model.groups if g.op == "linear"]
    readers = [n for n in model.program.nodes if n.op == "call_function" and "embedding" in str(n.target)]
    assert model.program.lifted[readers[0].args[0].name] != head.weight


def test_biases_that_layers_share_are_folded_apart() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.b.bias = self.a.bias
            self.norm = nn.BatchNorm2d(3)
            self.norm.running_mean.copy_(torch.tensor([1.0, -2.0, 3.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(F.relu(self.norm(self.a(x))))

    net, x = Shared().eval(), torch.randn(2, 3, 4, 4)
    assert torch.allclose(load(net, example=(x,)).run([[x]])[0][0], net(x), atol=1e-5)


def test_activations_join_the_operator_that_they_alone_read() -> None:
    assert group("residual", "stem").activation_op == "relu"
    assert group("residual", "inner").activation is None
    add = next(g for g in small.model("residual").groups if g.op == "add")
    assert add.activation_op == "relu" and add.output == add.activation and len(add.members) == 2
    # the value before the activation leaves the model
    assert group("two-outputs", "boxes").activation is None
    assert [g.activation_op for g in small.model("activations").groups] == ["hardswish", "silu", None, "sigmoid"]


@pytest.mark.parametrize(
    ("name", "layer", "op", "macs"),
    [
        ("conv-norm-relu6", "conv", "conv2d", 8 * 4 * 4 * 3 * 9),
        ("depthwise", "depthwise", "depthwise_conv2d", 8 * 8 * 8 * 9),
        ("grouped", "grouped", "conv2d", 8 * 6 * 6 * 4 * 9),
        ("upconv", "up", "conv_transpose2d", 8 * 4 * 4 * 6 * 4),
        ("upconv", "grouped", "conv_transpose2d", 6 * 8 * 8 * 2 * 9),
        ("conv1d", "conv", "conv1d", 8 * 10 * 4 * 3),
        ("mlp", "first", "linear", 12 * 16),
        ("token-mlp", "first", "linear", 7 * 12 * 16),
        ("attention", "matmul", "matmul", 7 * 7 * 12),
    ],
)
def test_macs_are_those_counted_by_hand(name: str, layer: str, op: str, macs: int) -> None:
    found = group(name, layer)
    assert (found.op, found.macs) == (op, macs)


def test_the_models_macs_and_parameters() -> None:
    model = small.model("mlp")
    assert model.macs == 12 * 16 + 16 * 5
    assert model.parameters == 12 * 16 + 16 + 16 * 5 + 5


@pytest.mark.parametrize("name", NAMES)
def test_small_models_take_batches_where_theirs_is_free(name: str) -> None:
    assert small.model(name).batchable is not small.SMALL[name].static


class MixesSamples(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0, keepdim=True)


class OneOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.token, x], 1)


class Flattens(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1)[:4]


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    ("net", "shape"),
    [(MixesSamples(), (4,)), (OneOnly(), (3, 5)), (Flattens(), (6,))],
)
def test_models_that_mix_samples_take_one_at_a_time(net: nn.Module, shape: tuple[int, ...], static: bool) -> None:
    torch.manual_seed(0)
    one, two = torch.randn(1, *shape), torch.randn(2, *shape)
    if static or isinstance(net, OneOnly):
        assert not load(torch.export.export(net.eval(), (one,))).batchable
    else:
        model = load(net.eval(), example=(two,))
        assert not model.batchable


def test_an_input_without_a_batch_is_one_sample() -> None:
    net = nn.Linear(3, 2).eval()
    model = load(torch.export.export(net, (torch.randn(4, 3),)))
    assert not model.batchable and not model.inputs[0].batched


def test_batches_run_in_step_give_what_they_give_alone() -> None:
    model = small.model("split-shuffle")
    one, three = (small.SMALL["split-shuffle"].example(n, n) for n in (1, 3))
    together = model.run([one, three])
    for inputs, outputs in zip((one, three), together, strict=True):
        assert torch.equal(model.run([inputs])[0][0], outputs[0])
    assert torch.allclose(together[1][0], answers("split-shuffle", three)[0], atol=1e-5)


def test_hooks_see_every_value_and_may_replace_it() -> None:
    model, (x,) = small.model("mlp"), small.SMALL["mlp"].example(2)
    seen: list[str] = []

    def zero(node: Node, values: list[torch.Tensor]) -> list[torch.Tensor]:
        seen.append(node.name)
        return [torch.zeros_like(v) for v in values] if "relu" in node.name else values

    (out,) = model.run([[x]], zero)[0]
    bias = dict(small.module("mlp").named_parameters())["second.bias"]
    assert torch.allclose(out, bias.expand_as(out))
    assert seen[0] == "features" and set(seen) >= {m for g in model.groups for m in g.members}


@pytest.mark.parametrize("shape", [(2, 7, 6), (2, 6, 6)])
def test_norms_whose_channels_are_not_the_layers_stay_apart(shape: tuple[int, int, int]) -> None:
    """Even where the sizes agree."""

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(shape[1])
            self.norm.running_var.copy_(torch.linspace(0.5, 4, shape[1]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.first(x))

    net, x = Norm().eval(), torch.randn(shape)
    assert torch.allclose(load(net, example=(x,)).run([[x]])[0][0], net(x), atol=1e-5)


class EndsIn(nn.Module):
    """What leaves the model is folded away or split."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.layer, self.norm, self.drop = how, nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout()
        self.norm.running_mean.fill_(0.25)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        x = self.layer(x)
        match self.how:
            case "norm":
                return self.norm(x)
            case "norm of a sum":
                return self.norm(x + 1)
            case "dropout":
                return self.drop(x)
            case "pieces":
                return x.chunk(2, 1)
            case _:
                return self.drop(x), x.clone()


@pytest.mark.parametrize("how", ["norm", "norm of a sum", "dropout", "pieces", "one value twice"])
def test_what_leaves_the_model_may_be_folded_away(how: str) -> None:
    net, x = EndsIn(how).eval(), torch.randn(2, 6)
    model, wanted = load(net, example=(x,)), net(x)
    found = model.run([[x]])[0]
    assert len(found) == len(model.output_names) == len(model.output_nodes)
    for want, got in zip(wanted if isinstance(wanted, tuple) else (wanted,), found, strict=True):
        assert torch.allclose(want, got, atol=1e-6)


class Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.lstm = torch.nn.GRU(6, 4, batch_first=True), torch.nn.LSTM(4, 5, bidirectional=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.gru(x)
        z, _ = self.lstm(y.transpose(0, 1))
        z = z.transpose(0, 1)[:, None]
        return torch.nn.functional.scaled_dot_product_attention(z, z, z)


def test_recurrent_layers_and_attention_have_multiply_accumulates() -> None:
    model = load(Recurrent().eval(), example=(torch.randn(1, 7, 6),))
    gru, lstm, attention = (g for g in model.groups if g.macs)
    assert gru.macs == 7 * (3 * 4 * 6 + 3 * 4 * 4)
    assert lstm.macs == 7 * 2 * (4 * 5 * 4 + 4 * 5 * 5)
    assert attention.macs == 2 * 7 * 7 * 10
