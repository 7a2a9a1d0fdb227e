"""A float layer between quantized ones in ONNX Runtime: it keeps its own weights, and would not without our doing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import small_models as small
import torch
import torch.nn.functional as F
from torch import nn

from edgeq.calibration.calibrate import calibrate
from edgeq.devices import Candidate, open_device
from edgeq.export.artifact import Exporter
from edgeq.frontends.load import load
from edgeq.lowering.assign import FLOAT
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.numerics.fake import fake_quantize
from edgeq.quantization.quantized import Quantized

LARGE = 1e4
"""A weight beside which all others of its tensor round to nothing in 8 bits. It meets a channel that is always zero, so
that in float it changes nothing."""


class Sandwich(nn.Module):
    """Three layers, of which the middle one will stay in float. It has one huge weight, on a channel of zeros."""

    def __init__(self, outer: type[nn.Module], middle: nn.Module, act: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first = outer(4, 6, 1) if outer is nn.Conv2d else outer(4, 6)
        self.middle, self.act, self.last = middle, act, last
        with torch.no_grad():
            self.first.weight[0], self.first.bias[0] = 0.0, 0.0  # type: ignore[operator]
            weight = self.middle.weight
            assert isinstance(weight, torch.Tensor)
            (weight[0] if isinstance(middle, nn.ConvTranspose2d) else weight[:, 0]).fill_(LARGE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.act(self.middle(torch.relu(self.first(x)))))
        return found


@dataclass(frozen=True)
class Case:
    """The layers of a network and the shape of its input."""

    outer: type[nn.Module]
    middle: nn.Module
    act: nn.Module
    last: nn.Module
    shape: tuple[int, ...]


def cases() -> dict[str, Case]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        image, features = (4, 6, 6), (4,)
        conv, linear = nn.Conv2d, nn.Linear
        up = nn.ConvTranspose2d(6, 5, 2, stride=2)
        return {
            "conv": Case(conv, conv(6, 5, 3, padding=1), nn.ReLU6(), conv(5, 3, 1), image),
            "linear": Case(linear, linear(6, 5), nn.Identity(), linear(5, 3), features),
            "transposed": Case(conv, up, nn.ReLU(), conv(5, 3, 1), image),
        }


@dataclass(frozen=True)
class Made:
    """The network with its middle layer in float, written with and without what keeps it there."""

    model: Model
    net: Sandwich
    quantized: Quantized
    kept: Path
    left: Path
    x: torch.Tensor


@pytest.fixture(scope="module", params=list(cases()))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch.set_num_threads(1)
    small._parse_operators_once()
    case = cases()[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = Sandwich(case.outer, case.middle, case.act, case.last).eval()
        x = torch.randn(32, *case.shape)
    model = load(net, example=(x[:2],))
    folder = tmp_path_factory.mktemp(request.param)
    exporter = Exporter(model, folder)
    calibration = calibrate(model, {model.inputs[0].name: x.numpy()})
    paths = []
    for rounds in (True, False):
        by = small.exact_here(small.runtime("onnxruntime", rounds_float_layers=rounds))
        quantized = quantize_model(model, by, calibration, choices={"middle": FLOAT})
        assert ("middle" in quantized.assignment.kernels, "first" in quantized.assignment.kernels) == (False, True)
        place = folder / str(rounds)
        place.mkdir()
        paths += exporter.write(quantized, place)
    return Made(model, net, quantized, paths[0], paths[1], x)


def run(path: Path, x: torch.Tensor, *, optimized: bool = True) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return np.asarray(found)


def with_own_weights(made: Made) -> torch.Tensor:
    """Integers on both sides, the middle layer as it was trained: written out in torch."""
    q, model = made.quantized, made.model
    groups = {g.name: g for g in model.groups}

    def rounded(node: str, x: torch.Tensor) -> torch.Tensor:
        return fake_quantize(x, q.activations[node].q) if node in q.activations else x

    def integers(name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = torch.from_numpy(q.weights[name].real), torch.from_numpy(q.biases[name])
        return F.linear(x, weight, bias) if weight.dim() == 2 else F.conv2d(x, weight, bias)

    with torch.inference_mode():
        x = rounded(model.input_nodes[0], made.x)
        x = rounded(groups["first"].output, integers("first", x).relu())
        x = rounded(groups["middle"].output, made.net.act(made.net.middle(x)))
        return rounded(groups["last"].output, integers("last", x))


def error(found: np.ndarray, wanted: torch.Tensor) -> float:
    """In 255ths of the span."""
    return 255 * float(np.abs(found - wanted.numpy()).max()) / float(np.ptp(wanted.numpy()))


def test_a_kept_layer_computes_with_its_own_weights(made: Made) -> None:
    assert error(run(made.kept, made.x), with_own_weights(made)) < 3


def test_what_keeps_it_changes_no_number(made: Made) -> None:
    plain, kept = (run(path, made.x, optimized=False) for path in (made.left, made.kept))
    assert np.array_equal(plain, kept)


def test_the_profile_says_that_it_ran_in_float(made: Made) -> None:
    inputs = {made.model.inputs[0].name: made.x[:1].numpy()}
    rows = open_device("local").placement(Candidate(made.kept, "onnxruntime"), inputs, runs=1)
    heavy = [r for r in rows if any(word in r.op for word in ("Conv", "Gemm", "MatMul"))]
    assert [r.integer for r in heavy] == [True, False, True]


def test_left_alone_the_runtime_would_round_its_weights_away(made: Made) -> None:
    """Why `rounds_float_layers` exists. If this fails, ONNX Runtime has stopped doing so, and the field may go."""
    assert error(run(made.left, made.x), with_own_weights(made)) > 20


def optimized_operators(path: Path) -> list[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_name("optimized.onnx"))
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(path.with_name("optimized.onnx")).graph.node]


def test_layers_that_are_quantized_or_have_float_neighbours_keep_their_form(tmp_path: Path) -> None:
    exporter = small.exporter("residual")
    exporter.scratch.mkdir(parents=True, exist_ok=True)
    by = small.exact_here(small.runtime("onnxruntime"))
    floats = {g.name: FLOAT for g in small.model("residual").groups}
    for number, choices in enumerate(({}, floats, floats | {"stem": "w8a8"}, {"head": FLOAT})):
        quantized = quantize_model(small.model("residual"), by, small.calibration("residual"), choices=choices)
        (tmp_path / str(number)).mkdir()
        (path,) = exporter.write(quantized, tmp_path / str(number))
        assert not [i.name for i in onnx.load(path).graph.initializer if i.name.endswith("_by_channel")]


def test_readers_of_one_tensor_are_told_apart(tmp_path: Path) -> None:
    """The stem's integers go to a float convolution and to an integer addition."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner, self.last = (nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 8), (8, 8), (8, 4)))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.stem(image))
            return self.last(self.inner(x) + x)

    image = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model, by = load(Block().eval(), example=(image,)), small.exact_here(small.runtime("onnxruntime"))
    quantized = quantize_model(model, by, calibrate(model, {"image": image.numpy()}), choices={"inner": FLOAT})
    (path,) = Exporter(model, tmp_path).write(quantized, tmp_path)
    graph = onnx.load(path).graph
    constants = {i.name: i for i in graph.initializer}
    made_by = {o: node for node in graph.node for o in node.output}
    by_op = {node.name: node for node in graph.node}
    to_inner = made_by[by_op["inner"].input[0]]
    add = next(node for node in graph.node if node.op_type == "Add")
    stem = {g.name: g for g in model.groups}["stem"]
    others = [made_by[i] for i in add.input if made_by[i].input[0] == to_inner.input[0]]
    assert list(constants[to_inner.input[1]].dims) == [8] and to_inner.op_type == "DequantizeLinear"
    assert len(others) == 1 and list(constants[others[0].input[1]].dims) == []
    scale = float(quantized.activations[stem.output].q.scale)
    assert np.all(onnx.numpy_helper.to_array(constants[to_inner.input[1]]) == np.float32(scale))
    operators = optimized_operators(path)
    assert "Conv" in operators and operators.count("QLinearConv") == 2 and "QLinearAdd" in operators
