"""Transposed convolutions as convolutions whose values are shuffled: the same numbers, also from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgeq.calibration.calibrate import calibrate
from edgeq.export.artifact import Exporter
from edgeq.export.audit import AuditError, audit
from edgeq.frontends.load import load
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.model.shuffled import Shuffle, gathered, scattered, shuffle_of
from edgeq.numerics import sqnr_db
from edgeq.registry.load import load_target
from edgeq.registry.schema import Runtime

SHAPES = [  # kernel, stride, padding, output padding
    (2, 2, 0, 0), (4, 2, 1, 0), (3, 2, 1, 1), (3, 2, 1, 0), (3, 2, 0, 0), (5, 2, 2, 1), (3, 1, 1, 0), (9, 3, 3, 0),
    (5, 3, 1, 2), (2, 3, 0, 1), (4, 4, 0, 0), (7, 2, 3, 1),
]  # fmt: skip


class Up(nn.Module):
    """A transposed convolution between two layers."""

    def __init__(self, **options: int | tuple[int, int]) -> None:
        super().__init__()
        self.before, self.up = nn.Conv2d(2, 5, 3, padding=1), nn.ConvTranspose2d(5, 3, **options)  # type: ignore[arg-type]
        self.behind = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.behind(torch.relu(self.up(torch.tanh(self.before(x)))))
        return y


def program(**options: int | tuple[int, int]) -> Model:
    torch.manual_seed(0)
    return load(torch.export.export(Up(**options).eval(), (torch.zeros(1, 2, 6, 7),)))


def shuffle(model: Model) -> Shuffle | None:
    return shuffle_of(next(n for n in model.program.nodes if "conv_transpose" in n.target))


def onnxruntime() -> Runtime:
    return next(r for r in load_target("x86-avx512").runtimes if r.name == "onnxruntime")


@pytest.mark.parametrize(("kernel", "stride", "padding", "behind"), SHAPES)
def test_the_same_numbers(kernel: int, stride: int, padding: int, behind: int) -> None:
    found = shuffle(program(kernel_size=kernel, stride=stride, padding=padding, output_padding=behind))
    assert found is not None
    weight, x = np.random.default_rng(0).normal(size=(5, 3, kernel, kernel)), torch.randn(2, 5, 6, 7).double()
    wanted = F.conv_transpose2d(x, torch.from_numpy(weight), None, stride, padding, behind)
    top, left, bottom, right = found.pads
    turned = torch.from_numpy(scattered(weight, found))
    phases = F.conv2d(F.pad(x, (left, right, top, bottom)), turned)
    n, _, rows, columns = phases.shape
    shuffled = phases.reshape(n, stride, stride, 3, rows, columns).permute(0, 3, 4, 1, 5, 2)
    got = shuffled.reshape(n, 3, rows * stride, columns * stride)[..., : wanted.shape[2], : wanted.shape[3]]
    assert (rows * stride - wanted.shape[2], columns * stride - wanted.shape[3]) == found.cut
    torch.testing.assert_close(got, wanted)
    assert np.array_equal(gathered(scattered(weight, found), weight.shape, found), weight)
    other = scattered(weight, found)
    other[-1, 0] += 1
    assert not np.array_equal(gathered(other, weight.shape, found), weight)


@pytest.mark.parametrize("options", [{"stride": (1, 2)}, {"dilation": 2}, {"stride": (2, 1)}])
def test_what_has_no_such_form_stays_in_float(options: dict[str, int | tuple[int, int]]) -> None:
    model = program(kernel_size=3, **options)
    assert shuffle(model) is None
    quantized = quantize_model(model, onnxruntime(), calibrate(model, {"x": inputs(8)}))
    assert "shuffled" in quantized.assignment.reasons["up"]


@pytest.mark.parametrize(("kernel", "stride", "padding", "behind"), [(4, 2, 1, 0), (3, 2, 1, 0), (5, 3, 1, 2)])
def test_a_file_of_integers(kernel: int, stride: int, padding: int, behind: int, tmp_path: Path) -> None:
    import onnxruntime as ort

    model = program(kernel_size=kernel, stride=stride, padding=padding, output_padding=behind)
    quantized = quantize_model(model, onnxruntime(), calibrate(model, {"x": inputs(32)}))
    exporter = Exporter(model, tmp_path)
    (path,) = exporter.write(quantized, tmp_path)
    written = audit(model, quantized, exporter.read_back(quantized, path))
    assert written.integer_mac_percent == 100 and not [f for f in written.float_operators if f.macs]
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    x = inputs(1)
    wanted = model.run([[torch.from_numpy(x)]])[0][0].numpy()
    assert sqnr_db(wanted, session.run(None, {"x": x})[0]) > 20
    ran = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert ran.count("QLinearConv") == 3 and "Conv" not in ran and "ConvTranspose" not in ran

    file = onnx.load(path)
    up = next(node for node in file.graph.node if node.name == "up")
    weight = next(node for node in file.graph.node if node.output[0] == up.input[1]).input[0]
    stored = next(i for i in file.graph.initializer if i.name == weight)
    stored.raw_data = bytes([stored.raw_data[0] ^ 1]) + stored.raw_data[1:]
    onnx.save(file, path)
    with pytest.raises(AuditError, match="other weights"):
        audit(model, quantized, exporter.read_back(quantized, path))


def inputs(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 2, 6, 7)).astype(np.float32)
