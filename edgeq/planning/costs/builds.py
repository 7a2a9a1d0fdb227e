"""A few builds of the whole model whose times and sizes tell those of every plan: uniform ones and alternating ones."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeq.calibration.calibration import Calibration
from edgeq.devices import Candidate, Device, Inputs
from edgeq.engine import LOCAL, Engine
from edgeq.evaluation.measure import Ends, ends_of, fed
from edgeq.export.artifact import Exporter
from edgeq.export.elsewhere import Written, fetch, write_for
from edgeq.lowering.assign import FLOAT
from edgeq.lowering.boundaries import alternating
from edgeq.lowering.choices import uniform
from edgeq.lowering.form import form, on_integers
from edgeq.lowering.space import Space
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.model.ops import WEIGHTED
from edgeq.planning.costs.timing import Observed, attribute
from edgeq.plans.plan import FloatPrecision, run_options
from edgeq.progress import Progress
from edgeq.records.schema import Placement
from edgeq.registry.schema import Runtime
from edgeq.runtimes import runtime as info

ROUNDS = 100
SECONDS = 6.0
PROFILED = 30
SLICE_ROUNDS = 20


class Built(NamedTuple):
    """One build: choices by group name, as the exporter could follow them, and bytes of all its files."""

    choices: dict[str, str]
    candidate: Candidate
    size: int
    ends: Ends


def probing_plans(space: Space) -> dict[str, dict[str, str]]:
    """Plans that between them give every layer every choice among like and among unlike neighbours.

    Returns:
        By name: `float32`; a uniform plan for each kernel, the preferred one first; two that alternate between float
        and integers from layer to layer; two that are random, each the other's opposite; one with integers only in
        layers with weights; one with weights alone (see `_by_weights`); and for each other type of integers two that
        alternate between that and the preferred kernels, and one with that beside float where some layers lack it.
    """
    groups, choices = space.model.groups, space.options
    preferred, floats = uniform(choices), dict.fromkeys(choices, FLOAT)
    others = dict.fromkeys(c for options in choices.values() for c in options[1:] if c != FLOAT)
    found = {FLOAT: floats, "preferred": preferred} | {name: uniform(choices, name) for name in others}
    first = alternating(groups, space.edges)
    rng = random.Random(0)
    second = {name: rng.random() < 0.5 for name in choices}

    def mixed(name: str, coloured: Mapping[str, bool], one: Mapping[str, str], other: Mapping[str, str]) -> None:
        for letter, side in (("a", True), ("b", False)):
            found[f"{name} {letter}"] = {g: (one if coloured[g] is side else other)[g] for g in choices}

    mixed("alternating", first, preferred, floats)
    mixed("random", second, preferred, floats)
    weighted = {group.name for group in groups if group.op in WEIGHTED}
    without = {name: choice if name in weighted else FLOAT for name, choice in preferred.items()}
    if without not in (preferred, floats):  # else weights and tensors of integers always come together
        found["preferred weights"] = without
    alone = [choice for choice in others if not on_integers(choice)]
    if alone:
        # from uniform plans alone nobody could tell what a scale adds to a file from what a layer with scales adds
        found["weights alone"] = _by_weights(space, alone)
    types = {form(choice): choice for choice in reversed([*preferred.values(), *others]) if on_integers(choice)}
    main = Counter(map(form, preferred.values()))
    for one, choice in types.items():
        other = uniform(choices, choice)
        if one == max(types, key=lambda name: main[name]) or other == preferred:
            continue
        mixed(f"alternating {one}", first, other, preferred)
        if set(map(form, other.values())) - {one, None}:
            # a layer between others that do not have this type would never be seen without a conversion to it
            found[f"{one} beside float32"] = {group: c if form(c) == one else FLOAT for group, c in other.items()}
    return found


def _by_weights(space: Space, alone: Sequence[str]) -> dict[str, str]:
    """The half of the layers that has more weights has them alone as integers, in groups, and the other half without
    groups; where there are no groups, the other half stays in float."""
    grouped, choices = {k.name for k in space.runtime.kernels if k.weight_group is not None}, space.options
    plain = next((choice for choice in alone if choice not in grouped), FLOAT)
    in_groups = next((choice for choice in alone if choice in grouped), None)
    smaller = plain if in_groups else FLOAT
    able = [g for g in space.model.groups if len(choices[g.name]) > 1 and g.op in WEIGHTED]
    found = dict.fromkeys(choices, FLOAT)
    for at, group in enumerate(sorted(able, key=lambda g: g.parameters)):
        wanted = smaller if 2 * at < len(able) else in_groups or plain
        found[group.name] = next((c for c in (wanted, plain) if c in choices[group.name]), FLOAT)
    return found


def build_all(
    model: Model,
    runtime: Runtime,
    calibration: Calibration,
    plans: Mapping[str, Mapping[str, str]],
    exporter: Exporter,
    folder: Path,
    progress: Progress,
    engine: Engine = LOCAL,
) -> dict[str, Built]:
    """Writes an artefact for every plan. Ranges are the extremes: what is stored has no influence on time or size.

    Args:
        engine: where the builds are spread over.
    """
    places = {name: folder / f"build{number}" for number, name in enumerate(plans, start=1)}
    for place in places.values():
        place.mkdir()
    given = [(plan, places[name] if engine.here else None) for name, plan in plans.items()]
    shared = (model, runtime, calibration, exporter.conversion(runtime.format))
    made = engine.map(_build, given, *shared, progress=progress, threads=False)
    found: dict[str, Built] = {}
    for (name, place), (followed, ends, written) in zip(places.items(), made, strict=True):
        files = fetch(written, place)
        size = sum(file.stat().st_size for file in files)
        found[name] = Built(followed, Candidate(files[0], runtime.name), size, ends)
    return found


def _build(
    model: Model,
    runtime: Runtime,
    calibration: Calibration,
    conversion: Any,
    given: tuple[Mapping[str, str], Path | None],
) -> tuple[dict[str, str], Ends, Written]:
    plan, place = given
    quantized = quantize_model(model, runtime, calibration, choices=plan, estimator="min-max", correct_bias=False)
    followed = {group: quantized.assignment.choice(group) for group in plan}
    return followed, ends_of(model, quantized), write_for(model, quantized, conversion, place)


def observe(
    model: Model,
    built: Mapping[str, Built],
    device: Device,
    inputs: Inputs,
    labels: Mapping[str, str],
    threads: int,
    progress: Progress,
    precision: FloatPrecision = "float32",
) -> list[Observed]:
    """Times the builds in turns, and finds out how long each layer took in each.

    Args:
        inputs: one sample.
        labels: see `attribute`.
        precision: of what stays in float.
    """
    candidates = {name: replace(b.candidate, options=run_options(precision)) for name, b in built.items()}
    own = {name: fed(inputs, b.ends) for name, b in built.items()}
    runs = device.latency(candidates, inputs, progress, own_inputs=own, rounds=ROUNDS, seconds=SECONDS, threads=threads)
    if info(next(iter(candidates.values())).runtime).timed_alone:
        rows = _alone(built, device, labels, threads, progress)
    else:
        pairs = {name: (candidate, own[name]) for name, candidate in candidates.items()}
        rows = device.placements(pairs, progress, threads=threads, runs=PROFILED)
    return [attribute(model, rows[n], labels, b.choices, float(np.median(runs[n]))) for n, b in built.items()]


def _alone(
    built: Mapping[str, Built], device: Device, labels: Mapping[str, str], threads: int, progress: Progress
) -> dict[str, list[Placement]]:
    """Rows as a profiler would give them, of layers that ran alone: for a runtime that profiles no layers."""
    from edgeq.export.tflite_slices import Slice, slices

    parts = {name: slices(b.candidate.path.read_bytes(), labels) for name, b in built.items()}
    # layers that are the same in several builds are timed once
    distinct: dict[str, Slice] = {part.digest: part for found in parts.values() for part in found}
    first = next(iter(built.values())).candidate
    candidates = {d: replace(first, path=first.path.with_name(d).with_suffix(".tflite")) for d in distinct}
    for digest, part in distinct.items():
        candidates[digest].path.write_bytes(part.data)
    own = {digest: part.inputs() for digest, part in distinct.items()}
    runs = device.latency(candidates, {}, progress, own_inputs=own, rounds=SLICE_ROUNDS, warmup=2, threads=threads)

    def row(part: Slice) -> Placement:
        microseconds = 1e6 * float(np.median(runs[part.digest]))
        return Placement(name=part.layer, op="", where="alone", integer=None, microseconds=microseconds)

    return {name: [row(part) for part in found] for name, found in parts.items()}
