"""A plan under its rules: what is said of its costs is what would be built."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from planned_model import BY, job, plan_of, written

from edgeq.cli.app import run
from edgeq.errors import UsageError
from edgeq.lowering.assign import FLOAT
from edgeq.planning.explain.explain import explain, recost
from edgeq.planning.explain.follow import planned_choices
from edgeq.planning.solver.problem import cost_of
from edgeq.planning.solver.restate import restate
from edgeq.plans.rules import Rule

LAYERS = ["stem.0", "depthwise.0", "point", "head"]
RULES = st.builds(
    lambda match, what: Rule(match=match, **what),
    st.sampled_from([*LAYERS, "*", "depth*", "*e*"]),
    st.sampled_from([{"weights": "int4"}, {"weights": "int8"}, {"choice": FLOAT}, {"choice": "w8a8"}]),
)


@given(st.lists(RULES, max_size=3), st.dictionaries(st.sampled_from(LAYERS), st.sampled_from(["w8a8", "w4a8", FLOAT])))
@example(rules=[Rule(match="stem.0", choice=FLOAT), Rule(match="point", choice=FLOAT)], edits={})
@settings(max_examples=40, deadline=None)
def test_an_edited_plan_is_costed_as_it_would_be_built(rules: list[Rule], edits: dict[str, str]) -> None:
    plan = plan_of()
    layers = [la.model_copy(update={"choice": edits.get(la.name, la.choice)}) for la in plan.layers]
    plan = plan.model_copy(update={"rules": rules, "layers": layers})
    of = job()
    try:
        choices = planned_choices(plan, of, BY)
    except UsageError as error:
        try:
            assert recost(plan).faults, error
        except UsageError as same:
            assert str(same) == str(error)
        return
    answer = recost(plan)
    assert answer.faults == []
    assert answer.costs == pytest.approx(cost_of(restate(plan), choices))
    assert {layer.name: layer.choice for layer in explain(plan).layers} == choices
    assert all(note in of.warnings for note in answer.notes)


def test_a_rule_overrules_an_edit_in_check_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of().model_copy(update={"rules": [Rule(match="point", choice=FLOAT), Rule(op="add", choice="a8")]})
    found = recost(plan)
    assert found.costs == pytest.approx(cost_of(restate(plan), {**uniform_choices(), "point": FLOAT}))
    assert found.notes[0] == "rule match 'point': choice float32 makes point float32, where the plan says w8a8"
    assert run(["plan", "--check", str(written(plan, tmp_path / "plan.json"))]) == 0
    assert "makes point float32" in capsys.readouterr().out
    assert all(c.layer != "point" for layer in explain(plan).layers for c in layer.alternatives)
    broken = plan.model_copy(update={"rules": [Rule(match="point", choice="w3a8")]})
    assert run(["plan", "--check", str(written(broken, tmp_path / "plan.json"))]) == 2
    assert "layer point (conv2d) has no such choice" in capsys.readouterr().err


def uniform_choices() -> dict[str, str]:
    return {layer.name: layer.choice for layer in plan_of().layers}


def test_a_rule_that_changes_nothing_is_told_by_check_and_by_a_build() -> None:
    head = next(layer for layer in plan_of().layers if layer.name == "head")
    assert head.op == "linear"
    idle = Rule(match="head", choice="w8a8"), Rule(match="head", weights="int8")
    plan = plan_of().model_copy(update={"rules": list(idle)})
    (note,) = recost(plan).notes
    assert note == f"rule {idle[0]} changes nothing: later rules cover the same layers, such as head"
    of = job()
    planned_choices(plan, of, BY)
    assert note in of.warnings


def test_a_plan_that_lost_a_layer_or_asks_for_what_cannot_be_is_refused() -> None:
    plan = plan_of()
    with pytest.raises(UsageError, match=r"layer head is missing"):
        planned_choices(plan.model_copy(update={"layers": plan.layers[:-1]}), job(), BY)
    floats = {"stem.0", "point", "depthwise.0"}
    layers = [la.model_copy(update={"choice": FLOAT}) if la.name in floats else la for la in plan.layers]
    alone = plan.model_copy(update={"layers": layers})
    add = next(la.name for la in plan.layers if la.op == "add")
    with pytest.raises(UsageError, match=f"layer {add} cannot be a8: nothing in front of it runs on integers"):
        planned_choices(alone, job(), BY)
    assert recost(alone).faults[0].startswith(f"{add} can be a8 only if")
