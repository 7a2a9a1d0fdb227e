"""ONNX files as programs write them: what PyTorch's two exporters make of networks, with the names that they give."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgeq.frontends.load import load


class Mobile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.depth, self.squeeze, self.excite = (
            nn.Conv2d(8, 8, 3, 1, 1, groups=8),
            nn.Conv2d(8, 4, 1),
            nn.Conv2d(4, 8, 1),
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depth(F.hardswish(self.stem(x)))
        y = y * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return self.head(y.mean((2, 3)))


class Tokens(nn.Module):
    """Attention under a mask, with the sizes of what it is given in its reshapes."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.qkv, self.norm, self.out = (
            nn.Embedding(30, 16),
            nn.Linear(16, 48),
            nn.LayerNorm(16),
            nn.Linear(16, 4),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.words(x)
        n, t, c = y.shape
        q, k, v = (part.view(n, t, 2, 8).transpose(1, 2) for part in self.qkv(self.norm(y)).chunk(3, -1))
        seen = torch.tril(torch.ones(t, t)).bool()
        weights = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(~seen, float("-inf")).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, t, c))


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.head = (
            nn.LSTM(6, 8, batch_first=True, bidirectional=True),
            nn.GRU(16, 5),
            nn.Linear(5, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(self.lstm(x)[0].transpose(0, 1))[0][-1])


class Up(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.out = nn.Conv2d(3, 6, 3, 2, 1), nn.ConvTranspose2d(6, 3, 2, 2), nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = F.silu(self.down(x))
        return self.out(torch.cat([x, self.up(y)], 1)), F.interpolate(y, size=x.shape[2:], mode="bilinear")


IMAGE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NETWORKS: dict[str, tuple[type[nn.Module], torch.Tensor]] = {
    "mobile": (Mobile, IMAGE),
    "tokens": (Tokens, torch.arange(7).reshape(1, 7)),
    "steps": (Steps, torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0))),
    "up": (Up, IMAGE),
}
WAYS = {"torchscript": (False, 17), "dynamo": (True, 18)}


def written(name: str, way: str, path: Path) -> nn.Module:
    """The network whose file lies at the path now."""
    torch.manual_seed(0)
    kind, example = NETWORKS[name]
    module, (dynamo, opset) = kind().eval(), WAYS[way]
    more: dict[str, Any] = {"dynamic_axes": {"given": {0: "n"}}}
    if dynamo:
        more = {"dynamic_shapes": ({0: torch.export.Dim("n", min=1, max=64)},), "verbose": False}
        example = torch.cat([example, example])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (example,), str(path), dynamo=dynamo, opset_version=opset, input_names=["given"], **more
        )
    return module


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("way", WAYS)
def test_a_network_answers_as_it_did_in_pytorch(name: str, way: str, tmp_path: Path) -> None:
    path, example = tmp_path / "network.onnx", NETWORKS[name][1]
    module = written(name, way, path)
    model = load(path)
    assert model.kind == "ONNX" and model.inputs[0].name == "given"
    given = torch.cat([example, example.flip(-1), example])
    given = given if model.inputs[0].shape[0] is None else given[: model.inputs[0].shape[0]]
    with torch.no_grad():
        wanted, found = module(given), model.exported().module()(given)
    for a, b in zip(found, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_the_files_names_stay(tmp_path: Path) -> None:
    written("mobile", "torchscript", tmp_path / "network.onnx")
    model = load(tmp_path / "network.onnx")
    assert [group.name for group in model.groups if group.weight][1:] == ["depth", "squeeze", "excite", "head"]
    assert model.output_names == tuple(one.name for one in onnx.load(tmp_path / "network.onnx").graph.output)
    assert model.inputs[0].shape == (None, 3, 16, 16)


def saved(
    path: Path, nodes: list[Any], inputs: dict[str, Any], held: dict[str, Any], outputs: list[str], **more: Any
) -> Path:
    """A file of such nodes; `inputs` by name a shape, outputs in float32."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, **more)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.save(model, path)
    return path


def test_sizes_are_computed_while_it_is_traced(tmp_path: Path) -> None:
    """Flatten as TensorFlow's converter writes it, with a free batch, and zeros in the size of the input."""
    half = helper.make_tensor("v", TensorProto.FLOAT, [1], [0.5])
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["batch"]),
        helper.make_node("Size", ["x"], ["size"]),
        helper.make_node("Gather", ["shape", "first"], ["n"]),
        helper.make_node("Div", ["size", "n"], ["rest"]),
        helper.make_node("Unsqueeze", ["rest", "zero"], ["rests"]),
        helper.make_node("Concat", ["batch", "rests"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["flat"]),
        helper.make_node("ConstantOfShape", ["wanted"], ["zeros"], value=half),
        helper.make_node("Add", ["flat", "zeros"], ["sum"]),
        helper.make_node("MatMul", ["sum", "w"], ["y"]),
    ]  # fmt: skip
    w = np.random.default_rng(0).normal(0, 1, (24, 3)).astype(np.float32)
    held = {"zero": np.array([0]), "one": np.array([1]), "first": np.array(0), "w": w}
    model = load(saved(tmp_path / "m.onnx", nodes, {"x": ["n", 2, 3, 4]}, held, ["y"]))
    assert model.inputs[0].shape == (None, 2, 3, 4)
    x = torch.randn(5, 2, 3, 4)
    torch.testing.assert_close(model.exported().module()(x)[0], (x.flatten(1) + 0.5) @ torch.from_numpy(w))


def test_a_branch_on_a_size_is_decided(tmp_path: Path) -> None:
    def branch(op: str) -> Any:
        return helper.make_graph(
            [helper.make_node(op, ["x"], [f"{op}y"])], op, [], [helper.make_empty_tensor_value_info(f"{op}y")]
        )

    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]), helper.make_node("Gather", ["shape", "one"], ["c"]),
        helper.make_node("Equal", ["c", "three"], ["is"]),
        helper.make_node("If", ["is"], ["y"], then_branch=branch("Relu"), else_branch=branch("Neg")),
    ]  # fmt: skip
    held = {"one": np.array(1), "three": np.array(3)}
    model = load(saved(tmp_path / "m.onnx", nodes, {"x": [2, 3]}, held, ["y"]))
    x = torch.randn(2, 3)
    assert torch.equal(model.exported().module()(x)[0], torch.relu(x))


def test_weights_that_lie_beside_the_file(tmp_path: Path) -> None:
    written("mobile", "torchscript", tmp_path / "whole.onnx")
    whole = onnx.load(tmp_path / "whole.onnx")
    onnx.save(whole, tmp_path / "apart.onnx", save_as_external_data=True, location="apart.bin", size_threshold=0)
    one, two = load(tmp_path / "whole.onnx"), load(tmp_path / "apart.onnx")
    assert all(np.array_equal(one.state[name], two.state[name]) for name in one.state)
    before = two.sha256
    data = bytearray((tmp_path / "apart.bin").read_bytes())
    data[100] ^= 1
    (tmp_path / "apart.bin").write_bytes(bytes(data))
    assert load(tmp_path / "apart.onnx").sha256 != before


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    w = np.random.default_rng(0).normal(0, 1, (6, 3)).astype(np.float16)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [2, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [2, 3])],
        [numpy_helper.from_array(w, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    assert model.inputs[0].dtype == "float32"
    assert any("float16 were converted to float32" in note for note in model.notes)
    found = next(value for value in model.state.values() if value.shape == (3, 6))
    assert np.array_equal(found, w.T.astype(np.float32))
