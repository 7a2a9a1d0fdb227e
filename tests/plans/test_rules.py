"""Rules of a person: what they leave to choose from, and how they are read."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import small_models as small
from hypothesis import assume, given
from hypothesis import strategies as st

from edgeq.errors import UsageError
from edgeq.lowering.assign import FLOAT
from edgeq.lowering.choices import ladder
from edgeq.plans.rules import Rule, apply_rules, idle, narrowed, read_rules

BY = small.runtime("onnxruntime")
OPTIONS = {
    "stem": ("w8a8", "w4a8", FLOAT),
    "block.0.conv": ("w8a8", "w4a8", FLOAT),
    "block.0.depth": ("w8a8", "w4a8", FLOAT),
    "block.0.add": ("a8", FLOAT),
    "block.1.conv": ("w8a8", "w4a8", FLOAT),
    "norm": (FLOAT,),
    "head": ("w8a8", "w4a8", FLOAT),
}
OPS = {
    "stem": "conv2d",
    "block.0.conv": "conv2d",
    "block.0.depth": "depthwise_conv2d",
    "block.0.add": "add",
    "block.1.conv": "conv2d",
    "norm": "layer_norm",
    "head": "linear",
}
WEIGHTED = [name for name, options in OPTIONS.items() if "w4a8" in options]


def left(*rules: Rule) -> dict[str, tuple[str, ...]]:
    return narrowed(OPTIONS, OPS, rules, BY)


def changed(*rules: Rule) -> dict[str, tuple[str, ...]]:
    return {name: options for name, options in left(*rules).items() if options != OPTIONS[name]}


def test_without_rules_everything_is_left() -> None:
    assert left() == OPTIONS


def test_a_choice_is_pinned_where_the_name_matches() -> None:
    assert changed(Rule(match="head", choice=FLOAT)) == {"head": (FLOAT,)}
    assert changed(Rule(match="block.?.conv", choice="w4a8")) == {
        "block.0.conv": ("w4a8",),
        "block.1.conv": ("w4a8",),
    }
    with pytest.raises(UsageError, match="no layer is covered"):
        left(Rule(match="HEAD", choice=FLOAT))


def test_an_operator_narrows_what_a_rule_covers() -> None:
    assert changed(Rule(op="depthwise_conv2d", choice=FLOAT)) == {"block.0.depth": (FLOAT,)}
    assert changed(Rule(match="block.*", op="add", choice="a8")) == {"block.0.add": ("a8",)}
    with pytest.raises(UsageError, match="no layer is covered"):
        left(Rule(match="stem", op="linear", choice="w8a8"))


def test_weights_stand_for_every_choice_that_has_them() -> None:
    assert changed(Rule(weights="int8")) == dict.fromkeys(WEIGHTED, ("w8a8",))
    assert changed(Rule(match="block.*", weights="int4")) == {
        "block.0.conv": ("w4a8",),
        "block.0.depth": ("w4a8",),
        "block.1.conv": ("w4a8",),
    }


def test_float_weights_are_no_reason_to_take_an_addition_off_the_integers() -> None:
    """A rule about weights means the layers that have some, whatever the type that it asks for."""
    assert changed(Rule(weights=FLOAT)) == dict.fromkeys(WEIGHTED, (FLOAT,))


def test_of_several_rules_for_a_layer_the_last_counts() -> None:
    every, but, again = Rule(weights="int4"), Rule(match="head", choice=FLOAT), Rule(match="h*", choice="w8a8")
    assert left(every, but)["head"] == (FLOAT,)
    assert left(every, but)["stem"] == ("w4a8",)
    assert left(but, every)["head"] == ("w4a8",)
    assert left(every, but, again)["head"] == ("w8a8",)


NAMES = ["*", "stem", "block.*", "block.0.*", "*conv", "head", "*.add", "n*"]
RULES = st.builds(
    lambda match, op, what: Rule(match=match, op=op, **what),
    st.sampled_from(NAMES),
    st.sampled_from([None, None, "conv2d", "add", "linear"]),
    st.sampled_from(
        [{"choice": c} for c in ("w8a8", "w4a8", "a8", FLOAT)] + [{"weights": "int8"}, {"weights": "int4"}]
    ),
)


@given(st.lists(RULES, max_size=4))
def test_what_is_left_is_what_each_layers_last_rule_allows(rules: list[Rule]) -> None:
    def wanted(rule: Rule, name: str) -> tuple[str, ...]:
        types = {"int8": "w8a8", "int4": "w4a8"}
        pick = rule.choice if rule.choice is not None else types[rule.weights or ""]
        return tuple(c for c in OPTIONS[name] if c == pick)

    def covers(rule: Rule, name: str) -> bool:
        return fnmatchcase(name, rule.match) and rule.op in (None, OPS[name])

    def skips(rule: Rule, name: str) -> bool:
        return rule.weights is not None and rule.op is None and name not in WEIGHTED

    for rule in rules:
        covered = [name for name in OPTIONS if covers(rule, name)]
        impossible = [name for name in covered if not wanted(rule, name) and not skips(rule, name)]
        if not covered or impossible:
            with pytest.raises(UsageError) as caught:
                left(*rules)
            assert any(str(r) in str(caught.value) for r in rules)
            if covered and len(rules) == 1:
                assert impossible[0] in caught.value.cause
            return
    expected = dict(OPTIONS)
    for rule in rules:
        expected |= {n: wanted(rule, n) for n in OPTIONS if covers(rule, n) and not skips(rule, n)}
    assert left(*rules) == expected


@given(st.lists(RULES, max_size=4))
def test_a_rule_that_is_said_to_change_nothing_can_be_left_out(rules: list[Rule]) -> None:
    try:
        expected, told = left(*rules), idle(OPTIONS, OPS, rules, BY)
    except UsageError:
        return
    for number, rule in enumerate(rules):
        others = [*rules[:number], *rules[number + 1 :]]
        if any(text.startswith(f"rule {rule} changes nothing") for text in told) and rules.count(rule) == 1:
            assert left(*others) == expected
        elif not others:
            assert expected != OPTIONS


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ([Rule(match="norm", choice=FLOAT)], "norm (layer_norm) can be nothing but float32"),
        (
            [Rule(match="n*", weights="int8")],
            "no layer that it covers has weights to choose, such as norm (layer_norm)",
        ),
        ([Rule(match="*.add", weights="int4")], "no layer that it covers has weights to choose, such as block.0.add"),
        (
            [Rule(match="head", choice="w4a8"), Rule(match="h*", choice="w8a8")],
            "later rules cover the same layers, such as head",
        ),
    ],
)
def test_a_rule_that_changes_nothing_says_why(rules: list[Rule], why: str) -> None:
    (told,) = idle(OPTIONS, OPS, rules, BY)
    assert told.startswith(f"rule {rules[0]} changes nothing: {why}")


def test_rules_overrule_what_was_picked_and_say_so_once_for_each_rule() -> None:
    picked = {name: options[0] for name, options in OPTIONS.items()}
    every = Rule(match="block.*", weights="int4")
    found, notes = apply_rules(picked, OPTIONS, OPS, [every, Rule(match="head", choice="w8a8")], BY)
    changed = {"block.0.conv", "block.0.depth", "block.1.conv"}
    assert found == {name: "w4a8" if name in changed else choice for name, choice in picked.items()}
    assert notes == [f"rule {every} makes block.0.conv w4a8, where the plan says w8a8, and 2 more of its layers"]


@given(st.lists(RULES, max_size=4), st.data())
def test_what_rules_allow_stays_as_it_was_picked(rules: list[Rule], data: st.DataObject) -> None:
    picked = {name: data.draw(st.sampled_from(options)) for name, options in OPTIONS.items()}
    try:
        allowed = left(*rules)
    except UsageError:
        with pytest.raises(UsageError):
            apply_rules(picked, OPTIONS, OPS, rules, BY)
        return
    found, notes = apply_rules(picked, OPTIONS, OPS, rules, BY)
    for name, choice in found.items():
        assert choice == (picked[name] if picked[name] in allowed[name] else allowed[name][0])
    assert bool([n for n in notes if " makes " in n]) == (found != picked)


def test_an_impossible_choice_names_the_rule_the_layer_and_what_it_can_be() -> None:
    with pytest.raises(UsageError) as caught:
        left(Rule(match="block.*", choice="w8a8"))
    assert caught.value.cause == "layer block.0.add (add) has no such choice in onnxruntime"
    assert caught.value.where == "rule match 'block.*': choice w8a8"
    assert caught.value.remedy == "it can be: a8, float32"
    with pytest.raises(UsageError, match="no such choice"):
        left(Rule(match="head", choice="w3a8"))
    with pytest.raises(UsageError, match="no such choice"):
        left(Rule(match="head", weights="int2"))
    with pytest.raises(UsageError, match="add"):
        left(Rule(op="add", weights="int8"))


def test_rules_act_on_the_ladder_of_a_real_model() -> None:
    model = small.model("residual")
    offered = ladder(model, BY, small.calibration("residual").histograms)
    ops = {g.name: g.op for g in model.groups}
    found = narrowed(offered, ops, [Rule(weights="int4"), Rule(op="linear", choice=FLOAT)], BY)
    add = next(g.name for g in model.groups if g.op == "add")
    assert (found["stem"], found["inner"], found["head"]) == (("w4a8", "w4"), ("w4a8", "w4"), (FLOAT,))
    assert found[add] == offered[add]


@given(st.text(max_size=8), st.sampled_from(["choice", "weights"]), st.text(min_size=1, max_size=8))
def test_a_rule_says_what_it_is(match: str, kind: str, value: str) -> None:
    rule = Rule.model_validate({"match": match, kind: value})
    assert repr(match) in str(rule) and value in str(rule)


def written(folder: Path, text: str) -> Path:
    path = folder / "rules.toml"
    path.write_text(text)
    return path


def test_rules_are_read_in_their_order(tmp_path: Path) -> None:
    text = """
        [[rules]]
        weights = "int4"
        [[rules]]
        match = "head.*"
        op = "linear"
        choice = "float32"
    """
    assert read_rules(written(tmp_path, text)) == [
        Rule(match="*", weights="int4"),
        Rule(match="head.*", op="linear", choice="float32"),
    ]


ONE = '[[rules]]\nmatch = "a"\nchoice = "w8a8"\n'


@pytest.mark.parametrize(
    ("text", "where", "cause"),
    [
        ("", "rules.toml", "nothing else"),
        ("rules = 3", "rules.toml", "nothing else"),
        (ONE + "[more]\na = 1\n", "rules.toml", "nothing else"),
        (ONE + '[[rules]]\nmatch = "b"\n', "rules.toml, rule 2", "either choice or weights"),
        (ONE + '[[rules]]\nchoice = "a"\nweights = "int8"\n', "rules.toml, rule 2", "either choice or weights"),
        (ONE + ONE + '[[rules]]\nlayer = "b"\nchoice = "w8a8"\n', "rules.toml, rule 3", "layer"),
        ("[[rules]]\nchoice = 8\n", "rules.toml, rule 1", "choice"),
        ("rules = [3]", "rules.toml, rule 1", "rule"),
        ("[[rules]]\nchoice = w8a8\n", "rules.toml:2", "not valid TOML"),
        (ONE + "[[rules]]\nchoice = \n", "rules.toml:5", "not valid TOML"),
    ],
)
def test_a_file_that_says_something_else_is_refused_at_its_place(
    text: str, where: str, cause: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        read_rules(written(tmp_path, text))
    assert caught.value.where.endswith(where)
    assert cause in caught.value.cause
    assert caught.value.remedy


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml"):
        read_rules(tmp_path / "nowhere.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        read_rules(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe[[rules]]")
    with pytest.raises(UsageError, match="UTF-8"):
        read_rules(tmp_path / "binary.toml")


@given(st.text(alphabet='[]rules"=\n# match_choice', max_size=60))
def test_whatever_a_file_holds_the_answer_is_rules_or_an_error_that_names_it(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), text)
        try:
            found = read_rules(path)
        except UsageError as error:
            assert str(path) in error.where
        else:
            assume(found)
            assert all((rule.choice is None) != (rule.weights is None) for rule in found)
