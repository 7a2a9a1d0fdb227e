"""The program of a plan: stated from what was measured, written into the plan, read back, edited and explained."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import small_models as small
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import UsageError
from edgeq.lowering.assign import FLOAT, assign
from edgeq.lowering.boundaries import Kind, crossings, edges
from edgeq.lowering.choices import ladder, uniform
from edgeq.lowering.form import on_integers
from edgeq.lowering.space import Space
from edgeq.methods.quantize import quantize_model
from edgeq.model.ops import MOVEMENT
from edgeq.planning.costs.size import Sizes
from edgeq.planning.costs.state import state
from edgeq.planning.costs.timing import Timing
from edgeq.planning.explain.explain import explain, guiltiest, recost
from edgeq.planning.sensitivity.value import Sensitivity
from edgeq.planning.solver.problem import Problem, check, cost_of
from edgeq.planning.solver.restate import restate
from edgeq.plans.describe import describe
from edgeq.plans.plan import Condition, Conversion, Plan, Planned, read_plan, refuse_other

NETS = ["residual", "split-shuffle", "activations", "gate", "two-inputs", "two-outputs"]
RUNTIMES = ["onnxruntime", "openvino", "litert"]


@cache
def stated(name: str, runtime: str, timed: bool = True) -> tuple[Problem, Sensitivity, Timing, Sizes]:
    """The program with invented costs: a power of two for each loss, so that a sum tells its parts."""
    model, by, histograms = small.model(name), small.runtime(runtime), small.calibration(name).histograms
    options, found = ladder(model, by, histograms), edges(model, by)
    rng = np.random.default_rng(0)
    rounded = sorted(assign(model, by, histograms).tensors)
    tensors = {(node, form): 2.0**i for i, (node, form) in enumerate(product(rounded, ("a8", "a16")))}
    keys = [(g, c) for g, offered in options.items() for c in offered if c.startswith("w")]
    weights: dict[str, dict[str, float]] = {}
    for position, (group, choice) in enumerate(keys, start=1):
        weights.setdefault(group, {})[choice] = 2.0**-position
    timing = Timing(
        {g: {c: rng.uniform(1, 100) * 1e-6 for c in offered} for g, offered in options.items()},
        {e.tensor: {kind: rng.uniform(1, 9) * 1e-6 for kind in get_args(Kind)} for e in found},
    )
    sizes = Sizes({g: {c: float(rng.integers(50, 5000)) for c in o} for g, o in options.items()}, 131.0, 4000.0)
    sensitivity = Sensitivity(weights, tensors)
    problem = state(Space(model, by, options), sensitivity, {"latency": timing} if timed else {}, sizes, {})
    return problem, sensitivity, timing, sizes


def random_choices(problem: Problem, rng: random.Random) -> dict[str, str]:
    return {g: rng.choice(list(offered)) for g, offered in problem.options.items()}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", NETS)
def test_the_program_costs_a_plan_what_its_parts_were_measured_to_cost(name: str, runtime: str) -> None:
    model, by, histograms = small.model(name), small.runtime(runtime), small.calibration(name).histograms
    problem, sensitivity, timing, sizes = stated(name, runtime)
    found, rng, seen = edges(model, by), random.Random(name), 0
    for _ in range(3000):
        choices = random_choices(problem, rng)
        if check(problem, choices):
            continue
        seen += 1
        costs = cost_of(problem, choices)
        assert costs["latency"] == pytest.approx(timing.of(found, choices), rel=1e-12)
        converted = sum(one.form is not None for one in crossings(found, choices))
        size = sizes.fixed + sum(sizes.layers[g][c] for g, c in choices.items()) + sizes.conversion * converted
        assert costs["size"] == pytest.approx(size, rel=1e-12)
        # each tensor that the exporter would round, once; each layer's rounded weights. Integers that only move are
        # those of another tensor, and those that were rounded to 8 bits are rounded by no 16
        moved = {g.output for g in model.groups if g.op in MOVEMENT and on_integers(choices[g.name])}
        given = assign(model, by, histograms, choices)
        rounds = {(n, "a8") for n, dtype in given.again if dtype.endswith("8")}
        rounds |= {(n, "a16" if "16" in share[1] else "a8") for n, share in given.tensors.items() if n not in moved}
        weights = sum(sensitivity.weights.get(g, {}).get(c, 0.0) for g, c in choices.items())
        assert costs["loss"] == sum(sensitivity.tensors[r] for r in rounds) + weights
    assert seen > 10


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", NETS)
def test_a_plan_without_faults_is_followed_layer_by_layer(name: str, runtime: str) -> None:
    model, by, histograms = small.model(name), small.runtime(runtime), small.calibration(name).histograms
    problem, rng, verdicts = stated(name, runtime)[0], random.Random(name), []
    for _ in range(60):
        choices = random_choices(problem, rng)
        given = assign(model, by, histograms, choices)
        followed = {g: given.choice(g) for g in choices}
        verdicts.append(not check(problem, choices))
        assert verdicts[-1] == (followed == choices)
    assert any(verdicts)
    assert not check(problem, dict.fromkeys(problem.options, FLOAT))
    assert not check(problem, {g: next(iter(offered)) for g, offered in problem.options.items()})


def test_measured_losses_take_the_place_of_predicted_ones() -> None:
    model, by, histograms = small.model("residual"), small.runtime("litert"), small.calibration("residual").histograms
    problem, sensitivity, timing, sizes = stated("residual", "litert")
    measured = {("stem", "w4a8"): 0.125, ("head", "w8a8"): 0.25}
    options, tables = ladder(model, by, histograms), {"latency": timing}
    other = state(Space(model, by, options), sensitivity, tables, sizes, measured)
    differ = {
        (g, c): other.options[g][c]["loss"]
        for g, offered in problem.options.items()
        for c in offered
        if other.options[g][c] != problem.options[g][c]
    }
    assert differ == measured
    assert other.boundaries == problem.boundaries


def test_without_a_clock_there_is_no_latency() -> None:
    problem = stated("residual", "litert", timed=False)[0]
    assert set(cost_of(problem, dict.fromkeys(problem.options, FLOAT))) == {"loss", "size"}


@cache
def planned(name: str, runtime: str, timed: bool = True) -> Plan:
    """The preferred kernels everywhere, as a plan that carries the whole program."""
    by = small.runtime(runtime)
    problem = stated(name, runtime, timed)[0]
    choices = uniform({g: tuple(offered) for g, offered in problem.options.items()})
    quantized = quantize_model(small.model(name), by, small.calibration(name), choices=choices)
    basis = describe(small.model(name), quantized, target="x86-avx512", data_hash="0" * 64)
    layers = [
        layer.model_copy(update={"alternatives": {c: dict(v) for c, v in problem.options[layer.name].items()}})
        for layer in basis.layers
    ]
    found: dict[str, Any] = {
        "minimize": "latency", "limits": {}, "predicted": cost_of(problem, choices), "latency_from": "measured",
        "losses_alone": [], "rank_correlation": None, "method": "optimal", "gap": 0.0, "fixed": dict(problem.fixed),
        "attempts": [], "proof": None,
        "conditions": [
            Condition(layer=n.group, choices=sorted(n.choices), any_of={o: sorted(v) for o, v in n.any_of})
            for n in problem.needs
        ],
        "conversions": [
            Conversion(
                producer=b.producer,
                leaves=sorted(b.leaves),
                readers={r: sorted(v) for r, v in b.readers.items()},
                costs=dict(b.costs),
            )
            for b in problem.boundaries
        ],
    }  # fmt: skip
    return basis.model_copy(update={"layers": layers, "planned": Planned(**found)})


def content(name: str = "residual", runtime: str = "openvino", timed: bool = True) -> dict[str, Any]:
    """The plan as its file holds it."""
    found: dict[str, Any] = json.loads(json.dumps(planned(name, runtime, timed).model_dump(mode="json"), indent=2))
    return found


def written(folder: Path, found: object) -> Path:
    path = folder / "plan.json"
    path.write_text(json.dumps(found, indent=2))
    return path


@pytest.mark.parametrize(("name", "runtime"), [(n, RUNTIMES[i % 3]) for i, n in enumerate(NETS)])
def test_a_plans_file_holds_the_program_that_it_was_solved_from(name: str, runtime: str, tmp_path: Path) -> None:
    problem = stated(name, runtime)[0]
    plan = read_plan(written(tmp_path, content(name, runtime)))
    assert plan == planned(name, runtime)
    again, rng = restate(plan), random.Random(1)
    for _ in range(50):
        choices = random_choices(problem, rng)
        assert check(again, choices) == check(problem, choices)
        assert cost_of(again, choices) == cost_of(problem, choices)


@given(st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_an_edited_choice_is_costed_anew(rng: random.Random) -> None:
    problem = stated("residual", "openvino")[0]
    found = content()
    choices = random_choices(problem, rng)
    for layer in found["layers"]:
        layer["choice"] = choices[layer["name"]]
    answer = recost(Plan.model_validate(found))
    assert answer.before == cost_of(problem, uniform({g: tuple(o) for g, o in problem.options.items()}))
    assert answer.faults == check(problem, choices)
    assert answer.costs == ({} if answer.faults else cost_of(problem, choices))


def test_one_edit_costs_its_own_layer_and_the_conversions_around_it(tmp_path: Path) -> None:
    """Added up by hand: the convolution in the residual block goes to float, its two neighbours stay on integers.

    Its output is then a float tensor that is quantized; its input was an integer tensor all along.
    """
    _, sensitivity, timing, sizes = stated("residual", "openvino")
    found = content()
    layer = next(one for one in found["layers"] if one["name"] == "inner")
    layer["choice"] = FLOAT
    answer = recost(read_plan(written(tmp_path, found)))
    groups = {g.name: g for g in small.model("residual").groups}
    stem, inner = groups["stem"].output, groups["inner"].output
    more = {measure: answer.costs[measure] - answer.before[measure] for measure in answer.costs}
    own = timing.layers["inner"]
    assert more["latency"] == pytest.approx(
        own[FLOAT] - own["w8a8"] + timing.conversions[stem]["dequantize"] + timing.conversions[inner]["quantize"]
    )
    assert more["size"] == pytest.approx(sizes.layers["inner"][FLOAT] - sizes.layers["inner"]["w8a8"] + 131)
    # its output is rounded all the same, in front of the addition
    assert more["loss"] == pytest.approx(-sensitivity.weights["inner"]["w8a8"])


Edit = Callable[[dict[str, Any]], object]


def rename(found: dict[str, Any], old: str, new: str) -> None:
    found[new] = found.pop(old)


BROKEN: dict[str, tuple[Edit, str]] = {
    "version 1": (lambda f: f.update(schema_version=1), "is not a plan of this version"),
    "no version": (lambda f: f.pop("schema_version"), "is not a plan"),
    "unknown key": (lambda f: f.update(remark="fast"), "remark: "),
    "unknown key of a layer": (lambda f: f["layers"][1].update(precision="int8"), "layers.1.precision: "),
    "a layer without a choice": (lambda f: f["layers"][2].pop("choice"), "layers.2.choice: "),
    "a number for a choice": (lambda f: f["layers"][0].update(choice=8), "layers.0.choice: "),
    "a type that there is not": (lambda f: f["layers"][0]["weight"].update(dtype="int3"), "layers.0.weight.dtype: "),
    "a runtime that there is not": (lambda f: f.update(runtime="ort"), "runtime: "),
    "no layers": (lambda f: f.pop("layers"), "layers: "),
    "a cost in words": (
        lambda f: f["layers"][0]["alternatives"]["w8a8"].update(size="small"),
        "layers.0.alternatives.w8a8.size: ",
    ),
    "a misspelt reader list": (
        lambda f: rename(f["planned"]["conversions"][0], "readers", "reader"),
        "planned.conversions.0.",
    ),
    "a layer twice": (lambda f: f["layers"].append(f["layers"][0]), "the layer '"),
    "a rule without a choice": (lambda f: f.update(rules=[{"match": "*"}]), "rules.0: "),
}


@pytest.mark.parametrize("case", list(BROKEN))
def test_a_file_that_was_edited_into_no_plan_is_refused_at_the_place(case: str, tmp_path: Path) -> None:
    edit, cause = BROKEN[case]
    found = content()
    edit(found)
    path = written(tmp_path, found)
    with pytest.raises(UsageError) as caught:
        read_plan(path)
    assert caught.value.cause.startswith(cause)
    assert caught.value.where == str(path) and caught.value.remedy


@given(st.floats(0, 1, exclude_max=True))
@settings(max_examples=30, deadline=None)
def test_a_truncated_file_is_refused_at_its_last_line(share: float) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        whole = json.dumps(content(), indent=2)
        part = whole[: int(share * (len(whole) - 1))]
        path.write_text(part)
        with pytest.raises(UsageError, match="no valid JSON") as caught:
            read_plan(path)
        named, line = caught.value.where.rsplit(":", 1)
        assert named == str(path)
        # inside a text, the parser names the line in which it begins
        assert part.count("\n") <= int(line) <= part.count("\n") + 1


@pytest.mark.parametrize(
    "text", ["3", "[]", "null", '"plan"', "{}", '{"schema_version": 2}', '{"schema_version": "4"}']
)
def test_json_that_is_no_plan_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UsageError, match=r"plan\.json: is not a plan"):
        read_plan(tmp_path / "plan.json")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UsageError, match="cannot be read") as caught:
            read_plan(path)
        assert caught.value.where == str(path)
    (tmp_path / "binary.json").write_bytes(b"\x80\x81")
    with pytest.raises(UsageError, match="no valid JSON"):
        read_plan(tmp_path / "binary.json")


def edited(edit: Edit) -> Plan:
    found = content()
    edit(found)
    return Plan.model_validate(found)


def test_a_choice_that_does_not_exist_is_named_with_its_layer() -> None:
    plan = edited(lambda f: f["layers"][0].update(choice="w3a8"))
    assert plan.layers[0].name == "stem"
    assert recost(plan).faults == [
        "stem does not offer w3a8, only w8a8, w4a8, w2a8, w8, w4, w2, w4asym, w4codebook, w2codebook, float32"
    ]
    assert recost(plan).costs == {}
    with pytest.raises(UsageError, match="stem"):
        explain(plan)


def test_a_layer_that_was_deleted_is_missed() -> None:
    """What is left still speaks of it, in a conversion."""
    plan = edited(lambda f: f["layers"].pop(1))
    for ask in (recost, explain):
        try:
            found = ask(plan)
        except UsageError as error:
            assert "inner" in str(error)
        else:
            assert any("inner" in fault for fault in getattr(found, "faults", []))


def test_a_conversion_of_a_layer_that_does_not_exist_is_named() -> None:
    plan = edited(lambda f: f["planned"]["conversions"][0]["readers"].update(missing=["w8a8"]))
    for ask in (recost, explain):
        try:
            found = ask(plan)
        except UsageError as error:
            assert "missing" in str(error)
        else:
            assert any("missing" in fault for fault in getattr(found, "faults", []))


def test_a_layer_without_weights_cannot_be_integers_alone() -> None:
    def alone(found: dict[str, Any]) -> None:
        for layer in found["layers"]:
            layer["choice"] = "a8" if layer["op"].startswith("add") else FLOAT

    (fault,) = recost(edited(alone)).faults
    add = next(g.name for g in small.model("residual").groups if g.op == "add")
    assert fault.startswith(f"{add} can be a8 only if") and "stem" in fault and "inner" in fault


def test_a_plan_without_costs_is_neither_costed_nor_explained() -> None:
    plan = planned("residual", "openvino").model_copy(update={"planned": None})
    for ask in (recost, explain):
        with pytest.raises(UsageError, match="carries no costs"):
            ask(plan)
    with pytest.raises(ValueError, match="no costs"):
        restate(plan)
    assert guiltiest(plan) == []


def test_a_plan_for_another_model_is_refused_with_what_differs() -> None:
    plan = planned("residual", "openvino")
    names = [layer.name for layer in plan.layers]
    refuse_other(plan, model_hash=plan.model_hash, layers=names)
    with pytest.raises(UsageError, match="another model: the layers have the same names, the weights are others"):
        refuse_other(plan, model_hash="f" * 64, layers=names)
    with pytest.raises(UsageError, match="another model: 2 of its layers are not the same, such as body"):
        refuse_other(plan, model_hash="f" * 64, layers=["body", *names[1:]])


@pytest.mark.parametrize("timed", [True, False])
def test_every_alternative_is_what_the_whole_plan_would_cost_with_it(timed: bool) -> None:
    problem = stated("split-shuffle", "litert", timed)[0]
    found = content("split-shuffle", "litert", timed)
    choices = {layer["name"]: layer["choice"] for layer in found["layers"]}
    choices["stem"] = found["layers"][0]["choice"] = "w4a8"
    own = cost_of(problem, choices)
    answer = explain(Plan.model_validate(found))
    assert [layer.name for layer in answer.layers] == list(choices)
    count = 0
    for layer in answer.layers:
        possible = [c for c in problem.options[layer.name]
                    if c != layer.choice and not check(problem, {**choices, layer.name: c})]  # fmt: skip
        assert [change.choice for change in layer.alternatives] == possible
        assert layer.loss_share == pytest.approx(problem.options[layer.name][layer.choice]["loss"] / own["loss"])
        for change in layer.alternatives:
            there = cost_of(problem, {**choices, layer.name: change.choice})
            assert change.layer == layer.name
            assert change.size == pytest.approx(there["size"] - own["size"])
            assert change.loss == pytest.approx((there["loss"] - own["loss"]) / own["loss"])
            assert change.latency == (pytest.approx(there["latency"] - own["latency"], abs=1e-12) if timed else None)
            count += 1
    assert count > 6
    assert bool(answer.gain_speed) == timed
    assert 0 < len(answer.gain_accuracy) <= 3 and all(change.loss < 0 for change in answer.gain_accuracy)


def test_what_to_change_next_is_the_cheapest_gain() -> None:
    answer = explain(planned("split-shuffle", "litert"))
    every = [change for layer in answer.layers for change in layer.alternatives]

    def seconds_for(loss: float, latency: float | None) -> float:
        assert latency is not None
        return max(latency, 0.0) / -loss

    cheapest = min(seconds_for(c.loss, c.latency) for c in every if c.loss < 0)
    assert seconds_for(answer.gain_accuracy[0].loss, answer.gain_accuracy[0].latency) == cheapest
    saving = [c for c in every if c.latency is not None and c.latency < 0]
    rates = [max(c.loss, 0) / -(c.latency or 0.0) for c in saving]
    best = [max(c.loss, 0) / -(c.latency or 0.0) for c in answer.gain_speed]
    assert best == sorted(rates)[: len(best)] and len(best) == min(3, len(rates))


def test_among_changes_that_lose_nothing_those_that_save_most_come_first() -> None:
    def free(found: dict[str, Any]) -> None:
        for i, layer in enumerate(found["layers"]):
            for choice, costs in layer["alternatives"].items():
                costs.update(loss=1.0, latency=1.0 if choice == layer["choice"] else 1.0 - 0.1 * (i + 1))
        for conversion in found["planned"]["conversions"]:
            conversion["costs"].update(loss=0.0, latency=0.0)

    plan = edited(free)
    saved = [-(change.latency or 0.0) for change in explain(plan).gain_speed]
    most = max(-(c.latency or 0.0) for layer in explain(plan).layers for c in layer.alternatives)
    assert saved[0] == pytest.approx(most)


def test_a_pattern_picks_layers_to_explain() -> None:
    plan = planned("residual", "openvino")
    assert [layer.name for layer in explain(plan, "*e*").layers] == [
        layer.name for layer in plan.layers if "e" in layer.name
    ]
    assert explain(plan, "stem").gain_speed == explain(plan).gain_speed
    with pytest.raises(UsageError, match="no layer matches 'none'"):
        explain(plan, "none")


def test_the_guiltiest_layers_are_those_that_lose_most() -> None:
    plan = planned("residual", "openvino")
    problem = stated("residual", "openvino")[0]
    losses = {layer.name: problem.options[layer.name][layer.choice]["loss"] for layer in plan.layers}
    order = sorted((n for n in losses if losses[n] > 0), key=lambda n: -losses[n])
    assert guiltiest(plan) == order[:3] and guiltiest(plan, 2) == order[:2]
    floats = plan.model_copy(update={"layers": [x.model_copy(update={"choice": FLOAT}) for x in plan.layers]})
    assert guiltiest(floats) == []


def test_the_program_has_a_conversion_where_the_graph_has_a_crossing() -> None:
    """The cost of boundaries is that of the crossings: nothing is paid for twice by readers of one tensor."""
    model, by = small.model("split-shuffle"), small.runtime("litert")
    problem = stated("split-shuffle", "litert")[0]
    found, rng = edges(model, by), random.Random(3)
    for _ in range(50):
        choices = random_choices(problem, rng)
        layers = sum(problem.options[g][c]["size"] for g, c in choices.items())
        paid = cost_of(problem, choices)["size"] - layers - problem.fixed["size"]
        quantized = [one for one in crossings(found, choices) if one.kind != "dequantize"]
        assert paid == pytest.approx(131.0 * len(quantized))
