"""The TFLite exporter: every integer in the file is ours, and LiteRT computes what was planned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import small_models as small
import torch
from torch import nn
from torch.nn import functional as F

from edgeq.calibration.calibrate import calibrate
from edgeq.errors import UnsupportedError
from edgeq.frontends.load import load
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.numerics import quantize, sqnr_db
from edgeq.numerics.weights import bias_scale, quantize_bias
from edgeq.quantization.quantized import Quantized
from edgeq.quantization.simulate import simulate
from edgeq.registry.load import load_target
from edgeq.registry.schema import Runtime

pytest.importorskip("litert_torch", reason="the tflite extra (litert-torch) is not installed")

from ai_edge_litert.interpreter import Interpreter

from edgeq.export import tflite
from edgeq.export.audit import audit
from edgeq.export.stored import StoredTensor
from edgeq.export.tflite_graph import ALIGNMENT, Graph
from edgeq.export.tflite_match import origins

SHAPE = (1, 4, 16, 16)


class Mixed(nn.Module):
    """Strided and depthwise convolutions with folded batch norms, a residual, a concatenation, pools, a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU())
        self.point = nn.Conv2d(8, 8, 1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.cat([self.point(self.depth(x)) + x, x], 1)
        x = F.avg_pool2d(self.pool(x), 2)
        return self.head(x.mean((2, 3)))


class Shuffle(nn.Module):
    """Halves that change places, as in shuffle networks, and a nearest upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.outer = nn.Conv2d(8, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([x, F.relu(self.inner(x))], 1)
        x = x.reshape(1, 2, 4, 16, 16).transpose(1, 2).reshape(1, 8, 16, 16)
        left, right = x.chunk(2, 1)
        return self.outer(F.interpolate(torch.cat([right, left], 1), scale_factor=2.0))


class Applied(nn.Module):
    """A function of the input and of some layers."""

    def __init__(self, function: Callable[..., object], *layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> object:
        return self.function(x, *self.layers)


@dataclass(frozen=True)
class Built:
    """One model, planned and written."""

    model: Model
    quantized: Quantized
    float_file: tflite.FloatTflite
    path: Path
    batch: torch.Tensor


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return next(r for r in load_target("arm-neon").runtimes if r.name == "litert")


@pytest.fixture(scope="module")
def mixed(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Built:
    torch.manual_seed(0)
    module = Mixed().eval()
    for norm in (module.stem[1], module.depth[1]):
        norm.running_mean.uniform_(-0.5, 0.5)
        norm.running_var.uniform_(0.5, 2.0)
    return build(module, runtime, tmp_path_factory.mktemp("mixed"))


def build(module: nn.Module, runtime: Runtime, folder: Path, *, batch: int = 1) -> Built:
    exported = torch.export.export(module.eval(), (torch.randn(batch, *SHAPE[1:]),))
    model = load(exported)
    data = torch.randn(64, *SHAPE[1:], generator=torch.Generator().manual_seed(1))
    calibration = calibrate(model, {model.inputs[0].name: data.numpy()})
    quantized = quantize_model(model, runtime, calibration, estimator="min-max")
    float_file = tflite.export_float(model)
    tflite.export_quantized(model, quantized, float_file, folder / "model.tflite")
    return Built(model, quantized, float_file, folder / "model.tflite", data[:16])


def run(path: Path, batch: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of a file in LiteRT with its default kernels, each sample by itself."""
    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    rows: list[list[np.ndarray]] = []
    for sample in batch:
        interpreter.set_tensor(given["index"], sample[None].numpy())
        interpreter.invoke()
        rows.append([interpreter.get_tensor(d["index"]).copy() for d in interpreter.get_output_details()])
    return [torch.from_numpy(np.concatenate(column)) for column in zip(*rows, strict=True)]


def expect_planned(built: Built) -> None:
    """Every stored integer, scale and zero point equals the planned one."""
    stored = tflite.stored(built.model, built.quantized, built.float_file, built.path)
    groups = {g.name: g for g in built.model.groups}
    assert set(stored.weights) == set(built.quantized.weights)
    for name, found in stored.weights.items():
        weight, group = built.quantized.weights[name], groups[name]
        np.testing.assert_array_equal(found.integers, weight.integers)
        np.testing.assert_array_equal(found.scale, weight.q.scale.reshape(-1))
        assert not found.zero_point.any()
        scale = built.quantized.activations[group.inputs[0]].q.scale
        np.testing.assert_array_equal(found.bias, quantize_bias(built.quantized.biases[name], scale, weight.q))
        assert found.bias_dtype == "int32"
    for node, forms in stored.tensors.items():
        q = built.quantized.activations[node].q
        assert StoredTensor(q.scheme.dtype, float(q.scale), int(q.zero_point)) in forms, node
    assert stored.integer_groups >= set(stored.weights)
    audit(built.model, built.quantized, stored)


def expect_close(built: Built, floor_db: float) -> None:
    """LiteRT answers as the simulation does, and both as the float model does."""
    outputs = run(built.path, built.batch)
    for i, output in enumerate(outputs):
        real = torch.cat([built.model.run([[x[None]]])[0][i] for x in built.batch])
        simulated = torch.cat([simulate(built.model, built.quantized, [x[None]])[i] for x in built.batch])
        assert sqnr_db(simulated, output) > floor_db
        assert sqnr_db(real, output) > floor_db - 6


def kinds(path: Path) -> list[str]:
    graph = Graph(path.read_bytes())
    return [graph.kind(op) for op in graph.operators]


def test_file_holds_the_planned_integers(mixed: Built) -> None:
    expect_planned(mixed)
    stored = tflite.stored(mixed.model, mixed.quantized, mixed.float_file, mixed.path)
    assert set(stored.weights) == {"stem.0", "depth.0", "point", "head"}
    # every planned tensor is there under its own name, but for those that only rearrange another
    assert set(mixed.quantized.activations) - set(stored.tensors) <= {
        node for node, origin in origins(mixed.model).items() if node != origin
    }
    assert stored.float_operators == []


def test_litert_answers_as_simulated(mixed: Built) -> None:
    expect_close(mixed, floor_db=25.0)


@pytest.mark.parametrize("name", ["norm-after", "denoiser", "moved-alike"])
def test_operators_in_float_read_what_is_computed_in_float_as_it_is(name: str) -> None:
    """However it is moved on the way: a file that rounded it there would differ from the simulation."""
    made = small.written(name, "litert")
    assert made.quantized.assignment.also_float
    (batch,) = small.SMALL[name].example(4, 20)
    wanted = torch.cat([simulate(made.model, made.quantized, [sample[None]])[0] for sample in batch])
    (got,) = run(made.path, batch)
    assert sqnr_db(wanted.numpy(), got.numpy()) > 55


def test_float_file_computes_the_model(mixed: Built, tmp_path: Path) -> None:
    real = torch.cat([mixed.model.run([[x[None]]])[0][0] for x in mixed.batch])
    path = tmp_path / "float.tflite"
    path.write_bytes(mixed.float_file.data)
    (found,) = run(path, mixed.batch)
    torch.testing.assert_close(found, real, rtol=1e-4, atol=1e-5)


def test_names_are_the_users(mixed: Built) -> None:
    for data in (mixed.path.read_bytes(), mixed.float_file.data):
        interpreter = Interpreter(model_content=data)
        assert [d["name"] for d in interpreter.get_input_details()] == [mixed.model.inputs[0].name]
        assert [d["name"] for d in interpreter.get_output_details()] == list(mixed.model.output_names)
        (signature,) = interpreter.get_signature_list().values()
        assert signature == {"inputs": [mixed.model.inputs[0].name], "outputs": list(mixed.model.output_names)}


def test_tensors_are_named_after_layers(mixed: Built) -> None:
    graph = Graph(mixed.path.read_bytes())
    names = {graph.name(int(op.outputs[0])) for op in graph.operators if graph.kind(op).endswith("CONV_2D")}
    assert names == {"stem.0", "depth.0", "point"}


def test_only_the_ends_are_converted(mixed: Built) -> None:
    found = kinds(mixed.path)
    assert (found.count("QUANTIZE"), found.count("DEQUANTIZE")) == (1, 1)
    assert found[0] == "QUANTIZE" and found[-1] == "DEQUANTIZE"


def test_maximum_is_padded_with_the_lowest_integer(mixed: Built) -> None:
    graph = Graph(mixed.path.read_bytes())
    (padding,) = [op for op in graph.operators if graph.kind(op) == "PADV2"]
    value = graph.constant(int(padding.inputs[2]))
    assert value is not None and value.dtype == np.int8 and int(value) == -128


def test_same_bytes_and_answers_every_time(mixed: Built, tmp_path: Path) -> None:
    again = tflite.export_float(mixed.model)
    tflite.export_quantized(mixed.model, mixed.quantized, again, tmp_path / "model.tflite")
    assert again == mixed.float_file
    assert (tmp_path / "model.tflite").read_bytes() == mixed.path.read_bytes()
    torch.testing.assert_close(run(mixed.path, mixed.batch), run(mixed.path, mixed.batch), rtol=0, atol=0)


def test_constants_are_inline_aligned_and_stored_once(mixed: Built) -> None:
    data = mixed.path.read_bytes()
    graph = Graph(data)
    contents = []
    for buffer in graph.model.buffers[1:]:
        content = np.asarray(buffer.data).tobytes()
        assert content and not buffer.offset and not buffer.size
        assert data.find(content) >= 0
        contents.append(content)
    assert len(set(contents)) == len(contents)
    weight = mixed.quantized.weights["head"].integers.tobytes()
    assert data.find(weight) % ALIGNMENT == 0
    used = {int(i) for op in graph.operators for i in (*op.inputs, *op.outputs)}
    assert {*range(len(graph.tensors))} == used | {*graph.inputs}


def test_integer_ends(mixed: Built, tmp_path: Path) -> None:
    quantized = replace(mixed.quantized, runtime=mixed.quantized.runtime.model_copy(update={"io": "integer"}))
    tflite.export_quantized(mixed.model, quantized, mixed.float_file, tmp_path / "model.tflite")
    interpreter = Interpreter(str(tmp_path / "model.tflite"))
    for details, node in (
        (interpreter.get_input_details(), mixed.model.input_nodes[0]),
        (interpreter.get_output_details(), mixed.model.output_nodes[0]),
    ):
        (end,) = details
        q = mixed.quantized.activations[node].q
        assert end["dtype"] == np.int8
        assert end["quantization"] == (float(q.scale), int(q.zero_point))
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(kinds(tmp_path / "model.tflite"))
    stored = tflite.stored(mixed.model, quantized, mixed.float_file, tmp_path / "model.tflite")
    assert set(stored.weights) == set(mixed.quantized.weights)
    assert mixed.model.output_nodes[0] in stored.tensors


def test_integer_ends_around_float_operators(runtime: Runtime, tmp_path: Path) -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1)
    built = build(
        Applied(lambda x, conv: torch.exp(conv(torch.exp(x) - 1)), layer),
        runtime.model_copy(update={"io": "integer"}),
        tmp_path,
    )
    interpreter = Interpreter(str(built.path))
    interpreter.allocate_tensors()
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert given["dtype"] == result["dtype"] == np.int8
    x = built.batch[:1]
    q = built.quantized.activations
    interpreter.set_tensor(given["index"], quantize(x.numpy(), q[built.model.input_nodes[0]].q))
    interpreter.invoke()
    wanted = quantize(simulate(built.model, built.quantized, [x])[0].numpy(), q[built.model.output_nodes[0]].q)
    assert np.abs(interpreter.get_tensor(result["index"]).astype(int) - wanted).max() <= 4


def test_a_last_activation_in_float_leaves_its_layer_on_integers(runtime: Runtime, tmp_path: Path) -> None:
    built = build(Applied(lambda x, conv: torch.sigmoid(conv(x)), nn.Conv2d(4, 4, 1)), runtime, tmp_path)
    assert kinds(built.path)[-2:] == ["LOGISTIC", "TRANSPOSE"]
    audit(built.model, built.quantized, tflite.stored(built.model, built.quantized, built.float_file, built.path))
    (group,) = built.model.groups
    assert group.root in built.quantized.activations and group.output not in built.quantized.activations


def test_what_the_converter_would_merge_into_layers_stays_apart(runtime: Runtime, tmp_path: Path) -> None:
    """A factor in front of a layer, a factor behind it, and the shift inside a hard sigmoid."""
    first, second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
    built = build(
        Applied(lambda x, a, b: F.hardsigmoid(b(F.relu(a(x / 4)) * 0.5)) * x, first, second), runtime, tmp_path
    )
    expect_planned(built)
    expect_close(built, floor_db=25.0)


def test_shuffled_channels_keep_their_scale(runtime: Runtime, tmp_path: Path) -> None:
    torch.manual_seed(1)
    built = build(Shuffle(), runtime, tmp_path)
    expect_planned(built)
    expect_close(built, floor_db=25.0)
    found = kinds(built.path)
    assert (found.count("QUANTIZE"), found.count("DEQUANTIZE")) == (1, 1)


def test_dynamic_batch_becomes_one(runtime: Runtime, tmp_path: Path) -> None:
    torch.manual_seed(2)
    layers = (nn.Conv2d(4, 3, 3), nn.Linear(588, 4))
    module = Applied(lambda x, conv, head: head(conv(x).relu().flatten(1)), *layers).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(module, (torch.randn(2, *SHAPE[1:]),), dynamic_shapes={"x": {0: batch}})
    model = load(exported)
    assert model.dynamic_batch
    file = tflite.export_float(model)
    assert Interpreter(model_content=file.data).get_input_details()[0]["shape"].tolist() == list(SHAPE)


CASES: dict[str, tuple[Callable[[], nn.Module], set[str], float]] = {
    # name: the module, TFLite operators that must run on integers, least SQNR against the simulation in dB
    "hardswish": (
        lambda: Applied(lambda x, a, b: b(F.hardswish(a(x))), nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 1)),
        {"CONV_2D", "HARD_SWISH"},
        25.0,
    ),
    "gate": (
        lambda: Applied(
            lambda x, a, b, c: c(a(x) * torch.sigmoid(b(a(x).mean((2, 3), keepdim=True)))),
            nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1),
        ),
        {"CONV_2D", "LOGISTIC", "MUL", "MEAN"},
        25.0,
    ),
    "grouped": (
        lambda: Applied(lambda x, a, b: b(a(x).relu()), nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 4, 1)),
        {"CONV_2D"},
        25.0,
    ),
    "bilinear": (
        lambda: Applied(
            lambda x, a, b: b(F.interpolate(a(x), scale_factor=2.0, mode="bilinear")),
            nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1),
        ),
        {"CONV_2D", "RESIZE_BILINEAR"},
        25.0,
    ),
    "transposed": (
        lambda: Applied(
            lambda x, a, b: b(a(x).relu()), nn.ConvTranspose2d(4, 6, 4, 2, 1), nn.ConvTranspose2d(6, 4, 2, 2)
        ),
        {"TRANSPOSE_CONV"},
        25.0,
    ),
    "transposed and padded behind": (
        lambda: Applied(
            lambda x, a, b: b(a(x).relu()),
            nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1), nn.ConvTranspose2d(6, 4, 3, 2, 2, dilation=2),
        ),
        {"TRANSPOSE_CONV"},
        25.0,
    ),
    "rectified maximum": (
        lambda: Applied(lambda x, a, b: b(F.max_pool2d(a(x).relu(), 3, 2, 1)), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)),
        {"CONV_2D", "MAX_POOL_2D", "PAD"},
        25.0,
    ),
    "conv1d": (
        lambda: Applied(lambda x, a, b: b(a(x.flatten(2)).relu()), nn.Conv1d(4, 6, 3), nn.Conv1d(6, 3, 1)),
        {"CONV_2D"},
        25.0,
    ),
    "attention": (
        lambda: Applied(
            lambda x, q, k, v: torch.softmax(q(x.flatten(2)) @ k(x.flatten(2)).transpose(1, 2), -1) @ v(x.flatten(2)),
            nn.Linear(256, 16), nn.Linear(256, 16), nn.Linear(256, 16),
        ),
        {"FULLY_CONNECTED", "BATCH_MATMUL", "SOFTMAX"},
        20.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operators_run_on_integers(name: str, runtime: Runtime, tmp_path: Path) -> None:
    torch.manual_seed(3)
    make, integer, floor = CASES[name]
    built = build(make(), runtime, tmp_path)
    expect_planned(built)
    expect_close(built, floor)
    in_float = {
        op for op, _, _ in tflite.stored(built.model, built.quantized, built.float_file, built.path).float_operators
    }
    assert integer <= set(kinds(built.path)) - in_float


def test_silu_stays_in_float_and_says_so(runtime: Runtime, tmp_path: Path) -> None:
    torch.manual_seed(4)
    silu = Applied(lambda x, a, b: b(F.silu(a(x))), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 1))
    built = build(silu, runtime, tmp_path)
    expect_planned(built)
    expect_close(built, 25.0)
    floats = tflite.stored(built.model, built.quantized, built.float_file, built.path).float_operators
    assert {op for op, _, _ in floats} == {"LOGISTIC", "MUL"}


def test_an_activation_made_of_the_operators_in_front_of_it(runtime: Runtime, tmp_path: Path) -> None:
    """SiLU ends in a product too: it reads the product that is planned, and not what that reads."""
    torch.manual_seed(5)
    silu = Applied(lambda x, a, b: b(F.silu(a(x) * 4.0)), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 1))
    built = build(silu, runtime, tmp_path)
    expect_planned(built)
    expect_close(built, 25.0)


def test_what_lies_elsewhere_is_another_value(runtime: Runtime, tmp_path: Path) -> None:
    """Rolled, flipped and turned values have the same sums, and the converter makes two steps of a roll."""
    torch.manual_seed(5)
    turned = Applied(
        lambda x, a, b: b(torch.roll(a(x), (1, 2), (2, 3)).flip(3).rot90(1, (2, 3))),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.Conv2d(8, 4, 1),
    )
    built = build(turned, runtime, tmp_path)
    expect_planned(built)
    expect_close(built, 25.0)
    assert {"roll", "flip", "rot90"} <= set(built.float_file.nodes.values())


def test_last_softmax_stays_in_float(runtime: Runtime, tmp_path: Path) -> None:
    torch.manual_seed(5)
    head = Applied(lambda x, a, b: (torch.softmax(a(x), 1), b(x)), nn.Conv2d(4, 8, 3), nn.Conv2d(4, 2, 1))
    built = build(head, runtime, tmp_path)
    expect_planned(built)
    expect_close(built, 25.0)
    floats = tflite.stored(built.model, built.quantized, built.float_file, built.path).float_operators
    assert ("SOFTMAX", "it only shapes a float output of the model") in {(op, why) for op, _, why in floats}


def test_activation_apart_from_its_pool(runtime: Runtime, tmp_path: Path) -> None:
    torch.manual_seed(6)
    pool = Applied(lambda x, a, b: b(F.avg_pool2d(a(x), 2).relu()), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 1))
    built = build(pool, runtime, tmp_path)
    expect_planned(built)
    expect_close(built, 25.0)
    assert {"AVERAGE_POOL_2D", "RELU"} <= set(kinds(built.path))


def test_layer_that_stays_in_float_is_converted_around(runtime: Runtime, tmp_path: Path) -> None:
    torch.manual_seed(7)
    without = [k.model_copy(update={"ops": [o for o in k.ops if o != "depthwise_conv2d"]}) for k in runtime.kernels]
    narrow = runtime.model_copy(update={"kernels": without})
    layers = (nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1))
    built = build(Applied(lambda x, a, b, c: c(b(a(x).relu()).relu()), *layers), narrow, tmp_path)
    expect_planned(built)
    expect_close(built, 25.0)
    ((op, _, reason),) = tflite.stored(built.model, built.quantized, built.float_file, built.path).float_operators
    assert op == "DEPTHWISE_CONV_2D"
    assert "no integer kernel" in reason


def test_weight_that_is_not_the_models_is_refused(mixed: Built, tmp_path: Path) -> None:
    weight = mixed.model.state["point.weight"]
    weight *= 2
    try:
        with pytest.raises(UnsupportedError) as caught:
            tflite.export_quantized(mixed.model, mixed.quantized, mixed.float_file, tmp_path / "model.tflite")
    finally:
        weight /= 2
    assert caught.value.where == "layer point"


def test_refused_layer_is_named() -> None:
    bessel = Applied(torch.special.bessel_j0)
    module = Applied(lambda x, a, b: b(a(x)), nn.Conv2d(4, 4, 1), bessel).eval()
    with pytest.raises(UnsupportedError) as caught:
        tflite.export_float(load(torch.export.export(module, (torch.randn(SHAPE),))))
    assert caught.value.where == "layer layers.1.special_bessel_j0"
    assert "bessel" in caught.value.cause and "\n" not in caught.value.cause


def test_operator_without_a_kernel_is_named() -> None:
    module = Applied(lambda x, layer: layer(x[:, :, None]), nn.ConvTranspose3d(4, 2, 2, 2)).eval()
    with pytest.raises(UnsupportedError, match=r"kernel for the operator \w+"):
        tflite.export_float(load(torch.export.export(module, (torch.randn(SHAPE),))))


def test_free_sizes_are_refused() -> None:
    free = torch.export.Dim.DYNAMIC
    exported = torch.export.export(
        nn.Conv2d(4, 4, 3).eval(), (torch.randn(SHAPE),), dynamic_shapes=({2: free, 3: free},)
    )
    with pytest.raises(UnsupportedError, match=r"fixed sizes.*\?, \?") as caught:
        tflite.export_float(load(exported))
    assert caught.value.where == "input input"


class Reused(nn.Module):
    """Layers that are called again: on the same value, which is one call, on another range, with another's bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.tied = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.tied.bias = self.again.bias

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = F.relu(self.stem(x))
        y = F.relu(self.again(x))
        return self.tied(y), self.again(x), self.again(20 * y) * 0.5, self.tied(x)


def test_each_call_of_a_layer_is_its_own(runtime: Runtime, tmp_path: Path) -> None:
    torch.manual_seed(5)
    built = build(Reused(), runtime, tmp_path)
    expect_planned(built)
    expect_close(built, floor_db=25.0)
    assert kinds(built.path).count("CONV_2D") == 5


class Normed(nn.Module):
    """Gains, shifts and scales that could be moved into linear layers, a table that is added, and the largest few."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(24, 16)
        self.table = nn.Parameter(torch.randn(30, 16))
        nn.init.uniform_(self.norm.weight, 0.2, 2.0)
        nn.init.uniform_(self.norm.bias, -1.0, 1.0)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.down(self.up(x.flatten(2)[:, :, :16]) * 3) + self.table[:4]
        y = self.up(self.norm(x))
        return (self.down(F.relu(y)), *y.topk(2, 1))


def test_gains_and_tables_stay_beside_their_layers(runtime: Runtime, tmp_path: Path) -> None:
    torch.manual_seed(6)
    built = build(Normed(), runtime, tmp_path)
    expect_planned(built)
    answers = run(built.path, built.batch)
    wanted = [built.model.run([[x[None]]])[0] for x in built.batch]
    for place, floor in ((0, 25.0), (1, 25.0)):
        assert sqnr_db(torch.cat([w[place] for w in wanted]), answers[place]) > floor
    agreement = (torch.cat([w[2] for w in wanted]) == answers[2]).float().mean()
    assert agreement > 0.9
    assert answers[2].dtype == torch.int64


def test_values_are_compared_where_the_network_is_at_home() -> None:
    """Far from its range a steep network cannot be told from another one: the model's own samples are used."""
    torch.manual_seed(7)
    module = Applied(lambda x, a: (torch.exp(a(x) * 10), (x > 300).long(), x), nn.Conv2d(4, 2, 1)).eval()
    sample = torch.rand(SHAPE) * 0.1 + 250
    with torch.no_grad():
        module.layers[0].weight /= 100
        module.layers[0].bias.copy_(-module.layers[0](sample).mean((0, 2, 3)))
    model = load(torch.export.export(module, (sample,)))
    nodes = set(tflite.export_float(model).nodes.values())
    assert {model.groups[0].root, model.output_nodes[0]} <= nodes


def test_biases_carry_the_product_of_scales(mixed: Built) -> None:
    graph = Graph(mixed.path.read_bytes())
    operator = next(op for op in graph.operators if graph.name(int(op.outputs[0])) == "point")
    group = next(g for g in mixed.model.groups if g.name == "point")
    weight = mixed.quantized.weights["point"].q
    expected = bias_scale(mixed.quantized.activations[group.inputs[0]].q.scale, weight)
    found = graph.quantization(int(operator.inputs[2]))
    assert found is not None
    np.testing.assert_array_equal(found[0], expected)


def test_conversion_is_silent(mixed: Built, capfd: pytest.CaptureFixture[str]) -> None:
    tflite.export_float(mixed.model)
    out, err = capfd.readouterr()
    assert out == ""
    assert [line for line in err.splitlines() if "XNNPACK" not in line] == []


class Tokens(nn.Module):
    """64-bit integers at both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 12), nn.Linear(12, 5)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.head(F.relu(self.embed(tokens)).mean(1))
        return scores, scores.argmax(1)


def test_integers_at_the_ends_keep_their_64_bits() -> None:
    torch.manual_seed(3)
    module = Tokens().eval()
    tokens = torch.randint(0, 20, (1, 7))
    file = tflite.export_float(load(torch.export.export(module, (tokens,))))
    interpreter = Interpreter(model_content=file.data)
    interpreter.allocate_tensors()
    (given,), (scores, best) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (given["dtype"], best["dtype"]) == (np.int64, np.int64)
    interpreter.set_tensor(given["index"], tokens.numpy())
    interpreter.invoke()
    wanted = module(tokens)
    np.testing.assert_allclose(interpreter.get_tensor(scores["index"]), wanted[0].detach(), atol=1e-5)
    np.testing.assert_array_equal(interpreter.get_tensor(best["index"]), wanted[1])


def test_a_layer_at_the_root_is_not_mistaken_for_its_weight(runtime: Runtime, tmp_path: Path) -> None:
    """A module without a path names its layer after its weight, which is a tensor of the file as well."""
    torch.manual_seed(4)
    model = load(nn.Linear(16, 4).eval(), inputs=["1x16"])
    by = runtime.model_copy(update={"io": "integer"})
    quantized = quantize_model(model, by, calibrate(model, {model.inputs[0].name: np.eye(16, dtype=np.float32)}))
    float_file = tflite.export_float(model)
    tflite.export_quantized(model, quantized, float_file, tmp_path / "m.tflite")
    checked = audit(model, quantized, tflite.stored(model, quantized, float_file, tmp_path / "m.tflite"))
    assert checked.integer_mac_percent == 100
