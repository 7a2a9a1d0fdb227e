"""The table of times, fitted to builds whose layer times and conversion costs are known; names of operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx
import pytest
import small_models as small
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from scipy.optimize import nnls

from edgeq.export.onnx_names import layer_of
from edgeq.lowering.assign import FLOAT, assign
from edgeq.lowering.boundaries import Edge, crossings, edges
from edgeq.lowering.choices import ladder, uniform
from edgeq.lowering.space import Space
from edgeq.model.ops import WEIGHTED
from edgeq.planning.costs.builds import probing_plans
from edgeq.planning.costs.timing import Observed, Timing, _non_negative, attribute, fit
from edgeq.records.schema import Placement

Choices = Mapping[str, str]


INTEGERS = ("w8a8", "w4a8", "w2a8", "a8")
FLOATS = ("w8", "w4", "w4asym", "w2", "w4codebook", "w2codebook", "w8a8dyn", "w4a8dyn", "w4g64a8dyn", FLOAT)
WIDTH = dict.fromkeys(INTEGERS, 8) | dict.fromkeys(("w8a16", "a16"), 16) | dict.fromkeys(FLOATS, 32)
"""Bits of what a layer reads and writes."""

KINDS = ("quantize", "dequantize", "requantize")


@dataclass(frozen=True)
class Truth:
    """An invented device: seconds of each layer, and of each conversion at the reader's and at the writer's side.

    A converted tensor is charged to the first layer that wants it so, and to the layer that makes it.
    """

    edges: Sequence[Edge]
    layers: Mapping[str, Mapping[str, float]]
    read: Mapping[tuple[str, str], float]
    write: Mapping[tuple[str, str], float]

    @classmethod
    def invent(cls, name: str, runtime: str, seed: int) -> Truth:
        """Conversions take time by the element, in two parts that vary between runtimes but not between tensors."""
        model, by = small.model(name), small.runtime(runtime)
        rng = np.random.default_rng(seed)
        found = edges(model, by)
        options = ladder(model, by, small.calibration(name).histograms)
        layers = {g: {c: rng.uniform(5e-6, 2e-4) for c in offered} for g, offered in options.items()}
        per = {(side, kind): rng.uniform(3e-9, 5e-8) for side in ("read", "write") for kind in KINDS}
        read = {(e.tensor, k): per["read", k] * e.elements for e in found for k in KINDS}
        write = {(e.tensor, k): per["write", k] * e.elements if e.producer else 0.0 for e in found for k in KINDS}
        return cls(found, layers, read, write)

    def seconds(self, choices: Choices) -> dict[str, float]:
        result = {g: self.layers[g][choice] for g, choice in choices.items()}
        for edge in self.edges:
            own = 32 if edge.float_anyway else WIDTH[choices[edge.producer or ""]]
            for width in {8, 16, 32} - {own}:
                unlike = [r for r in edge.readers if WIDTH[choices[r]] == width]
                kind = "quantize" if own == 32 else "dequantize" if width == 32 else "requantize"
                if unlike:
                    result[unlike[0]] += self.read[edge.tensor, kind]
                if unlike and edge.producer is not None:
                    result[edge.producer] += self.write[edge.tensor, kind]
        return result

    def total(self, choices: Choices) -> float:
        return sum(self.seconds(choices).values())

    def observe(self, choices: Choices, noise: float, rng: np.random.Generator) -> Observed:
        seen = {g: s * (1 + noise * rng.standard_normal()) for g, s in self.seconds(choices).items()}
        return Observed(choices, seen, sum(seen.values()))


def followed(name: str, runtime: str, plan: Choices) -> dict[str, str]:
    """What becomes of a plan: a layer without weights runs on integers only behind one that does."""
    given = assign(small.model(name), small.runtime(runtime), small.calibration(name).histograms, plan)
    return {g: given.choice(g) for g in plan}


def probes(name: str, runtime: str) -> list[dict[str, str]]:
    model, by = small.model(name), small.runtime(runtime)
    options = ladder(model, by, small.calibration(name).histograms)
    return [followed(name, runtime, plan) for plan in probing_plans(Space(model, by, options)).values()]


def random_plans(name: str, runtime: str, count: int, seed: int) -> list[dict[str, str]]:
    options = ladder(small.model(name), small.runtime(runtime), small.calibration(name).histograms)
    rng = np.random.default_rng(seed)
    return [followed(name, runtime, {g: str(rng.choice(o)) for g, o in options.items()}) for _ in range(count)]


def fitted(name: str, runtime: str, truth: Truth, noise: float = 0.0, seed: int = 0) -> tuple[Timing, list[Observed]]:
    rng = np.random.default_rng(seed)
    observed = [truth.observe(plan, noise, rng) for plan in probes(name, runtime)]
    return fit(small.model(name), truth.edges, observed), observed


CASES = [
    ("residual", "onnxruntime"),
    ("activations", "litert"),
    ("two-inputs", "openvino"),
    ("split-shuffle", "litert"),
]


@pytest.mark.parametrize(("name", "runtime"), CASES)
def test_the_table_gives_back_the_builds_that_it_was_fitted_to(name: str, runtime: str) -> None:
    for seed in range(4):
        timing, observed = fitted(name, runtime, truth := Truth.invent(name, runtime, seed))
        for build in observed:
            # The model's inputs come from no layer: nobody can be seen to pay for writing them.
            assert timing.of(truth.edges, build.choices) == pytest.approx(build.total, rel=2e-3)


@pytest.mark.parametrize(("name", "runtime"), CASES)
def test_from_exact_builds_any_other_plan_is_predicted(name: str, runtime: str) -> None:
    errors = []
    for seed in range(4):
        timing, _ = fitted(name, runtime, truth := Truth.invent(name, runtime, seed))
        for plan in random_plans(name, runtime, 25, seed):
            errors.append(timing.of(truth.edges, plan) / truth.total(plan) - 1)
    assert np.abs(errors).max() < 0.01
    assert np.abs(errors).mean() < 0.002


def test_choices_that_run_in_one_kernel_have_one_time() -> None:
    """By the runtime's own account, and only if the times do not say otherwise."""
    name, runtime = "residual", "onnxruntime"
    model, found_edges = small.model(name), edges(small.model(name), small.runtime(runtime))
    layers = [g.name for g in model.groups if g.op in WEIGHTED]
    rng = np.random.default_rng(0)
    kernels = {"w8a8": 2.0, "w4a8": 2.0, "w2a8": 1.0, "a8": 1.0} | dict.fromkeys(FLOATS, 4.0)
    for told in (True, False):
        observed = []
        for plan in probes(name, runtime):
            integer = {g: choice in INTEGERS for g, choice in plan.items()}
            seconds = {g: 1e-6 * kernels[c] * (1 + 0.04 * rng.standard_normal()) for g, c in plan.items()}
            account = {g: ("QLinearConv, CPU",) if integer[g] else ("Conv, CPU",) for g in plan}
            observed.append(Observed(plan, seconds, sum(seconds.values()), account if told else {}))
        table = fit(model, found_edges, observed).layers
        for layer in layers:
            times = table[layer]
            if told:
                assert times["w8a8"] == times["w4a8"] != times["w8"] == times["w4"] == times["w2"] == times[FLOAT]
                assert times["w2a8"] < 0.7 * times["w8a8"]  # faster behind the same words


@pytest.mark.parametrize(("name", "runtime"), CASES)
def test_two_percent_of_noise_stays_about_two_percent(name: str, runtime: str) -> None:
    errors = []
    for seed in range(4):
        truth = Truth.invent(name, runtime, seed)
        timing, _ = fitted(name, runtime, truth, 0.02, seed)
        for plan in random_plans(name, runtime, 25, seed):
            errors.append(timing.of(truth.edges, plan) / truth.total(plan) - 1)
    assert np.abs(errors).mean() < 0.015
    assert np.abs(errors).max() < 0.06


def test_slow_kernels_of_one_type_do_not_blur_the_times_of_another() -> None:
    """Ones that are a hundred times as slow, and a twentieth slower beside others: that is as much as the others take,
    and no conversion's."""
    name, runtime = "residual", "litert"
    model, truth = small.model(name), Truth.invent(name, runtime, seed=0)
    rng, observed = np.random.default_rng(0), []
    for plan in probes(name, runtime):
        slow, mixed = [g for g, c in plan.items() if WIDTH[c] == 16], len({WIDTH[c] for c in plan.values()}) > 1
        seconds = dict(truth.observe(plan, 0.01, rng).seconds)
        seconds |= {g: 100 * seconds[g] * (1.05 if mixed else 1) for g in slow}
        observed.append(Observed(plan, seconds, sum(seconds.values())))
    timing = fit(model, truth.edges, observed)
    fast = [p for p in random_plans(name, runtime, 400, seed=1) if 16 not in {WIDTH[c] for c in p.values()}]
    assert len(fast) >= 5
    assert max(abs(timing.of(truth.edges, p) / truth.total(p) - 1) for p in fast) < 0.1


def test_two_types_that_never_met_have_a_conversion_all_the_same() -> None:
    """Builds of one type each: a plan may mix them, and is costed."""
    name, by = "residual", small.runtime("litert")
    found, truth = edges(small.model(name), by), Truth.invent("residual", "litert", 0)
    options = ladder(small.model(name), by, small.calibration(name).histograms)
    alone = [followed(name, "litert", uniform(options, choice)) for choice in ("w8a8", "w8a16")]
    timing = fit(small.model(name), found, [truth.observe(plan, 0.0, np.random.default_rng(0)) for plan in alone])
    mixed = {g: (alone[0] if number % 2 else alone[1])[g] for number, g in enumerate(options)}
    assert any(kind == "requantize" for _, kind, _ in crossings(found, mixed))
    assert timing.of(found, mixed) > 0


def test_without_conversions_each_layers_own_time_is_found() -> None:
    truth = Truth.invent("residual", "openvino", 0)
    free = Truth(truth.edges, truth.layers, dict.fromkeys(truth.read, 0.0), dict.fromkeys(truth.write, 0.0))
    timing, _ = fitted("residual", "openvino", free)
    for layer, costs in timing.layers.items():
        for choice, seconds in costs.items():
            assert seconds == pytest.approx(truth.layers[layer][choice], rel=1e-3)
    for conversions in timing.conversions.values():
        assert max(conversions.values()) < 1e-3 * np.mean([c for own in truth.layers.values() for c in own.values()])


def test_nothing_takes_less_than_no_time() -> None:
    """A layer that runs faster beside unlike neighbours gives no conversion a negative cost."""
    truth = Truth.invent("residual", "onnxruntime", 1)
    gain = Truth(truth.edges, truth.layers, {k: -v for k, v in truth.read.items()}, truth.write)
    timing, _ = fitted("residual", "onnxruntime", gain)
    found = [*timing.layers.values(), *timing.conversions.values()]
    assert min(seconds for costs in found for seconds in costs.values()) >= 0  # type: ignore[attr-defined]


def test_a_plan_takes_its_layers_and_its_conversions() -> None:
    found = [
        Edge("x", None, True, ("a", "b"), 10),
        Edge("y", "a", False, ("b", "c"), 10),
        Edge("z", "b", True, ("c",), 10),
    ]
    timing = Timing(
        {"a": {"w8a8": 1.0, FLOAT: 2.0}, "b": {"w8a8": 4.0, FLOAT: 8.0}, "c": {"w8a8": 16.0, FLOAT: 32.0}},
        {
            "x": {"quantize": 100.0, "dequantize": 1e9},
            "y": {"quantize": 200.0, "dequantize": 400.0},
            "z": {"quantize": 800.0, "dequantize": 1e9},
        },
    )

    def of(a: str, b: str, c: str) -> float:
        return timing.of(found, {"a": a, "b": b, "c": c})

    assert of(FLOAT, FLOAT, FLOAT) == 42
    assert of("w8a8", "w8a8", "w8a8") == 21 + 100 + 800
    assert of("w8a8", FLOAT, FLOAT) == 41 + 100 + 400
    assert of(FLOAT, "w8a8", "w8a8") == 22 + 100 + 200 + 800
    assert of("w8a8", "w8a8", FLOAT) == 37 + 100 + 400


def row(name: str, microseconds: float | None) -> Placement:
    return Placement(name=name, op="", where="", integer=None, microseconds=microseconds)


LABELS = {"stem": "stem", "inner": "inner", "head": "head", "linear": "head"}


def test_an_operator_without_a_layer_counts_for_the_next_one_and_the_last_for_the_last() -> None:
    rows = [
        row("x_quantize", 1), row("stem_token_3", 10), row("Transpose", 2), row("Reorder", None), row("inner/relu", 20),
        row("stem", 100), row("linear", 40), row("Transpose_token_8", 4),
    ]  # fmt: skip
    found = attribute(small.model("residual"), rows, LABELS, {"stem": "w8a8"}, total=177e-6)
    layers = dict.fromkeys((g.name for g in small.model("residual").groups), 0.0)
    expected = layers | {"stem": 111e-6, "inner": 22e-6, "head": 44e-6}
    assert found.seconds == pytest.approx(expected)
    assert (found.total, found.choices) == (177e-6, {"stem": "w8a8"})


@given(
    st.lists(st.tuples(st.sampled_from(["stem", "inner/relu", "head_token_1", "Transpose"]), st.floats(0, 1e4))),
    st.floats(1e-6, 1.0),
)
def test_no_time_is_lost_and_the_rows_are_scaled_to_the_whole(rows: list[tuple[str, float]], total: float) -> None:
    rows = [*rows, ("inner", 1.0)]
    found = attribute(small.model("residual"), [row(*r) for r in rows], LABELS, {}, total)
    assert sum(found.seconds.values()) == pytest.approx(total)
    alone = [r for r in rows if r[0] != "Transpose"]
    if alone == rows:
        spent = sum(t for _, t in rows)
        assert found.seconds["head"] == pytest.approx(
            total * sum(t for n, t in rows if n.startswith("head")) / spent, abs=1e-12
        )


NAMES = st.lists(st.sampled_from(["features", "0", "conv", "2d", "add_3", "a#2"]), min_size=1, max_size=3).map(".".join)
MARKS = st.lists(st.sampled_from(["/relu", "/WithoutBiases", "_token_12", "_nchwc"]), max_size=3).map("".join)


@given(st.dictionaries(NAMES, NAMES, min_size=1), MARKS, st.data())
def test_a_layer_is_found_behind_the_marks_of_a_runtime(
    labels: dict[str, str], marks: str, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(labels)))
    assert layer_of(name + marks, labels) == labels[name]


@given(NAMES, MARKS)
@settings(max_examples=50)
def test_a_name_of_no_layer_belongs_to_none(name: str, marks: str) -> None:
    other = f"{name}_other"
    assert layer_of(other + marks, {name: "layer"}) is None
    assert layer_of(f"x{name}{marks}", {name: "layer"}) is None
    assert layer_of("_token_5", {name: "layer"}) is None


@pytest.mark.parametrize("name", ["residual", "split-shuffle"])
def test_operators_of_the_float_file_carry_the_name_of_the_layer_whose_weight_they_read(name: str) -> None:
    exporter = small.exporter(name)
    exporter.scratch.mkdir(parents=True, exist_ok=True)
    graph = onnx.load(exporter.float_model("onnx")[0]).graph
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    model, labels = small.model(name), exporter.labels("onnx")
    operators = {node.name: node for node in graph.node}
    weighted = [g for g in model.groups if g.op in WEIGHTED]
    for group in weighted:
        stored = constants[operators[group.name].input[1]]
        own = model.state[group.weight or ""]
        assert np.array_equal(stored, own) or np.array_equal(stored, own.T)
    readers = [n.name for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    assert sorted(readers) == sorted(g.name for g in weighted)
    for node in graph.node:
        # an operator's own name and that of its value lead to the same layer
        by_name, by_value = layer_of(node.name, labels), layer_of(node.output[0], labels)
        assert by_value is None or by_value == by_name
    assert {labels[g.name] for g in model.groups} == {g.name for g in model.groups}
    assert set(labels.values()) == {g.name for g in model.groups}


def test_probing_plans_give_each_layer_each_choice_among_like_and_unlike_neighbours() -> None:
    name, by = "residual", small.runtime("onnxruntime")
    model = small.model(name)
    options, found = ladder(model, by, small.calibration(name).histograms), edges(model, by)
    plans = probing_plans(Space(model, by, options))
    assert list(plans)[:8] == [FLOAT, "preferred", "w4a8", "w2a8", "w8", "w4", "w4asym", "w2"]
    for layer, offered in options.items():
        assert {plan[layer] for plan in plans.values()} == set(offered)
    for one, other in pairwise(list(plans)[8:]):
        if one[:-1] == other[:-1]:  # two sides of one colouring are each other's opposites
            assert all(
                (plans[one][g] == FLOAT) != (plans[other][g] == FLOAT) or len(o) == 1 for g, o in options.items()
            )
    kinds = {(plan[e.producer] == FLOAT, plan[r] == FLOAT) for plan in plans.values() for e in found if e.producer
             for r in e.readers}  # fmt: skip
    assert len(kinds) == 4
    assert probing_plans(Space(model, by, options)) == plans


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 2**31))
@settings(deadline=None)
def test_the_fit_is_as_good_as_that_of_an_active_set_method(columns: int, equations: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = np.where(rng.random((equations, columns)) < 0.4, rng.uniform(0.1, 1.0, (equations, columns)), 0.0)
    matrix[0, 0] = 1.0
    wanted = rng.uniform(-0.2, 1.0, equations)
    rows = [{j: float(v) for j, v in enumerate(row) if v} for row in matrix]
    by_column = _non_negative(rows, list(wanted))
    found = np.array([by_column.get(j, 0.0) for j in range(columns)])
    assert (found >= 0).all()
    _, best = nnls(matrix, wanted)
    assert np.linalg.norm(matrix @ found - wanted) <= best + 1e-5
