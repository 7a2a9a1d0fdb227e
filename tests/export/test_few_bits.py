"""Weights of 4 and 2 bits: smaller files, the same bits from every runtime, and an audit that sees a single nibble."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models as small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto
from torch import nn
from torch.nn import functional as F

from edgeq.calibration.calibrate import calibrate
from edgeq.devices import Candidate, open_device
from edgeq.export.artifact import Exporter
from edgeq.export.audit import AuditError, audit, confirm
from edgeq.frontends.load import load
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.numerics.packing import BITS, pack, pack_three, unpack, unpack_three
from edgeq.quantization.quantized import Quantized
from edgeq.quantization.simulate import simulate
from edgeq.records.schema import Placement
from edgeq.registry.load import load_target, target_names

EXTRAS = {"onnxruntime": "onnxruntime", "openvino": "openvino", "litert": "litert_torch"}
"""What a runtime's format needs to be written, by runtime."""

RUNTIMES = list(EXTRAS)
SHAPE = (3, 9, 9)
WEIGHTED = {"QLinearConv", "QGemm", "Convolution", "FullyConnected", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}


class Chain(nn.Module):
    """Layers of every kind with odd numbers of weights, and one pointwise convolution with an even number of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 17, 3, padding=1)
        self.depth = nn.Conv2d(17, 17, 3, padding=1, groups=17)
        self.point = nn.Conv2d(17, 34, 1)
        self.expand = nn.Conv2d(34, 33, 1)
        self.wave = nn.Conv1d(33, 35, 3)
        self.head = nn.Linear(35, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.depth(F.relu(self.stem(x))))
        x = F.relu(self.expand(F.relu(self.point(x))))
        return self.head(F.relu(self.wave(x.flatten(2))).mean(2))


class Variants(nn.Module):
    """Strides, dilations, groups and channel multipliers; a linear on three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.strided = nn.Conv2d(3, 10, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(10, 6, 3, padding=1, groups=2)
        self.dilated = nn.Conv2d(6, 5, 3, padding=2, dilation=2)
        self.multiplied = nn.Conv2d(5, 10, 3, padding=1, groups=5)
        self.pointwise_strided = nn.Conv2d(10, 6, 1, stride=2)
        self.depth = nn.Conv1d(6, 6, 3, padding=1, groups=6)
        self.tokens = nn.Linear(9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.dilated(F.relu(self.grouped(F.relu(self.strided(x))))))
        x = F.relu(self.pointwise_strided(F.relu(self.multiplied(x))))
        return self.tokens(F.relu(self.depth(x.flatten(2))))


class Products(nn.Module):
    """Layers that XNNPACK takes with 4-bit weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 10, 1)
        self.wave, self.head = nn.Conv1d(10, 8, 1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.head(F.relu(self.wave(x.flatten(2))).mean(2))


CHAIN = ("stem", "depth", "point", "expand", "wave", "head")
PLANS: dict[str, tuple[type[nn.Module], dict[str, str]]] = {
    "chain": (Chain, dict.fromkeys(CHAIN, "w4a8")),
    "mixed": (Chain, {"stem": "w4a8", "depth": "w8a8", "point": "float32", "expand": "w4a8", "head": "w4a8"}),
    "variants": (Variants, dict.fromkeys([name for name, _ in Variants().named_children()], "w4a8")),
    "products": (Products, dict.fromkeys(("second", "wave", "head"), "w4a8")),
    "two bits": (Chain, dict.fromkeys(CHAIN, "w2a8")),
    "two bits among others": (Chain, {"stem": "w2a8", "depth": "w4a8", "point": "float32", "expand": "w2a8"}),
    "a product in two bits": (Products, {"second": "w4a8", "head": "w2a8"}),
    "a product of odd length": (Chain, {"head": "w2a8"}),
}
_ONLY = {
    "two bits": ("onnxruntime", "openvino"), "two bits among others": ("onnxruntime", "openvino"),
    "a product in two bits": ("litert",), "a product of odd length": ("litert", "openvino"),
}  # fmt: skip
CASES = [(plan, runtime) for plan in PLANS for runtime in RUNTIMES if runtime in _ONLY.get(plan, RUNTIMES)]


@dataclass(frozen=True)
class Pair:
    """One plan written twice: as it is, and with its 4-bit and 2-bit integers stored in 8 bits."""

    model: Model
    runtime: str
    exporter: Exporter
    planned: Quantized
    widened: Quantized
    path: Path
    wide: Path

    def candidate(self, path: Path, kernels: str = "") -> Candidate:
        return Candidate(path, self.planned.runtime.name, {"kernels": kernels} if kernels else {})

    def outputs(self, path: Path, kernels: str = "") -> np.ndarray:
        (found,) = open_device("local").outputs(self.candidate(path, kernels), self.inputs(4))
        return found

    def placement(self, path: Path, kernels: str = "") -> list[Placement]:
        return open_device("local").placement(self.candidate(path, kernels), self.inputs(1))

    def inputs(self, count: int) -> dict[str, np.ndarray]:
        return {self.model.inputs[0].name: samples(count, 5).numpy()}


def samples(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def in_8_bits(quantized: Quantized) -> Quantized:
    weights = {
        name: replace(w, q=replace(w.q, scheme=replace(w.q.scheme, dtype="int8"))) if w.q.scheme.dtype in BITS else w
        for name, w in quantized.weights.items()
    }
    return replace(quantized, weights=weights)


@cache
def exporter(kind: type[nn.Module]) -> Exporter:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        net = kind().eval()
    model = load(torch.export.export(net, (samples(1, 0),)))
    return Exporter(model, small._scratch() / f"few-bits-{kind.__name__}")


@cache
def written(plan: str, runtime: str) -> Pair:
    importlib.import_module(EXTRAS[runtime])
    kind, choices = PLANS[plan]
    made = exporter(kind)
    model = made.model
    target = "arm-neon" if runtime == "litert" else "x86-avx512"
    calibration = calibrate(model, {model.inputs[0].name: samples(32, 1).numpy()})
    planned = quantize_model(model, small.exact_here(small.runtime(runtime, target)), calibration, choices=choices)
    paths = []
    for name, quantized in (("planned", planned), ("widened", in_8_bits(planned))):
        folder = made.scratch / plan / runtime / name
        folder.mkdir(parents=True)
        paths.append(made.write(quantized, folder)[0])
    return Pair(model, runtime, made, planned, in_8_bits(planned), *paths)


def pair(plan: str, runtime: str) -> Pair:
    pytest.importorskip(EXTRAS[runtime])
    return written(plan, runtime)


def in_few_bits(quantized: Quantized) -> list[str]:
    return [name for name, w in quantized.weights.items() if w.q.scheme.dtype in BITS]


# --- parts of bytes -------------------------------------------------------------------------------


def test_the_first_of_several_integers_is_in_the_lowest_bits() -> None:
    assert pack(np.array([[1, -2], [-7, 7]]), 4).tolist() == [0xE1, 0x79]
    assert pack(np.array([3, -8, 5]), 4).tolist() == [0x83, 0x05]
    assert unpack(np.array([0x83, 0x05], np.uint8), 3, 4).tolist() == [3, -8, 5]
    assert unpack(np.array([0x83, 0x0F], np.uint8), 3, 4, signed=False).tolist() == [3, 8, 15]
    assert pack(np.array([[1, -2], [-1, 0]]), 2).tolist() == [0b00111001]
    assert pack(np.array([-2, 1, 0, -1, 1]), 2).tolist() == [0b11000110, 0b01]
    assert unpack(np.array([0b11000110, 0b01], np.uint8), 5, 2).tolist() == [-2, 1, 0, -1, 1]
    for bits in BITS.values():
        assert unpack(pack(np.zeros(0, np.int8), bits), 0, bits).size == 0


@given(st.sampled_from(sorted(BITS.values())), st.booleans(), st.data())
def test_parts_of_bytes_come_back(bits: int, signed: bool, data: st.DataObject) -> None:
    half = 1 << (bits - 1)
    least = -half if signed else 0
    integers = data.draw(arrays.arrays(np.int8, st.integers(0, 40), elements=st.integers(least, least + 2 * half - 1)))
    packed = pack(integers, bits, signed=signed)
    assert (packed.dtype, packed.size) == (np.uint8, -(-integers.size * bits // 8))
    # as one long number, the first in its lowest bits
    whole = sum((int(value) % (2 * half)) << (bits * place) for place, value in enumerate(integers))
    assert packed.tobytes() == whole.to_bytes(packed.size, "little")
    np.testing.assert_array_equal(unpack(packed, integers.size, bits, signed=signed), integers)


@pytest.mark.parametrize(("bits", "integers"), [(4, [8]), (4, [0, -9]), (2, [2]), (2, [0, -3])])
def test_what_does_not_fit_is_refused(bits: int, integers: list[int]) -> None:
    with pytest.raises(ValueError, match=f"do not fit {bits} bits"):
        pack(np.array(integers), bits)
    with pytest.raises(ValueError, match=f"do not fit {bits} bits"):
        pack(np.array(integers) + 2**bits, bits, signed=False)
    for count in (8 // bits, 16 // bits + 1):
        with pytest.raises(ValueError, match="do not hold"):
            unpack(np.zeros(2, np.uint8), count, bits)


@settings(deadline=None)  # the first call loads OpenVINO
@given(arrays.arrays(np.uint8, st.integers(0, 40), elements=st.integers(0, 7)))
def test_three_bits_lie_as_openvino_has_them(integers: np.ndarray) -> None:
    openvino = pytest.importorskip("openvino")
    packed = pack_three(integers)
    if integers.size:
        theirs = openvino.opset15.constant(integers, openvino.Type.u3).data.view(np.uint8)
        np.testing.assert_array_equal(packed, theirs)
    assert (packed.dtype, packed.size) == (np.uint8, 3 * -(-integers.size // 8))
    np.testing.assert_array_equal(unpack_three(packed, integers.size), integers)


def test_three_bits_that_do_not_fit_are_refused() -> None:
    for odd in ([8], [0, -1]):
        with pytest.raises(ValueError, match="do not fit 3 bits"):
            pack_three(np.array(odd))
    for count in (8, 17):
        with pytest.raises(ValueError, match="do not hold"):
            unpack_three(np.zeros(6, np.uint8), count)


# --- the targets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", target_names())
def test_no_layer_gets_few_bits_by_default(target: str) -> None:
    for runtime in load_target(target).runtimes:
        for op in runtime.ops:
            default = runtime.kernel(op)
            on_integers = {k.weights for k in runtime.kernels if op in k.ops and not k.weight_only}
            assert (default is None) == (not on_integers)
            assert default is None or default.weights not in BITS or on_integers == {default.weights}


THREE_DIMENSIONS = {("x86-avx512", "openvino"), ("x86-avx512", "onnxruntime"), ("arm-neon", "onnxruntime")}
"""Tried nowhere else."""


@pytest.mark.parametrize("target", ["x86-avx512", "x86-avx2", "arm-neon"])
def test_cpus_list_every_operator_that_is_proven_here_and_no_other(target: str) -> None:
    for runtime in load_target(target).runtimes:
        if runtime.name == "executorch":  # it has no layers of few bits
            continue
        (kernel,) = [k for k in runtime.kernels if k.name == "w4a8"]
        more = {"conv3d"} if (target, runtime.name) in THREE_DIMENSIONS else set()
        more |= {"conv_transpose2d"} if runtime.shuffles_transposed and target != "x86-avx2" else set()
        assert set(kernel.ops) == {"conv1d", "conv2d", "depthwise_conv2d", "linear", *more}
        scheme = kernel.weight_scheme
        assert scheme is not None
        assert (scheme.quant_min, scheme.quant_max, scheme.granularity) == (-7, 7, "channel")
        four_levels = [k for k in runtime.kernels if k.name == "w2a8"]
        some = {"litert": {"linear"}, "onnxruntime": set(kernel.ops), "openvino": set(kernel.ops)}
        assert {op for k in four_levels for op in k.ops} == some[runtime.name]


# --- the files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("plan", "runtime"), CASES)
def test_the_plan_chose_few_bits_where_it_was_told_to(plan: str, runtime: str) -> None:
    made, choices = pair(plan, runtime), PLANS[plan][1]
    assert set(in_few_bits(made.planned)) == {name for name, c in choices.items() if c in ("w4a8", "w2a8")}
    assert set(made.planned.weights) == {g.name for g in made.model.groups if g.weight} - {
        name for name, choice in choices.items() if choice == "float32"
    }
    for name in in_few_bits(made.planned):
        integers = made.planned.weights[name].integers
        assert integers.dtype == np.int8
        ends = {"w4a8": ((-7, 7), (-7, 6), (-6, 7)), "w2a8": ((-2, 1),)}[choices[name]]
        assert (int(integers.min()), int(integers.max())) in ends


@pytest.mark.parametrize(("plan", "runtime"), CASES)
def test_outputs_are_those_of_the_same_integers_in_8_bits(plan: str, runtime: str) -> None:
    made = pair(plan, runtime)
    # XNNPACK rounds other than the builtin kernels, to which it leaves some layers with 4-bit weights
    kernels = "builtin" if runtime == "litert" else ""
    found, wanted = made.outputs(made.path, kernels), made.outputs(made.wide, kernels)
    assert len(np.unique(wanted)) > 10
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("plan", "runtime"), CASES)
def test_outputs_are_those_of_the_simulation(plan: str, runtime: str) -> None:
    made = pair(plan, runtime)
    found = made.outputs(made.path)
    (x,) = made.inputs(4).values()
    near = np.concatenate([simulate(made.model, made.planned, [torch.from_numpy(one[None])])[0] for one in x])
    assert float(np.abs(found - near).max()) < 4 / 255 * float(np.ptp(near))


def expected_saving(made: Pair) -> int:
    """Bytes of 8-bit weights less those of fewer bits."""
    weights = [made.planned.weights[name] for name in in_few_bits(made.planned)]
    return sum(w.integers.size - -(-w.integers.size * w.q.scheme.stored_bits // 8) for w in weights)


@pytest.mark.parametrize("plan", ["chain", "mixed"])
def test_onnx_holds_half_bytes(plan: str) -> None:
    made = pair(plan, "onnxruntime")
    proto = onnx.load(made.path)
    onnx.checker.check_model(proto, full_check=True)
    half = {i.name: i for i in proto.graph.initializer if i.data_type == TensorProto.INT4}
    assert set(half) == {f"{name}.weight_quantized_int4" for name in in_few_bits(made.planned)}
    for name in in_few_bits(made.planned):
        count = made.planned.weights[name].integers.size
        assert len(half[f"{name}.weight_quantized_int4"].raw_data) == (count + 1) // 2
    around = 200 * len(half)  # an operator in front of each
    saved = made.wide.stat().st_size - made.path.stat().st_size
    assert expected_saving(made) - around < saved < expected_saving(made)
    assert expected_saving(made) > around


@pytest.mark.parametrize("plan", ["two bits", "two bits among others"])
def test_onnx_holds_quarter_bytes_in_a_newer_file(plan: str) -> None:
    made = pair(plan, "onnxruntime")
    proto, wide = onnx.load(made.path), onnx.load(made.wide)
    onnx.checker.check_model(proto, full_check=True)
    quarter = {i.name: i for i in proto.graph.initializer if i.data_type == TensorProto.INT2}
    wanted = [name for name, w in made.planned.weights.items() if w.q.scheme.dtype == "int2"]
    assert set(quarter) == {f"{name}.weight_quantized_int2" for name in wanted}
    for name in wanted:
        count = made.planned.weights[name].integers.size
        assert len(quarter[f"{name}.weight_quantized_int2"].raw_data) == (count + 3) // 4
    # files without 2 bits stay at the version that more runtimes read
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 25)]
    assert [(o.domain, o.version) for o in wide.opset_import] == [("", 21)]
    assert made.wide.stat().st_size - made.path.stat().st_size > expected_saving(made) - 200 * len(quarter) > 0


def test_tflite_holds_quarter_bytes() -> None:
    made = pair("a product in two bits", "litert")
    integers = made.planned.weights["head"].integers
    assert made.path.read_bytes().count(pack(integers, 2).tobytes()) == 1


@pytest.mark.parametrize("plan", ["chain", "mixed"])
def test_openvino_holds_half_bytes(plan: str) -> None:
    made = pair(plan, "openvino")
    files = [path.with_suffix(".bin").stat().st_size for path in (made.wide, made.path)]
    assert files[0] - files[1] == expected_saving(made)
    held = made.path.read_text().count('element_type="i4"')
    assert held == len(in_few_bits(made.planned))


@pytest.mark.parametrize("plan", ["two bits", "two bits among others", "a product of odd length"])
def test_openvino_holds_quarter_bytes(plan: str) -> None:
    made = pair(plan, "openvino")
    files = [path.with_suffix(".bin").stat().st_size for path in (made.wide, made.path)]
    wanted = [name for name, w in made.planned.weights.items() if w.q.scheme.dtype == "int2"]
    assert 0 <= expected_saving(made) - (files[0] - files[1]) <= len(wanted), "a byte more: the 2 that is subtracted"
    assert made.path.read_text().count('element_type="u2"') == len(wanted) > 0
    held = made.path.with_suffix(".bin").read_bytes()
    assert all(held.count(in_openvino(made, name)) == 1 for name in wanted)


def in_openvino(made: Pair, name: str) -> bytes:
    """The 2-bit integers of a layer, none below zero."""
    return pack(made.planned.weights[name].integers + 2, 2, signed=False).tobytes()


@pytest.mark.parametrize("plan", ["chain", "mixed"])
def test_tflite_holds_half_bytes(plan: str) -> None:
    made = pair(plan, "litert")
    data = made.path.read_bytes()
    count = len(in_few_bits(made.planned))
    saved = made.wide.stat().st_size - len(data)
    assert abs(saved - expected_saving(made)) < 32 * count < expected_saving(made)  # constants are aligned
    assert data.count(pack(made.planned.weights["head"].integers, 4).tobytes()) == 1


# --- where they run -------------------------------------------------------------------------------


@pytest.mark.parametrize(("plan", "runtime"), CASES)
def test_the_runtime_says_that_it_runs_integers(plan: str, runtime: str) -> None:
    made = pair(plan, runtime)
    rows = made.placement(made.path)
    integer_rows = [row for row in rows if row.op in WEIGHTED and row.integer]
    assert len(integer_rows) == len(made.planned.weights)
    if runtime == "openvino":
        assert all(row.where.endswith(("_I8", "_i8")) for row in integer_rows)
    written = audit(made.model, made.planned, made.exporter.read_back(made.planned, made.path))
    assert confirm(made.model, made.planned, written, rows) == written
    integer = sum(g.macs for g in made.model.groups if g.name in made.planned.assignment.kernels)
    assert written.integer_mac_percent == pytest.approx(100 * integer / made.model.macs)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_nothing_of_the_half_bytes_is_left_when_the_model_runs(runtime: str) -> None:
    made = pair("chain", runtime)
    found, wanted = ([(row.op, row.where) for row in made.placement(path)] for path in (made.path, made.wide))
    assert found == wanted


def test_xnnpack_runs_products_with_the_bits_of_8_bit_weights() -> None:
    made = pair("products", "litert")
    rows = [row for row in made.placement(made.path) if row.op in WEIGHTED]
    assert [row.op for row in rows] == ["CONV_2D", "FULLY_CONNECTED", "FULLY_CONNECTED", "FULLY_CONNECTED"]
    assert {row.where for row in rows} == {"XNNPACK delegate"}
    np.testing.assert_array_equal(made.outputs(made.path), made.outputs(made.wide))


def test_pointwise_convolutions_that_are_no_product_stay_convolutions() -> None:
    variants, chain = pair("variants", "litert"), pair("chain", "litert")
    assert operators(variants.path)["pointwise_strided"] == "CONV_2D"
    found = operators(chain.path)
    assert (found["point"], found["expand"]) == ("CONV_2D", "FULLY_CONNECTED")
    assert operators(chain.wide)["expand"] == "CONV_2D"


def operators(path: Path) -> dict[str, str]:
    """Of a `.tflite` file, by the name of what each computes."""
    from edgeq.export.tflite_graph import Graph

    graph = Graph(path.read_bytes())
    return {graph.name(int(op.outputs[0])): graph.kind(op) for op in graph.operators}


# --- the audit ------------------------------------------------------------------------------------


def audited(made: Pair, path: Path, quantized: Quantized | None = None) -> None:
    audit(made.model, quantized or made.planned, made.exporter.read_back(made.planned, path))


@pytest.mark.parametrize(("plan", "runtime"), CASES)
def test_written_files_pass(plan: str, runtime: str) -> None:
    made = pair(plan, runtime)
    found = audit(made.model, made.planned, made.exporter.read_back(made.planned, made.path))
    wide = audit(made.model, made.widened, made.exporter.read_back(made.widened, made.wide))
    assert wide.bytes_checked - found.bytes_checked == expected_saving(made)
    assert wide.tensors_checked == found.tensors_checked


@pytest.mark.parametrize("place", range(0, 8, 2))
def test_one_changed_quarter_byte_is_found_and_named(place: int, tmp_path: Path) -> None:
    for plan, runtime, layer in (
        ("two bits", "onnxruntime", "expand"), ("two bits", "openvino", "expand"),
        ("a product in two bits", "litert", "head"),
    ):  # fmt: skip
        made = pair(plan, runtime)
        signed = pack(made.planned.weights[layer].integers, 2).tobytes()
        old = in_openvino(made, layer) if runtime == "openvino" else signed
        new = bytes([*old[:6], old[6] ^ (1 << place), *old[7:]])
        folder = tmp_path / runtime
        folder.mkdir()
        with pytest.raises(AuditError, match="other weights \\(int2") as caught:
            audited(made, rewritten(made, folder, old, new))
        assert caught.value.where == f"layer {layer}"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_small_integers_in_8_bits_are_not_what_was_planned(runtime: str) -> None:
    made = pair("chain", runtime)
    with pytest.raises(AuditError, match="other weights \\(int8") as caught:
        audited(made, made.wide)
    assert caught.value.where == "layer stem"
    with pytest.raises(AuditError, match="other weights \\(int4"):
        audited(made, made.path, made.widened)


def rewritten(made: Pair, folder: Path, old: bytes, new: bytes) -> Path:
    """A copy of the artefact with one stretch of its bytes replaced."""
    names = [made.path.name] + ([made.path.with_suffix(".bin").name] if made.runtime == "openvino" else [])
    for name in names:
        (folder / name).write_bytes((made.path.parent / name).read_bytes())
    changed = folder / names[-1]
    assert changed.read_bytes().count(old) == 1
    changed.write_bytes(changed.read_bytes().replace(old, new))
    return folder / names[0]


def stored_bytes(made: Pair, layer: str) -> bytes:
    """A layer's packed integers as its format orders them."""
    integers = made.planned.weights[layer].integers
    if made.runtime == "litert" and integers.ndim == 4:
        integers = integers.transpose((1, 2, 3, 0) if layer == "depth" else (0, 2, 3, 1))
    if made.runtime == "litert" and integers.ndim == 3:
        integers = integers.transpose(0, 2, 1)
    return pack(integers, 4).tobytes()


@pytest.mark.parametrize("half", [0x01, 0x10])
@pytest.mark.parametrize("layer", CHAIN)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_one_changed_half_byte_is_found_and_named(runtime: str, layer: str, half: int, tmp_path: Path) -> None:
    made = pair("chain", runtime)
    old = stored_bytes(made, layer)
    new = bytes([*old[:6], old[6] ^ half, *old[7:]])
    with pytest.raises(AuditError, match="other weights \\(int4") as caught:
        audited(made, rewritten(made, tmp_path, old, new))
    assert caught.value.where == f"layer {layer}"


@pytest.mark.parametrize(
    ("stretch", "what"),
    [
        (lambda made: made.planned.weights["expand"].q.scale.tobytes(), "weight scales"),
        (
            lambda made: np.ascontiguousarray(
                made.exporter.read_back(made.planned, made.path).weights["expand"].bias
            ).tobytes(),
            "another bias",
        ),
    ],
)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_other_constants_of_a_layer_with_4_bits_are_checked_as_ever(
    runtime: str, stretch: Callable[[Pair], bytes], what: str, tmp_path: Path
) -> None:
    made = pair("chain", runtime)
    old = stretch(made)
    with pytest.raises(AuditError, match=what) as caught:
        audited(made, rewritten(made, tmp_path, old, bytes([old[0] ^ 1, *old[1:]])))
    assert caught.value.where == "layer expand"


def test_half_bytes_that_no_integer_kernel_can_read_do_not_count(tmp_path: Path) -> None:
    """A DequantizeLinear on the int4 itself: the same numbers, in float."""
    made = pair("chain", "onnxruntime")
    proto = onnx.load(made.path)
    (cast,) = [n for n in proto.graph.node if n.op_type == "Cast" and n.output[0] == "expand.weight_quantized"]
    (reader,) = [n for n in proto.graph.node if cast.output[0] in n.input]
    reader.input[0] = cast.input[0]
    (zero,) = [i for i in proto.graph.initializer if i.name == reader.input[2]]
    count = zero.dims[0]
    zero.CopyFrom(onnx.helper.make_tensor(zero.name, TensorProto.INT4, [count], [0] * count))
    proto.graph.node.remove(cast)
    path = tmp_path / "direct.onnx"
    onnx.save(proto, path)
    found = audit(made.model, made.planned, made.exporter.read_back(made.planned, path))
    assert [f.layer for f in found.float_operators if f.macs] == ["expand"]
    rows = {row.name: row.integer for row in made.placement(path)}
    assert rows["expand"] is False
