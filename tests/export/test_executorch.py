"""ExecuTorch files hold the plan, and are read without ExecuTorch's own code."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_models as small
import torch
from torch import nn

pytest.importorskip("executorch.exir")

from edgeq.calibration.calibrate import calibrate
from edgeq.devices import Candidate, open_device
from edgeq.errors import UnsupportedError
from edgeq.export.artifact import Exporter
from edgeq.export.audit import audit
from edgeq.frontends.load import load
from edgeq.methods.quantize import quantize_model
from edgeq.model.ops import WEIGHTED
from edgeq.numerics import sqnr_db
from edgeq.numerics.weights import bias_scale, quantize_bias
from edgeq.on_device import flatbuffer, pte
from edgeq.on_device.executorch import PORTABLE
from edgeq.prepare import runtimes_for
from edgeq.quantization.quantized import Quantized
from edgeq.quantization.simulate import simulate
from edgeq.registry.load import load_target

RUNTIME = small.runtime("executorch")
HERE = open_device("local")

# one-channel, depthwise, grouped, transposed and 1-D convolutions, whose weights lie in the file in different orders
NETS = ["depthwise", "grouped", "upconv", "conv1d", "pools", "pad-stride", "split-shuffle", "gate", "two-inputs"]


class OneChannel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.clamp(self.stem(image), 0, 6))


def made_of(net: nn.Module, shape: tuple[int, ...], folder: Path) -> tuple[Exporter, Quantized, np.ndarray]:
    torch.manual_seed(0)
    model = load(torch.export.export(net.eval(), (torch.randn(1, *shape),)))
    data = torch.randn(32, *shape).numpy()
    return Exporter(model, folder), quantize_model(model, RUNTIME, calibrate(model, {model.inputs[0].name: data})), data


@pytest.mark.parametrize("name", NETS)
def test_weights_of_every_layout_are_the_planned_ones_and_compute(name: str) -> None:
    made = small.written(name, "executorch")
    found = audit(made.model, made.quantized, made.stored())
    on_integers = {
        g.name for g in made.model.groups if g.op in WEIGHTED and g.name in made.quantized.assignment.kernels
    }
    assert on_integers and on_integers == set(made.stored().weights)
    assert found.bytes_checked > sum(w.integers.size for w in made.quantized.weights.values())
    inputs = small.arrays(name, 8)
    batch = [torch.from_numpy(x) for x in inputs.values()]
    wanted = simulate(made.model, made.quantized, batch)
    for got, want in zip(HERE.outputs(Candidate(made.path, "executorch"), inputs), wanted, strict=True):
        assert sqnr_db(want.numpy(), got.reshape(want.shape)) > 30


def test_a_convolution_of_one_channel_is_told_from_a_depthwise_one(tmp_path: Path) -> None:
    exporter, quantized, data = made_of(OneChannel(), (1, 8, 8), tmp_path)
    (path,) = exporter.write(quantized, tmp_path)
    assert audit(exporter.model, quantized, exporter.read_back(quantized, path)).integer_mac_percent == 100
    rows = HERE.placement(Candidate(path, "executorch"), {"image": data[:1]}, runs=3)
    ran = {row.name: row for row in rows if row.integer is not None}
    assert {name: row.integer for name, row in ran.items()} == {"stem": True, "head": True}
    assert all(row.where.startswith("XNNPACK ") and row.microseconds is not None for row in ran.values())


def test_biases_that_float32_cannot_say_are_planned_integers(tmp_path: Path) -> None:
    net = OneChannel()
    with torch.no_grad():
        net.stem.weight[2] *= 1e-7  # its bias is hundreds of millions of its own steps
    exporter, quantized, _ = made_of(net, (1, 8, 8), tmp_path)
    group = next(g for g in exporter.model.groups if g.name == "stem")
    weight, scale = quantized.weights["stem"], quantized.input_scale(group)
    steps = bias_scale(scale, weight.q)
    biases = quantized.biases["stem"].copy()
    biases[2] = np.float32(123456789 * np.float64(steps[2]))
    quantized = replace(quantized, biases={**quantized.biases, "stem": biases})
    planned = quantize_bias(biases, scale, weight.q)
    assert planned[2] != int(np.float32(planned[2]))
    (path,) = exporter.write(quantized, tmp_path)
    stored = exporter.read_back(quantized, path).weights["stem"]
    assert stored.bias is not None and np.array_equal(stored.bias, planned)
    audit(exporter.model, quantized, exporter.read_back(quantized, path))


def test_what_xnnpack_does_not_take_is_told_and_runs(tmp_path: Path) -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.topk(self.conv(image), 2, dim=1)[0]

    exporter, quantized, data = made_of(Sorted(), (3, 4, 4), tmp_path)
    (path,) = exporter.write(quantized, tmp_path)
    stored = exporter.read_back(quantized, path)
    assert ("aten::topk", "", "XNNPACK does not take it") in stored.float_operators
    rows = HERE.placement(Candidate(path, "executorch"), {"image": data[:1]}, runs=2)
    assert [(row.op, row.integer) for row in rows if row.where == PORTABLE] == [("aten::topk", False)]
    (got,) = HERE.outputs(Candidate(path, "executorch"), {"image": data})
    want = exporter.model.run([[torch.from_numpy(data[i : i + 1])] for i in range(len(data))])
    assert sqnr_db(np.concatenate([w[0].numpy() for w in want]), got) > 20


def test_a_call_without_new_inputs_gives_the_same(tmp_path: Path) -> None:
    """Also for files whose inputs have memory of their own, as ExecuTorch plans it where it is not told otherwise."""
    from device_models import float_answer, samples, write_pte

    from edgeq.on_device.executorch import load as load_file
    from edgeq.on_device.worker import Setting

    loaded = load_file(str(write_pte(tmp_path / "model.pte")), {}, Setting(1, 1, False, False))
    a, b = samples(1, 1), samples(1, 2)
    loaded.feed([b, a])
    for _ in range(3):
        loaded.invoke()
        for got, want in zip(loaded.fetch(), float_answer(a, b), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6)


def test_an_operator_that_executorch_lacks_is_named_with_its_layer(tmp_path: Path) -> None:
    class Bessel(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    model = load(torch.export.export(Bessel().eval(), (torch.ones(1, 4),)))
    with pytest.raises(UnsupportedError, match="'special_bessel_j0': its runtime has no kernel") as error:
        Exporter(model, tmp_path).float_model("executorch")
    assert error.value.where == "layer special_bessel_j0" and error.value.remedy


def test_kernels_that_it_does_not_write_are_refused() -> None:
    made = small.written("mlp", "onnxruntime")
    layer = made.model.groups[0].name
    kernel = next(k for k in small.runtime("onnxruntime").kernels if k.weight_only)
    assignment = replace(made.quantized.assignment, kernels={}, weight_only={layer: kernel})
    weights_alone = replace(made.quantized, assignment=assignment, runtime=RUNTIME)
    with pytest.raises(UnsupportedError, match=kernel.name) as error:
        made.exporter.write(weights_alone, made.exporter.scratch)
    assert error.value.where == f"layer {layer}"


def test_the_reader_agrees_with_the_compiler_of_flatbuffers(tmp_path: Path) -> None:
    """flatc, which ExecuTorch writes with, shows the same program and graphs."""
    import executorch.data.bin as tools
    import executorch.exir._serialize as home

    flatc = Path(tools.__path__[0]) / "flatc"
    if not flatc.is_file():
        pytest.skip("this ExecuTorch has no flatc")
    root = Path(home.__path__[0]).parents[1]
    path = small.written("depthwise", "executorch").path
    data = path.read_bytes()
    file = pte.read(data)

    def told(schema: Path, content: bytes) -> dict[str, object]:
        (tmp_path / "it.bin").write_bytes(content)
        command = [flatc, "--json", "--strict-json", "--defaults-json", "--raw-binary", "-o", tmp_path, schema, "--"]
        subprocess.run([*command, tmp_path / "it.bin"], check=True, capture_output=True)
        found: dict[str, object] = json.loads((tmp_path / "it.json").read_text().replace("inf", "1e999"))
        return found

    program = told(root / "schema" / "program.fbs", data)
    plan, _ = program["execution_plan"]  # type: ignore[misc]
    assert plan["chains"][0]["instructions"] == [
        {"instr_args_type": i["instr_args_type"], "instr_args": i["instr_args"]}
        for i in file.plan["chains"][0]["instructions"]
    ]
    assert [v["val_type"] for v in plan["values"]] == [v["val_type"] for v in file.plan["values"]]
    start = data.index(b"XH00") - 4
    offset, size = struct.unpack_from("<II", data, start + 10)
    schema = root / "backends" / "xnnpack" / "serialization" / "schema.fbs"
    graph = told(schema, data[start + offset : start + offset + size])
    (ours,) = file.graphs.values()
    assert graph["xnodes"] == [{k: v for k, v in n.items() if v is not None} for n in ours["xnodes"]]
    assert graph["constant_data"] == ours["constant_data"]


def test_a_file_that_is_cut_off_is_an_error() -> None:
    data = small.written("depthwise", "executorch").path.read_bytes()
    header = pte.read(data)
    end = max(start + size for start, size in header.places.values())
    for length in (*range(0, 64, 7), *range(64, 4000, 111)):
        with pytest.raises((ValueError, struct.error, IndexError)):
            pte.read(data[:length])
    assert pte.read(data[:end]).places == header.places


def test_offsets_that_lead_out_of_a_buffer_are_errors() -> None:
    known = flatbuffer.parse("table T { name: string; rest: [T]; } root_type T;")
    for content in (b"", b"\xff\xff\xff\xff", struct.pack("<I", 4) + b"\xff" * 4, struct.pack("<Ii", 4, 400)):
        with pytest.raises(struct.error):
            flatbuffer.read_root(known, content)


def test_it_is_built_where_it_is_asked_for() -> None:
    target = load_target("x86-avx2")
    assert "executorch" not in [r.name for r in runtimes_for(target, "auto")]
    assert [r.name for r in runtimes_for(target, "executorch")] == ["executorch"]
    assert "executorch" in [r.name for r in runtimes_for(target, "all")]


def test_without_pytorch_the_runtime_says_what_it_needs() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from edgeq.on_device.executorch import find\n"
        "from edgeq.on_device.worker import WorkerError\n"
        "try: find()\n"
        "except WorkerError as error: print(error.kind, error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("missing") and "torch" in said
