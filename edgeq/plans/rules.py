"""Rules that a person writes: which layers may take which choices, whatever the costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from edgeq.errors import UsageError
from edgeq.lowering.assign import FLOAT
from edgeq.registry.schema import Runtime
from edgeq.toml import read_toml


class Rule(BaseModel):
    """Layers whose name matches, and whose operator is `op` where that is given, take what the rule says.

    Exactly one of `choice` (the name of a kernel such as `w4a8`, or `float32`) and `weights` (a type such as `int4`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    match: str = "*"
    """A pattern for the layer's name: `features.*`, `head.?`."""
    op: str | None = None
    choice: str | None = None
    weights: str | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Rule:
        if (self.choice is None) == (self.weights is None):
            raise ValueError("a rule wants either choice or weights")
        return self

    def __str__(self) -> str:
        what = f"choice {self.choice}" if self.choice else f"{self.weights} weights"
        return f"match {self.match!r}{f', op {self.op}' if self.op else ''}: {what}"

    def covers(self, name: str, op: str) -> bool:
        return fnmatchcase(name, self.match) and self.op in (None, op)

    def allows(self, choice: str, op: str, runtime: Runtime) -> bool:
        if self.choice is not None:
            return choice == self.choice
        kernel = None if choice == FLOAT else runtime.kernel(op, choice)
        return (self.weights == FLOAT) if kernel is None else kernel.weights == self.weights


def narrowed(
    options: Mapping[str, Sequence[str]], ops: Mapping[str, str], rules: Sequence[Rule], runtime: Runtime
) -> dict[str, tuple[str, ...]]:
    """What is left to choose from under the rules; of several that cover a layer, the last counts.

    Args:
        options: by layer, its choices.
        ops: by layer, its operator class.

    Raises:
        UsageError: a rule covers no layer, or leaves one without a choice; it names the rule and the layer.
    """
    left = {name: what for by_rule in _left(options, ops, rules, runtime) for name, what in by_rule.items()}
    return {name: left.get(name, tuple(offered)) for name, offered in options.items()}


def idle(
    options: Mapping[str, Sequence[str]], ops: Mapping[str, str], rules: Sequence[Rule], runtime: Runtime
) -> list[str]:
    """A sentence for each rule that takes no choice from any layer; arguments and errors are those of `narrowed`."""
    by_rule = _left(options, ops, rules, runtime)
    last = {name: number for number, left in enumerate(by_rule) for name in left}
    found = []
    for number, (rule, left) in enumerate(zip(rules, by_rule, strict=True)):
        held = [name for name in left if last[name] == number]
        if any(left[name] != tuple(options[name]) for name in held):
            continue
        first = next(name for name in options if rule.covers(name, ops[name]))
        if not left:
            why = f"no layer that it covers has weights to choose, such as {first} ({ops[first]})"
        elif not held:
            why = f"later rules cover the same layers, such as {next(iter(left))}"
        else:
            why = f"{held[0]} ({ops[held[0]]}) can be nothing but {left[held[0]][0]}"
            why += f", nor can {len(held) - 1} others be anything else" if len(held) > 1 else ""
        found.append(f"rule {rule} changes nothing: {why}")
    return found


def apply_rules(
    picked: Mapping[str, str],
    options: Mapping[str, Sequence[str]],
    ops: Mapping[str, str],
    rules: Sequence[Rule],
    runtime: Runtime,
) -> tuple[dict[str, str], list[str]]:
    """What a plan's choices become under its rules: a choice that is not allowed gives way to the first that is.

    Args:
        picked: by layer, the choice in the plan, one of its `options`.

    Returns:
        The choices, and what the user should know: which rules overrule the plan, and which change nothing.

    Raises:
        UsageError: see `narrowed`.
    """
    result, notes = dict(picked), []
    left = {
        name: (rule, what)
        for rule, by_rule in zip(rules, _left(options, ops, rules, runtime), strict=True)
        for name, what in by_rule.items()
    }
    overruled: dict[Rule, list[str]] = {}
    for name, (rule, what) in left.items():
        if picked[name] not in what:
            result[name] = what[0]
            overruled.setdefault(rule, []).append(name)
    for rule, names in overruled.items():
        first = names[0]
        more = f", and {len(names) - 1} more of its layers" if len(names) > 1 else ""
        notes.append(f"rule {rule} makes {first} {result[first]}, where the plan says {picked[first]}{more}")
    return result, notes + idle(options, ops, rules, runtime)


def _left(
    options: Mapping[str, Sequence[str]], ops: Mapping[str, str], rules: Sequence[Rule], runtime: Runtime
) -> list[dict[str, tuple[str, ...]]]:
    """For each rule, what it leaves of the choices of the layers that it means."""
    result: list[dict[str, tuple[str, ...]]] = []
    for rule in rules:
        covered = [name for name in options if rule.covers(name, ops[name])]
        if not covered:
            raise UsageError("no layer is covered by it", where=f"rule {rule}", remedy="see the names in edgeq inspect")
        # a rule about weights means the layers that have some
        weightless = rule.weights is not None and rule.op is None
        result.append({})
        for name in covered:
            kernels = (runtime.kernel(ops[name], c) for c in options[name])
            if weightless and all(k is None or k.weights is None for k in kernels):
                continue
            left = tuple(c for c in options[name] if rule.allows(c, ops[name], runtime))
            if not left:
                raise UsageError(
                    f"layer {name} ({ops[name]}) has no such choice in {runtime.name}",
                    where=f"rule {rule}",
                    remedy=f"it can be: {', '.join(options[name])}",
                )
            result[-1][name] = left
    return result


def read_rules(path: Path) -> list[Rule]:
    """Rules from a TOML file: a list of `[[rules]]`.

    Raises:
        UsageError: the file is missing or says something else; names the rule.
    """
    content = read_toml(path)
    given = content.get("rules")
    if not isinstance(given, list) or set(content) != {"rules"}:
        raise UsageError(
            "a file of rules holds [[rules]] and nothing else", where=str(path), remedy="begin each rule with [[rules]]"
        )
    found = []
    for number, one in enumerate(given, start=1):
        try:
            found.append(Rule.model_validate(one))
        except ValidationError as error:
            problem = error.errors()[0]
            raise UsageError(
                f"{'.'.join(map(str, problem['loc'])) or 'rule'}: {problem['msg']}",
                where=f"{path}, rule {number}",
                remedy='write it like: match = "features.*", op = "conv2d", weights = "int4"',
            ) from error
    return found
