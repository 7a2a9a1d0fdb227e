"""The fleet file: which artefact serves which target, what was measured where, and what sharing costs each target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from edgeq.errors import UsageError
from edgeq.files import write_json
from edgeq.plans.plan import Given, Plan, Proof, read_plan
from edgeq.reading import read_json, within
from edgeq.records.strict import Strict, validated
from edgeq.registry.schema import Format, RuntimeName

KIND: Literal["edgeq.fleet"] = "edgeq.fleet"

Status = Literal["held", "missed", "not validated", "not offered"]
"""Of an artefact at a target: every limit was measured there and held; one was not; the target's device is not here,
and its target file allows the artefact; its runtimes do not run such an artefact natively."""


class Verdict(Strict):
    """One candidate at one target."""

    target: str
    status: Status
    because: str
    runtime: RuntimeName | None
    """What runs it there; None where it is not offered."""
    device: str | None
    """Where it was measured; None where it was not."""
    emulated: bool = False
    proof: Proof | None = None
    doubtful: bool = False
    """Nobody measured it, and it is predicted to lose more than it may."""


class Considered(Strict):
    """A plan that could have been taken, and what became of it at each target."""

    name: str
    target: str
    """Whose kernels it was planned for."""
    runtime: RuntimeName
    format: Format
    common: bool
    """Only of choices that every target with this format offers."""
    size: int
    """Bytes of the artefact's files."""
    verdicts: list[Verdict]


class Artefact(Strict):
    """One artefact of the fleet."""

    name: str
    """Of its folder in a build."""
    plan: str
    """Its plan: a file beside the fleet file."""
    candidate: str
    target: str
    """Whose kernels it was planned for."""
    format: Format
    size: int
    """Bytes of its files."""
    serves: list[str]


class Gain(Strict):
    """What a target would gain from the best artefact of its own; negative where it would lose."""

    candidate: str
    latency: float | None
    """Seconds that each call would take less; None where there is no clock."""
    in_turns: bool
    """Whether the two took turns; where they run in different runtimes they cannot."""
    size: int
    """Bytes less."""
    drop: float | None
    """How much less would be lost, in units of the metric."""


class Member(Strict):
    """One target of the fleet."""

    target: str
    given: str
    """As it was given: a name, or a target file."""
    limits: dict[str, str]
    artefact: str
    verdict: Verdict
    alone: Gain | None
    """None where its artefact is its own best."""


class Fleet(Strict):
    """The fewest artefacts that serve every target."""

    kind: Literal["edgeq.fleet"] = KIND
    schema_version: Literal[1] = 1
    model_hash: str
    data_hash: str
    minimize: str
    why: str
    artefacts: list[Artefact]
    targets: list[Member]
    candidates: list[Considered]
    given: Given
    notes: list[str] = []

    @property
    def held(self) -> bool:
        """Whether no target's limits were missed. A target that is not here has missed none."""
        return all(member.verdict.status in ("held", "not validated") for member in self.targets)


def write_fleet(path: Path, fleet: Fleet, plans: Mapping[str, Plan]) -> Fleet:
    """Writes the plans beside the fleet file, each named after its artefact, and then the fleet file.

    Args:
        plans: by the name of an artefact.

    Returns:
        The fleet with the names of these files.

    Raises:
        UsageError: the folder is missing or not writable, or the disk is full.
    """
    artefacts = [a.model_copy(update={"plan": f"{path.stem}.{a.name}.json"}) for a in fleet.artefacts]
    for artefact in artefacts:
        write_json(path.with_name(artefact.plan), plans[artefact.name])
    written = fleet.model_copy(update={"artefacts": artefacts})
    write_json(path, written)
    return written


def is_fleet(path: Path) -> bool:
    """Whether a file calls itself a fleet; false for what cannot be read."""
    try:
        content = read_json(path, "a fleet", "")
    except UsageError:
        return False
    return isinstance(content, dict) and content.get("kind") == KIND


def read_fleet(path: Path) -> tuple[Fleet, dict[str, Plan]]:
    """A fleet and, by the name of its artefact, each plan.

    Raises:
        UsageError: a file is missing, is something else, or was edited into something else; names the place.
    """
    fleet = _read(path)
    plans: dict[str, Plan] = {}
    for artefact in fleet.artefacts:
        plans[artefact.name] = read_plan(within(path.parent, artefact.plan, str(path)))
        made = plans[artefact.name]
        if (made.target, made.format, made.model_hash) != (artefact.target, artefact.format, fleet.model_hash):
            raise UsageError(
                f"{artefact.plan} is not the plan of {artefact.name}: it is of another target, format or model",
                where=str(path),
                remedy="make the fleet anew with edgeq plan",
            )
    return fleet, plans


def _read(path: Path) -> Fleet:
    content = read_json(path, "a fleet", "see edgeq plan")
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise UsageError("is not a fleet", where=str(path), remedy="make it with edgeq plan and several --target")
    if content.get("schema_version") != 1:
        raise UsageError(
            f"is of schema version {content.get('schema_version')}, this edgeq reads 1",
            where=str(path),
            remedy="make it anew with edgeq plan",
        )
    fleet = validated(Fleet, content, path)
    names, members = {a.name for a in fleet.artefacts}, {m.target for m in fleet.targets}
    served = sorted((target, a.name) for a in fleet.artefacts for target in a.serves)
    lost = served != sorted((m.target, m.artefact) for m in fleet.targets) or not all(a.serves for a in fleet.artefacts)
    lost = lost or bool({a.target for a in fleet.artefacts} - members)
    if lost or len(names) != len(fleet.artefacts) or len(members) != len(fleet.targets):
        raise UsageError(
            "its targets and artefacts do not name each other", where=str(path), remedy="make it anew with edgeq plan"
        )
    for name in names | members:
        if not name.replace("-", "").isalnum():
            raise UsageError(f"{name!r} is no name of a folder", where=str(path), remedy="make it anew with edgeq plan")
    return fleet
