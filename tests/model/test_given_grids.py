"""Programs that were quantized by PyTorch's own tools come in with their integers, and go out with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - it makes the operators known

import edgeq
from edgeq.errors import UnsupportedError, UsageError
from edgeq.frontends.kept import _pack, _unpack
from edgeq.frontends.load import load

q = torch.ops.quantized_decomposed


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(image)))
        x = torch.relu(x + self.second(x))
        return self.last(x.mean((2, 3)))


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What prepare_pt2e and convert_pt2e make of a network."""
    pytest.importorskip("torchao", reason="the extra executorch is not installed")
    pytest.importorskip("executorch", reason="the extra executorch is not installed")
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    torch.manual_seed(0)
    image, batch = torch.randn(2, 3, 8, 8), {"image": {0: torch.export.Dim("batch", min=1, max=256)}}
    net = Net().eval()
    net.norm.running_mean.uniform_(-0.5, 0.5)
    net.norm.running_var.uniform_(0.5, 2)
    program = torch.export.export(net, (image,), dynamic_shapes=batch).module()
    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
    prepared = prepare_pt2e(program, xnnpack.XNNPACKQuantizer().set_global(config))
    for _ in range(4):
        prepared(torch.randn(4, 3, 8, 8))
    file = tmp_path_factory.mktemp("pt2e") / "quantized.pt2"
    torch.export.save(torch.export.export(convert_pt2e(prepared), (image,), dynamic_shapes=batch), file)
    return file


def stored(file: Path) -> list[np.ndarray]:
    """The integers in the file, as PyTorch reads them."""
    return [v.numpy() for v in torch.export.load(file).state_dict.values() if v.dtype == torch.int8]


def test_the_graph_rounds_no_more_and_has_the_grids(quantized: Path) -> None:
    model = load(quantized)
    assert [group.name for group in model.groups] == ["first", "second", "add", "mean", "last"]
    assert not any("quantize" in node.target for node in model.program.nodes)
    assert model.grids is not None
    found = {name: one.integers for name, one in model.grids.weights.items()}
    assert set(found) == {"first.weight", "second.weight", "last.weight"}
    assert sorted(a.tobytes() for a in found.values()) == sorted(a.tobytes() for a in stored(quantized))
    for name, one in model.grids.weights.items():
        assert np.array_equal(model.state[name], one.real)
    kept = _unpack(_pack(model), lambda: model.program)  # type: ignore[arg-type]
    assert kept is not None and kept.grids is not None and kept.grids.sha256 == model.grids.sha256


def test_an_artefact_holds_the_same_integers(quantized: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, (96, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "calib.npz", image=images[:32])
    np.savez(tmp_path / "eval.npz", image=images[32:])
    report = edgeq.deploy(
        str(quantized),
        target="x86-avx512",
        format="onnx",
        device="local",
        calibration=str(tmp_path / "calib.npz"),
        evaluation=str(tmp_path / "eval.npz"),
        limits=edgeq.Limits(allow_slower=True),
        out=tmp_path / "build",
    )
    assert report.builds[0].format == "onnx"
    graph = onnx.load(tmp_path / "build" / "model.onnx").graph
    arrays = [onnx.numpy_helper.to_array(one) for one in graph.initializer]
    integers = sorted(sorted(a.astype(int).ravel().tolist()) for a in arrays if a.dtype == np.int8 and a.ndim > 1)
    assert integers == sorted(sorted(a.astype(int).ravel().tolist()) for a in stored(quantized))


def test_other_integers_are_not_made_of_it(quantized: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(0, 1, (32, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "calib.npz", image=images)
    asked: dict[str, Any] = {"calibration": str(tmp_path / "calib.npz"), "format": "onnx", "out": tmp_path / "build"}
    with pytest.raises(UsageError, match="came with its integers"):
        edgeq.deploy(str(quantized), target="x86-avx512", method="gptq", **asked)
    with pytest.raises(UnsupportedError, match=r"first: .*has no kernel for its weights, integers from -127 to 127"):
        edgeq.deploy(str(quantized), target="x86-avx2", **asked)  # of 7 bits there


class Rounding(nn.Module):
    """Rounds by a function of quantized integers."""

    def __init__(self, last: Any) -> None:
        super().__init__()
        self.last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(q.quantize_per_tensor(x, 0.1, 0, -128, 127, torch.int8))


def test_arithmetic_on_integers_is_refused_by_name() -> None:
    program = torch.export.export(Rounding(lambda x: (x + x).float()), (torch.zeros(2, 3),))
    with pytest.raises(UnsupportedError, match="on integers"):
        load(program)


def test_scales_that_are_found_while_it_runs_are_refused() -> None:
    class Dynamic(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scale, zero = q.choose_qparams.tensor(x, -128, 127, 1e-6, torch.int8)
            rounded = q.quantize_per_tensor.tensor(x, scale, zero, -128, 127, torch.int8)
            return q.dequantize_per_tensor.tensor(rounded, scale, zero, -128, 127, torch.int8)

    with pytest.raises(UnsupportedError):
        load(torch.export.export(Dynamic(), (torch.randn(2, 3),)))
