"""Programs brought into the form that later stages read: what is constant is computed, and answers stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from edgeq.errors import UnsupportedError
from edgeq.frontends.load import load
from edgeq.model.model import Model
from edgeq.model.passes import normalise

Tensor = torch.Tensor
X = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """One layer, some weights and a function of them."""

    def __init__(self, function: Callable[[Net, Tensor], Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.function, self.layer = function, layer
        self.w, self.b, self.kernel = (nn.Parameter(torch.randn(*s)) for s in ((8, 4), (4,), (5, 6, 3)))
        self.heads = nn.Parameter(torch.randn(8, 2, 3))
        self.register_buffer("seen", torch.zeros(1, 6, 8))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def standardised(n: Net, x: Tensor) -> Tensor:
    return F.conv1d(x, (n.kernel - n.kernel.mean((1, 2), keepdim=True)) / n.kernel.std((1, 2), keepdim=True))


def run(model: Model, x: Tensor) -> Tensor:
    return model.run([[x]])[0][0]


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    ("function", "ops"),
    [
        (lambda n, x: x @ n.w, ["linear"]),
        (lambda n, x: x @ n.w.t().contiguous().t(), ["linear"]),
        (lambda n, x: torch.addmm(n.b, x[:, 0], n.w), ["linear"]),
        (lambda n, x: F.linear(x, n.w.t() * 0.5, n.b * 2), ["linear"]),
        (lambda n, x: x @ torch.cat([n.w, -n.w], 1), ["linear"]),
        (lambda n, x: torch.einsum("btd,de->bte", x, n.w), ["linear"]),
        (lambda n, x: torch.einsum("btd,ed->etb", x, n.w.t()), ["linear"]),
        (lambda n, x: torch.einsum("btd,dhe->bhte", x, n.heads), ["linear"]),
        (lambda n, x: torch.einsum("btd,bsd->bts", x, x), ["matmul"]),
        (lambda n, x: torch.einsum("btd,bsd->b", x, x), None),
        (lambda n, x: torch.einsum("...d,de->...e", x, n.w), ["linear"]),
        (standardised, ["conv1d"]),
    ],
)
def test_products_with_constants_are_layers_with_weights(
    function: Callable[[Net, Tensor], Tensor], ops: list[str] | None, static: bool
) -> None:
    net = Net(function).eval()
    x = X[:1] if static else X
    model = load(torch.export.export(net, (x,))) if static else load(net, example=(x,))
    torch.testing.assert_close(run(model, x), net(x), atol=1e-5, rtol=1e-4)
    found = [group for group in model.groups if group.macs]
    if ops is not None:
        assert [group.op for group in found] == ops
        assert all(group.op == "matmul" or (group.weight and group.bias) for group in found)


def test_names_can_be_those_of_modules() -> None:
    """Exporters unfold the program into modules: below a parameter nothing can be named."""
    net = Net(lambda n, x: (x @ n.w, F.linear(x, n.w.t() * 2) * torch.arange(4).add(1), F.conv1d(x, n.kernel))).eval()
    assert load(net, example=(X,)).exported().module() is not None


@pytest.mark.parametrize(
    "layer",
    [
        parametrizations.weight_norm(nn.Conv1d(6, 4, 3)),
        nn.utils.weight_norm(nn.Conv1d(6, 4, 3)),
        parametrizations.spectral_norm(nn.Linear(8, 4)),
        nn.utils.spectral_norm(nn.Conv1d(6, 4, 3)),
        nn.Conv1d(6, 4, 4, padding="same"),
        nn.Conv1d(6, 4, 4, padding="same", dilation=2, groups=2),
        nn.Conv1d(6, 4, 2, padding="valid", stride=2),
        nn.Sequential(nn.Unflatten(2, (2, 2, 2)), nn.Conv3d(6, 3, (2, 1, 2), padding="same"), nn.BatchNorm3d(3)),
        nn.Sequential(nn.ConvTranspose1d(6, 4, 3, groups=2), nn.BatchNorm1d(4)),
    ],
)
def test_layers_have_constant_weights_and_nothing_behind_them(layer: nn.Module) -> None:
    for norm in layer.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm3d):
            norm.running_var.uniform_(0.5, 2), norm.running_mean.normal_()
    net = Net(lambda n, x: n.layer(x), layer).eval()
    with torch.no_grad():
        net(X)
    model = load(net, example=(X,))
    torch.testing.assert_close(run(model, X), net(X), atol=1e-5, rtol=1e-4)
    assert [group.op for group in model.groups if group.op not in ("pad", "reshape")] == [model.groups[-1].op]
    assert model.batchable and model.groups[-1].macs


@pytest.mark.parametrize(
    ("function", "layers"),
    [
        (lambda n, x: n.layer(x).sigmoid() * n.layer(x).tanh(), 1),
        (lambda n, x: torch.where(n.layer(x) > 0, n.layer(x), -n.layer(x)), 1),
        (lambda n, x: (x @ n.w).relu() + F.linear(x, n.w.t().clone()), 1),
        (lambda n, x: n.layer(x) + n.layer(x * 2), 2),
        (lambda n, x: (x.int() + 1) * (x.int() + 1.0), 0),
    ],
)
def test_what_is_computed_twice_is_computed_once(function: Callable[[Net, Tensor], Tensor], layers: int) -> None:
    net = Net(function, nn.Linear(8, 4)).eval()
    model = load(net, example=(X,))
    torch.testing.assert_close(run(model, X), net(X))
    assert len([group for group in model.groups if group.macs]) == layers


def test_what_is_random_is_drawn_anew() -> None:
    net = Net(lambda n, x: torch.rand_like(x) - torch.rand_like(x)).eval()
    program, _, _ = normalise(torch.export.export(net, (X,)))
    assert program.module()(X).any()


def test_layers_of_equal_values_are_one() -> None:
    """An exporter merges them by their values, whatever they are called."""
    net = Net(lambda n, x: n.layer[0](x).sigmoid() * n.layer[1](x), nn.ModuleList([nn.Linear(8, 4), nn.Linear(8, 4)]))
    net.layer[1].load_state_dict(net.layer[0].state_dict())
    model = load(net.eval(), example=(X,))
    torch.testing.assert_close(run(model, X), net(X))
    assert len([group for group in model.groups if group.macs]) == 1


@pytest.mark.parametrize("mask", [(8, 8), (1, 8, 8), (2, 8, 8)])
def test_attention_has_heads(mask: tuple[int, ...]) -> None:
    seen = torch.ones(mask, dtype=torch.bool).tril()

    def attend(n: Net, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        return F.scaled_dot_product_attention(x, x, x, attn_mask=seen) * 2

    net = Net(attend).eval()
    model = load(torch.export.export(net, (X,)))
    (node,) = (node for node in model.program.nodes if "attention" in node.target)
    assert node.value.shape == (2, 1, 8, 6)
    torch.testing.assert_close(run(model, X), net(X))
    assert model.macs == 2 * 2 * 8 * 8 * 6


def test_what_would_grow_is_left_to_the_runtime() -> None:
    net = Net(lambda n, x: x.mean() * n.b[:, None, None].expand(4, 1000, 1000)).eval()
    assert sum(array.nbytes for array in load(net, example=(X,)).program.tensors().values()) < 1000


def keeps(n: Net, x: Tensor) -> Tensor:
    n.seen[:, :3].copy_(x[:1, :3])
    return x + n.seen


def scratch(n: Net, x: Tensor) -> Tensor:
    n.seen.copy_(x[:1])
    n.count += 1
    return x + n.seen


def overwrites(n: Net, x: Tensor) -> Tensor:
    x[:, 0] = 0
    return x * 2


def test_what_is_written_is_refused_where_it_matters() -> None:
    for function, says in ((keeps, "state between calls.*seen"), (overwrites, "writes to its input")):
        with pytest.raises(UnsupportedError, match=says):
            load(torch.export.export(Net(function).eval(), (X,)))
    model = load(torch.export.export(Net(scratch).eval(), (X,)))
    assert "'count'" in model.notes[0] and "left out" in model.notes[0]
    assert torch.equal(run(model, X), X + X[:1])


def test_macs_are_counted_wherever_the_samples_are() -> None:
    attention = nn.MultiheadAttention(8, 2)
    net = Net(lambda n, x: n.layer(*[x.transpose(0, 1)] * 3)[0], attention).eval()
    model = load(net, example=(X,))
    assert model.macs == 6 * 8 * 32 + 2 * 6 * 6 * 8
    assert load(torch.export.export(net, (X[:1],))).macs == model.macs
    cell = load(Net(lambda n, x: n.layer(x[:, 0]), nn.GRUCell(8, 5)).eval(), example=(X,))
    assert cell.macs == 3 * 5 * (8 + 5)


def assigned(x: Tensor, change: Callable[[Tensor], object]) -> Tensor:
    """A copy of a value, some of which is written over."""
    found = x.clone()
    change(found)
    return found


def whole(y: Tensor) -> None:
    y.copy_(y[0] > 0)


def half(y: Tensor) -> None:
    y[:, 1:3] = y[:, :1] * 2
    y[:, 4] = y[:, 0] > 0
    y[:, 2:5] *= 3


def into_integers(y: Tensor) -> None:
    counts = torch.zeros_like(y, dtype=torch.int64)
    counts[:, 1:3] = (y * 8)[:, :2]
    y += counts


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("change", [whole, half, into_integers])
def test_assignments_are_what_they_write(change: Callable[[Tensor], None], static: bool) -> None:
    net = Net(lambda n, x: assigned(x, change))
    dynamic = None if static else ({0: torch.export.Dim("batch", min=1)},)
    model = load(torch.export.export(net.eval(), (X,), dynamic_shapes=dynamic))
    assert not any("aten.copy" in node.target for node in model.program.nodes)
    assert model.dynamic_batch is not static
    for x in (X,) if static else (X, torch.cat([X, -X])):
        assert torch.equal(run(model, x), net(x))
    (found,) = model.run([[X.clone().requires_grad_()]], differentiable=True)[0]
    assert change is whole or found.requires_grad


class Turned(nn.Module):
    """A batch norm over the outputs of a layer that are flattened, turned or given an axis in between."""

    def __init__(self, layer: nn.Module, norm: nn.Module, move: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer, self.norm, self.move = layer, norm, move
        for buffer in norm.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.move(self.layer(x)))
        return y


@pytest.mark.parametrize(
    ("layer", "norm", "move", "shape", "folds"),
    [
        (nn.Linear(6, 4), nn.BatchNorm1d(4), lambda y: y.flatten(0, 1), (2, 5, 6), True),
        (nn.Linear(6, 4), nn.BatchNorm1d(4), lambda y: y.transpose(1, 2), (2, 5, 6), True),
        (nn.Linear(6, 4), nn.BatchNorm2d(4), lambda y: y.permute(0, 2, 1)[..., None], (2, 5, 6), True),
        (nn.Conv2d(3, 4, 5), nn.BatchNorm1d(4), lambda y: y.flatten(1), (2, 3, 5, 5), True),
        (nn.Conv2d(3, 4, 3), nn.BatchNorm1d(4), lambda y: y.flatten(2), (2, 3, 5, 5), True),
        (nn.Linear(6, 4), nn.BatchNorm1d(4), lambda y: y, (2, 4, 6), False),
        (nn.Linear(6, 4), nn.BatchNorm1d(20), lambda y: y.flatten(1), (2, 5, 6), False),
        (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(3), lambda y: y.transpose(1, 3), (2, 3, 5, 5), False),
        (nn.Linear(6, 4), nn.BatchNorm1d(4), lambda y: y.flatten(0, 1) * y.sum(), (2, 5, 6), False),
    ],
)
def test_a_norm_is_folded_into_the_layer_whose_channels_it_has(
    layer: nn.Module, norm: nn.Module, move: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...], folds: bool
) -> None:
    torch.manual_seed(0)
    module, x = Turned(layer, norm, move).eval(), torch.randn(shape)
    for free in (None, ({0: torch.export.Dim("batch", min=1, max=64)},)):
        model = load(torch.export.export(module, (x,), dynamic_shapes=free))
        (got,) = model.run([[x]])[0]
        torch.testing.assert_close(got, module(x))
        assert not [n for n in model.program.nodes if n.target == "aten.mul.Tensor" and folds]
