"""Real builds in the three runtimes on this machine: what they follow, how long layers take, how large files are."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models as small
import torch
import torch.nn.functional as F
from torch import nn

from edgeq.calibration.calibrate import calibrate
from edgeq.calibration.calibration import Calibration
from edgeq.devices import open_device
from edgeq.export.artifact import Exporter
from edgeq.export.onnx_names import layer_of
from edgeq.frontends.load import load
from edgeq.lowering.assign import FLOAT, assign
from edgeq.lowering.choices import ladder, uniform
from edgeq.lowering.space import Space
from edgeq.model.model import Model
from edgeq.model.ops import WEIGHTED
from edgeq.planning.costs.builds import Built, build_all, observe, probing_plans
from edgeq.planning.costs.size import fit_sizes
from edgeq.planning.costs.state import state
from edgeq.planning.costs.timing import Observed
from edgeq.planning.sensitivity.value import Sensitivity
from edgeq.planning.solver.problem import cost_of
from edgeq.progress import Silent
from edgeq.registry.schema import Runtime

pytest.importorskip("openvino")
pytest.importorskip("litert_torch", reason="the tflite extra (litert-torch) is not installed")

from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgeq.export.tflite_graph import Graph
from edgeq.export.tflite_slices import Slice, slices

RUNTIMES = ["onnxruntime", "openvino", "litert"]
WEIGHTED_OPERATORS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")

BITS = {"w8a8": 8, "w8a16": 8, "w4a8": 4, "w2a8": 2, "w8": 8, "w4": 4, "w2": 2,
        "w4codebook": 4, "w2codebook": 2, "w4g32": 4, "w2g32": 2,
        "w4asym": 4, "w4g32asym": 4, "w8a8dyn": 8, "w4a8dyn": 4, "w4g64a8dyn": 4, FLOAT: 32}  # fmt: skip
"""Of a stored weight, by choice."""


class Heavy(nn.Module):
    """Nearly all multiply-accumulates are in one layer, with cheap ones around it and a branch beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.heavy, self.side = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 48, 9, padding=4), nn.Conv2d(24, 48, 1)
        # OpenVINO's profile knows whole microseconds: a smaller head takes none of them on a fast machine
        self.down, self.head = nn.Conv2d(48, 64, 1), nn.Linear(64, 1000)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(image))
        x = F.relu(self.heavy(x) + self.side(x))
        found: torch.Tensor = self.head(F.relu(self.down(x)).mean((2, 3)))
        return found


@dataclass(frozen=True)
class Subject:
    """A network with what its builds are made from."""

    model: Model
    calibration: Calibration
    exporter: Exporter
    sample: dict[str, np.ndarray]

    def labels(self, runtime: Runtime) -> dict[str, str]:
        return self.exporter.labels(runtime.format)

    def build(self, runtime: Runtime, plans: Mapping[str, Mapping[str, str]], folder: Path) -> dict[str, Built]:
        folder.mkdir(parents=True, exist_ok=True)
        return build_all(self.model, runtime, self.calibration, plans, self.exporter, folder, Silent())

    def options(self, runtime: Runtime) -> dict[str, tuple[str, ...]]:
        return ladder(self.model, runtime, self.calibration.histograms)

    def probes(self, runtime: Runtime) -> dict[str, dict[str, str]]:
        return probing_plans(Space(self.model, runtime, self.options(runtime)))

    @property
    def weighted(self) -> list[str]:
        return [g.name for g in self.model.groups if g.op in WEIGHTED]


def known(name: str) -> Subject:
    exporter = small.exporter(name)
    exporter.scratch.mkdir(parents=True, exist_ok=True)
    one = {key: array[:1] for key, array in small.arrays(name, 4, seed=5).items()}
    return Subject(small.model(name), small.calibration(name), exporter, one)


def made(net: nn.Module, folder: Path, *shape: int) -> Subject:
    torch.set_num_threads(1)
    small._parse_operators_once()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((16, *shape), generator=generator)
    model = load(net.eval(), example=(x[:2],))
    name = model.inputs[0].name
    folder.mkdir()
    return Subject(model, calibrate(model, {name: x.numpy()}), Exporter(model, folder), {name: x[:1].numpy()})


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Heavy()
    return made(net, tmp_path_factory.mktemp("heavy") / "floats", 3, 24, 24)


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_time_of_each_build_is_found_where_the_work_is(name: str, heavy: Subject, tmp_path: Path) -> None:
    by = small.runtime(name)
    every = heavy.probes(by)
    plans = {key: every[key] for key in (FLOAT, "preferred", "alternating a")}
    built = heavy.build(by, plans, tmp_path)
    macs = {g.name: g.macs for g in heavy.model.groups}
    assert macs["heavy"] > 0.9 * sum(macs.values())
    shares = dict.fromkeys(plans, 0.0)
    # OpenVINO's profile is a mean over calls: a single one that the system interrupts can double a layer's time
    for _ in range(4):
        found = observe(heavy.model, built, open_device("local"), heavy.sample, heavy.labels(by), 1, Silent())
        for plan, observed in zip(built, found, strict=True):
            assert all(observed.choices[layer] == plans[plan][layer] for layer in heavy.weighted)
            assert set(observed.seconds) == set(macs)
            assert sum(observed.seconds.values()) == pytest.approx(observed.total)
            assert 1e-5 < observed.total < 0.1
            assert min(observed.seconds.values()) >= 0
            _all_layers_have_time(heavy, observed)
            shares[plan] = max(shares[plan], observed.seconds["heavy"] / observed.total)
        assert len({observed.total for observed in found}) == len(plans)
        if min(shares.values()) > 0.5:
            break
    # runtimes are a few times less efficient at 1 x 1 convolutions and additions than at the heavy layer
    assert min(shares.values()) > 0.5, shares


def _all_layers_have_time(subject: Subject, observed: Observed) -> None:
    """An addition may run inside a convolution, and a mean inside what follows; a layer with weights never vanishes."""
    for layer in subject.weighted:
        assert observed.seconds[layer] > 0, f"{layer} takes no time: it counts for another layer"


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("net", ["residual", "two-outputs"])
def test_every_build_is_the_plan_that_it_was_made_from(net: str, name: str, tmp_path: Path) -> None:
    """What is stored, read back from the file, is what the plan says of each layer with weights."""
    if (net, name) == ("two-outputs", "litert"):
        pytest.skip("one conversion is enough")
    subject, by = known(net), small.runtime(name)
    plans = subject.probes(by)
    built = subject.build(by, plans, tmp_path)
    assert list(built) == list(plans)
    for plan, found in built.items():
        given = assign(subject.model, by, subject.calibration.histograms, plans[plan])
        assert found.choices == {g: given.choice(g) for g in plans[plan]}
        unlike = {g for g in found.choices if found.choices[g] != plans[plan][g]}
        assert not unlike & set(subject.weighted)
        assert all(found.choices[g] == FLOAT for g in unlike)  # nothing in front of it runs on integers
        files = list(found.candidate.path.parent.iterdir())
        assert found.size == sum(f.stat().st_size for f in files)
        bits = _weight_bits(subject, found)
        for layer in subject.weighted:
            assert bits[layer] == BITS[found.choices[layer]]
    assert built["preferred"].choices == plans["preferred"]


def _weight_bits(subject: Subject, built: Built) -> dict[str, int]:
    """Bits of the weight of each layer, found by its shape in a file of any format."""
    path = built.candidate.path
    if path.suffix == ".tflite":
        graph = Graph(path.read_bytes())
        readers = [op for op in graph.operators if graph.kind(op) in WEIGHTED_OPERATORS]
        expanded = {int(op.outputs[0]): int(op.inputs[0]) for op in graph.operators if graph.kind(op) == "DEQUANTIZE"}
        read = [expanded.get(int(op.inputs[1]), int(op.inputs[1])) for op in readers]
        found = [(graph.shape(index), graph.dtype(index)) for index in read]
    elif path.suffix == ".onnx":
        kinds = onnx.TensorProto
        names = {
            kinds.INT8: "int8",
            kinds.INT4: "int4",
            kinds.UINT4: "uint4",
            kinds.INT2: "int2",
            kinds.UINT2: "uint2",
            kinds.FLOAT: "float32",
        }
        found = [(tuple(i.dims), names.get(i.data_type, "")) for i in onnx.load(path).graph.initializer]
    else:
        import openvino

        constants = [
            op for op in openvino.Core().read_model(path).get_ordered_ops() if op.get_type_name() == "Constant"
        ]
        found = [(tuple(op.get_output_shape(0)), op.get_output_element_type(0).get_type_name()) for op in constants]
    bits = {
        "int8": 8, "i8": 8, "int4": 4, "i4": 4, "uint4": 4, "u4": 4, "int2": 2, "uint2": 2, "u2": 2,
        "float32": 32, "f32": 32,
    }  # fmt: skip
    result = {}
    for group in (g for g in subject.model.groups if g.op in WEIGHTED):
        weight = subject.model.state[group.weight or ""]
        own = {bits[dtype] for shape, dtype in found if _dims(shape) == _dims(weight.shape) and dtype in bits}
        in_a_row = {bits[dtype] for shape, dtype in found if shape == (weight.size,) and bits.get(dtype, 32) < 32}
        (result[group.name],) = own or in_a_row
    return result


def _dims(shape: Sequence[int]) -> list[int]:
    """A shape whatever the layout."""
    return sorted(d for d in shape if d != 1)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_profile_names_each_convolution_and_linear_after_its_own_layer(name: str, tmp_path: Path) -> None:
    subject, by = known("residual"), small.runtime(name)
    plans = subject.probes(by)
    built = subject.build(by, {k: plans[k] for k in (FLOAT, "preferred")}, tmp_path)
    for found in built.values():
        expect_named(subject, by, found)


def expect_named(subject: Subject, by: Runtime, built: Built) -> None:
    """As many operators with weights as there are layers, each one's name leads to another."""
    rows = open_device("local").placement(built.candidate, subject.sample, runs=2)
    words = ("Conv", "Gemm", "FullyConnected")
    named = [layer_of(r.name, subject.labels(by)) for r in rows if any(word in r.op for word in words)]
    assert sorted(map(str, named)) == sorted(subject.weighted)


class Numbered(nn.Module):
    """Layers with the names that PyTorch gives to the graph nodes of other layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2d_1, self.conv2d_2, self.conv2d_3 = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.conv2d_3(F.relu(self.conv2d_2(F.relu(self.conv2d_1(image)))))
        return found


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return made(Numbered(), tmp_path_factory.mktemp("numbered") / "floats", 3, 8, 8)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_layer_may_be_called_like_the_value_of_another(name: str, numbered: Subject, tmp_path: Path) -> None:
    by, options = small.runtime(name), numbered.options(small.runtime(name))
    plans = {FLOAT: dict.fromkeys(options, FLOAT), "preferred": uniform(options)}
    for found in numbered.build(by, plans, tmp_path).values():
        expect_named(numbered, by, found)


# --- slices of .tflite files ----------------------------------------------------------------------

NETS = ["residual", "split-shuffle"]


@cache
def tflite_builds(name: str) -> dict[str, Built]:
    subject, by = known(name), small.runtime("litert")
    return subject.build(by, subject.probes(by), subject.exporter.scratch / "slices")


def parts(name: str, plan: str) -> tuple[bytes, list[Slice]]:
    data = tflite_builds(name)[plan].candidate.path.read_bytes()
    return data, slices(data, known(name).labels(small.runtime("litert")))


def interpret(data: bytes, inputs: Mapping[str, np.ndarray], kernels: OpResolverType) -> dict[str, np.ndarray]:
    """Outputs by tensor name, in LiteRT."""
    interpreter = Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=kernels)
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], inputs[detail["name"]])
    interpreter.invoke()
    return {d["name"]: interpreter.get_tensor(d["index"]).copy() for d in interpreter.get_output_details()}


KERNELS = {"xnnpack": OpResolverType.AUTO, "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES}


@pytest.mark.parametrize("kernels", list(KERNELS))
@pytest.mark.parametrize("name", NETS)
def test_slices_one_after_the_other_give_the_bits_of_the_whole_file(name: str, kernels: str) -> None:
    sample = known(name).sample
    for plan in tflite_builds(name):
        data, cut = parts(name, plan)
        whole = interpret(data, sample, KERNELS[kernels])
        values = dict(sample)
        for part in cut:
            graph = Graph(part.data)
            given = {graph.name(i): values[graph.name(i)] for i in graph.inputs}
            found = interpret(part.data, given, KERNELS[kernels])
            assert not found.keys() & values.keys()
            values |= found
        assert len(cut) > 1
        for output, value in whole.items():
            assert np.array_equal(values[output], value), (plan, output)
            assert np.ptp(value) > 0


@pytest.mark.parametrize("name", NETS)
def test_each_operator_is_in_one_slice_and_the_slice_has_the_files_types(name: str) -> None:
    for plan in tflite_builds(name):
        data, cut = parts(name, plan)
        whole = Graph(data)
        kinds = [whole.kind(op) for op in whole.operators]
        written = [whole.name(int(op.outputs[0])) for op in whole.operators]
        graphs = [Graph(part.data) for part in cut]
        assert [g.kind(op) for g in graphs for op in g.operators] == kinds
        assert [g.name(int(op.outputs[0])) for g in graphs for op in g.operators] == written
        for part, graph in zip(cut, graphs, strict=True):
            assert part.shapes == tuple((graph.shape(i), graph.dtype(i)) for i in graph.inputs)
            assert {n: (a.shape, a.dtype.name) for n, a in part.inputs().items()} == {
                f"in{n}": shape for n, shape in enumerate(part.shapes)
            }


def test_operators_of_no_layer_go_with_the_next_one_and_the_last_with_the_last_layer() -> None:
    data = tflite_builds("residual")["preferred"].candidate.path.read_bytes()
    whole = Graph(data)
    for known_layers in (["inner"], ["stem", "inner"], ["head"]):
        cut = slices(data, {layer: layer for layer in known_layers})
        assert [part.layer for part in cut] == known_layers
        operators = [Graph(part.data).operators for part in cut]
        assert sum(map(len, operators)) == len(whole.operators)
        ends = [{int(o) for op in whole.operators[: sum(map(len, operators[: i + 1]))] for o in op.outputs}
                for i in range(len(cut))]  # fmt: skip
        for layer, done in zip(known_layers, ends, strict=True):
            assert layer in {whole.name(i) for i in done}
    assert slices(data, {"other": "other"}) == []


@pytest.mark.parametrize("name", NETS)
def test_the_slice_of_a_layer_is_the_one_with_its_weights(name: str) -> None:
    """Also that of the last layer, whose output carries the name of the model's output."""
    model = small.model(name)
    sizes = {g.name: model.state[g.weight].size for g in model.groups if g.weight}
    assert len(set(sizes.values())) == len(sizes)
    for plan in tflite_builds(name):
        found = {}
        for part in parts(name, plan)[1]:
            graph = Graph(part.data)
            expanded = {
                int(op.outputs[0]): int(op.inputs[0]) for op in graph.operators if graph.kind(op) == "DEQUANTIZE"
            }
            for op in graph.operators:
                if graph.kind(op) in WEIGHTED_OPERATORS:
                    constant = graph.constant(expanded.get(int(op.inputs[1]), int(op.inputs[1])))
                    assert constant is not None
                    found[constant.size] = part.layer
        assert found == {size: layer for layer, size in sizes.items()}, plan


def test_equal_layers_of_two_builds_are_one_file(tmp_path: Path) -> None:
    subject, by = known("residual"), small.runtime("litert")
    preferred = uniform(subject.options(by))
    plans = {"preferred": preferred, "small head": preferred | {"head": "w4a8"}}
    labels = subject.labels(by)
    first, second = (
        {part.layer: part.digest for part in slices(b.candidate.path.read_bytes(), labels)}
        for b in subject.build(by, plans, tmp_path).values()
    )
    assert {layer for layer in first if first[layer] != second[layer]} == {"head"}
    assert len(set(first.values())) == len(first) == len(preferred)


def test_a_layer_that_looks_numbers_up_can_be_timed_alone(tmp_path: Path) -> None:
    """Its table has 20 rows: no larger number may be asked for."""
    subject, by = known("embedded"), small.runtime("litert")
    options = subject.options(by)
    found = subject.build(by, {FLOAT: dict.fromkeys(options, FLOAT)}, tmp_path)[FLOAT]
    for part in slices(found.candidate.path.read_bytes(), subject.labels(by)):
        graph = Graph(part.data)
        given = {graph.name(i): a for i, a in zip(graph.inputs, part.inputs().values(), strict=True)}
        answers = interpret(part.data, given, OpResolverType.AUTO)  # raises where an index is out of bounds
        assert answers and all(np.isfinite(a).all() for a in answers.values()), part.layer


# --- sizes ----------------------------------------------------------------------------------------


def expect_sizes(subject: Subject, by: Runtime, folder: Path, bytes_off: float) -> None:
    """Plans at random that were not built before, against the bytes of their files."""
    options = subject.options(by)
    space = Space(subject.model, by, options)
    built = subject.build(by, subject.probes(by), folder / "fitted")
    sizes = fit_sizes(space, [(b.choices, b.size) for b in built.values()])
    rng = random.Random(1)
    plans = {str(i): {g: rng.choice(offered) for g, offered in options.items()} for i in range(8)}
    problem = state(space, Sensitivity({}, {}), {}, sizes, {})
    off = {}
    for found in subject.build(by, plans, folder / "random").values():
        files = list(found.candidate.path.parent.iterdir())
        off[found.size] = cost_of(problem, found.choices)["size"] - sum(f.stat().st_size for f in files)
    assert len(off) > 4
    assert all(abs(wrong) <= max(0.02 * size, bytes_off) for size, wrong in off.items()), off


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_size_of_any_plan_is_predicted_within_two_percent(name: str, heavy: Subject, tmp_path: Path) -> None:
    expect_sizes(heavy, small.runtime(name), tmp_path, bytes_off=0)


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("net", ["residual", "split-shuffle", "gate"])
def test_the_size_of_a_tiny_file_is_predicted_within_1500_bytes(net: str, name: str, tmp_path: Path) -> None:
    if (net, name) == ("gate", "litert"):
        pytest.skip("two conversions are enough")
    expect_sizes(known(net), small.runtime(name), tmp_path, bytes_off=1500)


class Tied(nn.Module):
    """Nearly all of it is a table that is looked up and multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.first, self.second = nn.Embedding(600, 48), nn.Linear(48, 96), nn.Linear(96, 48)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.second(F.relu(self.first(self.embedding(tokens))))
        return F.linear(x, self.embedding.weight)


@pytest.mark.parametrize("name", RUNTIMES)
def test_weights_that_are_looked_up_as_well_are_stored_as_often_as_the_format_does(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 600, (16, 8))
    model = load(Tied().eval(), example=(tokens[:2],))
    calibration = calibrate(model, {"tokens": tokens.numpy()})
    (tmp_path / "float").mkdir()
    subject = Subject(model, calibration, Exporter(model, tmp_path / "float"), {"tokens": tokens[:1].numpy()})
    expect_sizes(subject, small.runtime(name), tmp_path, bytes_off=1500)


def test_a_layer_is_counted_with_what_it_stores(heavy: Subject, tmp_path: Path) -> None:
    by = small.runtime("onnxruntime")
    options = heavy.options(by)
    built = heavy.build(by, heavy.probes(by), tmp_path)
    sizes = fit_sizes(Space(heavy.model, by, options), [(b.choices, b.size) for b in built.values()])
    weights, bias = 24 * 48 * 81, 4 * 48
    own = sizes.layers["heavy"]
    assert own[FLOAT] == 4 * weights + bias
    # beside the integers, one scale for each channel and some names
    assert weights + bias < own["w8a8"] < weights + bias + 12 * 48 + 1000
    assert own["w8a8"] - own["w4a8"] == pytest.approx(weights / 2, abs=1000)
    assert sizes.conversion >= 0 and sizes.fixed > 0
