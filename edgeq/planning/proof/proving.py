"""What a plan measures in its runtime, whether that holds the limits, and which proof of a search ranks first."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.cache import Cache, Entry, cached, content_key, write_folder
from edgeq.data.place import Place
from edgeq.devices import Candidate
from edgeq.devices.device import Files
from edgeq.engine import LOCAL
from edgeq.evaluation.accuracy import AGREEMENT, TOP_1, compare
from edgeq.evaluation.decided import Decisive, decisive
from edgeq.evaluation.measure import Ends, answers, fed
from edgeq.evaluation.metric import identity
from edgeq.export.artifact import JUDGES, import_ahead
from edgeq.limits import Limits, beyond_recognition, exceeded
from edgeq.planning.costs.table import precisions
from edgeq.planning.proof.search import Made, Search
from edgeq.planning.sensitivity.budget import relative
from edgeq.plans.plan import Proof, run_options
from edgeq.progress import Silent
from edgeq.records.summary import shown_drop
from edgeq.runtimes import runtime as runtime_info

Array = NDArray[Any]

PROOF_ROUNDS = 200
PROOF_SECONDS = 1.2
PROOF_VERSION = 4
"""To be raised whenever what is measured for a proof, or how it is kept, changes."""

MISSED_VERSION = 1
"""Likewise of what is given up early."""

TURNS_VERSION = 1
"""Likewise of the artefact that plans take turns with."""


def prove(search: Search, choices: Mapping[str, str]) -> Proof:
    """What a plan measures in its runtime, beside the preferred kernels everywhere and the float model."""
    return _noted(search, choices, _known(search, choices, timed=True) or _kept(search, choices, "proof", _timed))


def judge(search: Search, choices: Mapping[str, str]) -> Proof:
    """The same without the times of a plan that loses too much, nor the samples that are left once that is certain:
    nobody wants them if another one loses less."""
    found = _known(search, choices, timed=False) or _answered(search, choices)
    if held(replace(search.provable, max_latency=None, max_size=None), found):
        return prove(search, choices)
    return _noted(search, choices, found)


def errors_of(search: Search, choices: Mapping[str, str]) -> list[Array]:
    """By how much a plan's artefact misses the float model's outputs on the evaluation data, in its runtime: per output
    [N, ...], float16, in units of the output's root mean square in each sample (see `relative`)."""
    proof, outputs = _answered_with(search, choices)
    cache, key = _kept_as(search, choices)
    _keep(cache, "answers", key, lambda: proof)
    return [relative(found, wanted) for found, wanted in zip(outputs, search.job.reference, strict=True)]


def build_unproved(search: Search, plans: Sequence[Mapping[str, str]]) -> None:
    """Builds, before they are proved one after the other, those of the plans that no earlier run proved."""
    unknown = [choices for choices in plans if _known(search, choices, timed=True) is None]
    if unknown and search.job.timed is not None:
        unknown.append(search.preferred)
    search.build(unknown)


def size_of(search: Search, choices: Mapping[str, str]) -> int:
    """Bytes of a plan's files, which are built if no earlier run did."""
    known = _known(search, choices, timed=False)
    if known is not None:
        return known.size
    cache, key = _kept_as(search, choices)
    size: int = cached(cache, "size", key, lambda: _made(search, choices).size, Entry, lambda entry: entry.values)
    return size


def _noted(search: Search, choices: Mapping[str, str], proof: Proof) -> Proof:
    search.proofs[search.name(choices)] = found = proof.model_copy(update={"held": held(search.provable, proof)})
    return found


def _known(search: Search, choices: Mapping[str, str], *, timed: bool) -> Proof | None:
    """The proof of a plan, from this search or an earlier run.

    Args:
        timed: only one with the times that the device can measure.
    """
    here = search.proofs.get(search.name(choices))
    if here is not None and not here.at_least and (here.latency is not None or search.job.timed is None or not timed):
        return here
    cache, key = _kept_as(search, choices)
    for stage in ("proof",) if timed else ("proof", "answers"):
        entry = cache.get(stage, key)
        with contextlib.suppress(ValueError):  # of another kind: it is measured again, and said so
            if entry is not None:
                return Proof.model_validate(entry.values)
    return None


def _kept(
    search: Search, choices: Mapping[str, str], stage: str, measure: Callable[[Search, Mapping[str, str]], Proof]
) -> Proof:
    cache, key = _kept_as(search, choices)
    return _keep(cache, stage, key, lambda: measure(search, choices))


def _keep(cache: Cache, stage: str, key: str, measure: Callable[[], Proof]) -> Proof:
    return cached(
        cache,
        stage,
        key,
        measure,
        lambda proof: Entry(proof.model_dump(mode="json")),
        lambda entry: Proof.model_validate(entry.values),
    )


def _answered(search: Search, choices: Mapping[str, str]) -> Proof:
    """Size and answers of a plan, as far as it takes to see that it loses too much."""
    limit, job = search.provable.max_drop, search.job
    within = None
    if limit is not None and job.metric is None and not search.fresh:
        within = decisive(job.reference, search.evaluation.labels, limit.value, job.model.heads)
    if within is None:
        return _kept(search, choices, "answers", _judged)
    cache, key = _kept_as(search, choices)
    missed = content_key("missed", MISSED_VERSION, proof=key, most=within.most)
    entry = cache.get("missed", missed)
    with contextlib.suppress(ValueError):  # of another kind: it is measured again, and said so
        if entry is not None:
            return Proof.model_validate(entry.values)
    found = _judged(search, choices, within)
    return _keep(cache, *(("missed", missed) if found.at_least else ("answers", key)), lambda: found)


def _made(search: Search, choices: Mapping[str, str]) -> Made:
    """The artefact of a plan, and what it will be fed with."""
    _expect(search, 1)
    with ThreadPoolExecutor(max_workers=1) as beside:  # writing leaves the interpreter free
        samples = beside.submit(_sample_files, search)
        made = search.built(choices)
        samples.result()
    return made


def _expect(search: Search, jobs: int) -> None:
    """So many jobs will follow: a core is idle while files are written, and one while a runtime loads an artefact."""
    if search.job.engine is LOCAL:  # others give a job away in parts
        search.device.expect(search.runtime.name, jobs)


def _taking_turns(search: Search) -> Made:
    """The preferred kernels everywhere, for their time alone. Their files are kept: building them takes seconds of the
    processor away from every plan's answers."""
    name = search.name(search.preferred)
    if search.turns is None and (name in search.made or search.runtime.io != "float"):
        search.turns = search.built(search.preferred)
    if search.turns is not None:
        return search.turns

    def made() -> dict[str, np.ndarray]:
        path = search.built(search.preferred).candidate.path
        rest = sorted(file for file in path.parent.iterdir() if file != path)
        return {file.name: np.fromfile(file, np.uint8) for file in (path, *rest)}

    key = content_key("turns", TURNS_VERSION, costs=search.key, choices=list(name))
    files = cached(search.job.cache, "turns", key, made, lambda some: Entry(None, some), lambda entry: entry.arrays)
    folder = search.folder / "turns"
    folder.mkdir(parents=True, exist_ok=True)
    write_folder(files, folder)
    candidate = Candidate(folder / next(iter(files)), search.runtime.name, run_options(search.precision))
    search.turns = Made(candidate, Ends({}, [], []), sum(content.size for content in files.values()))
    return search.turns


def _others_in_turns(search: Search) -> tuple[Made, Path]:
    """What a plan takes turns with: the preferred kernels, and the float model."""
    return _taking_turns(search), search.exporter.float_model(search.runtime.format)[0]


def _sample_files(search: Search) -> Files | None:
    """The evaluation data in files, linked or else written once: jobs are given links, not 300 MB for every proof. None
    where they are given parts of it, or integers."""
    data = search.evaluation
    if search.job.engine is not LOCAL or search.runtime.io != "float":
        return None
    folder = search.exporter.scratch / "samples" / data.sha256[:16]
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path | Place] = {}
    for number, name in enumerate(data.inputs):
        place = _linked(data.places.get(name), folder / f"{number}.link")
        found[name] = place or folder / f"{number}.npy"
        if place is None and not (folder / f"{number}.npy").exists():
            part = folder / f"{number}.part.npy"
            np.save(part, data.inputs[name], allow_pickle=False)
            part.replace(folder / f"{number}.npy")
    return found


def _linked(place: Place | None, link: Path) -> Place | None:
    """The place in a link that stays when the file is replaced; None if there is none, or the file was written to since
    it was read: what is in memory counts."""
    if place is None:
        return None
    if not link.exists():
        with contextlib.suppress(OSError):  # another file system, or links are not allowed
            os.link(place.path, link)
    kept = place._replace(path=link)
    return kept if kept.unchanged() else None


def _kept_as(search: Search, choices: Mapping[str, str]) -> tuple[Cache, str]:
    """Where the proof of a plan is kept: nowhere if its metric cannot be named."""
    judge = identity(search.job.metric)
    key = content_key(
        "proof",
        PROOF_VERSION,
        costs=search.key,
        choices=list(search.name(choices)),
        precision=search.precision,
        evaluation=search.evaluation.sha256,
        metric=judge,
    )
    return search.job.cache if judge else Cache(None), key


def _timed(search: Search, choices: Mapping[str, str]) -> Proof:
    """The clock runs when all is built, the plan has given its answers, and every worker rests."""
    judged = _known(search, choices, timed=False) or _kept(search, choices, "answers", _judged)
    latency, others = _in_turns(search, choices) or _latencies(search, choices)
    return judged.model_copy(update={"latency": latency, "latency_of": others})


def _in_turns(search: Search, choices: Mapping[str, str]) -> tuple[float, dict[str, float]] | None:
    """What the preferred kernels everywhere took in turns with the plan before them. To be told from that one they need
    no turns of their own, which the machine would give at another speed."""
    if search.name(choices) != search.name(search.preferred):
        return None
    latest = next((p.latency_of for p in reversed(search.proofs.values()) if "preferred" in p.latency_of), None)
    return None if latest is None else (latest["preferred"], dict(latest))


def _judged(search: Search, choices: Mapping[str, str], within: Decisive | None = None) -> Proof:
    """Size and answers of a plan.

    Args:
        within: samples are left out once it is certain that the plan loses more.
    """
    proof, _ = _answered_with(search, choices, within)
    return proof


def _answered_with(
    search: Search, choices: Mapping[str, str], within: Decisive | None = None
) -> tuple[Proof, list[Array]]:
    """The same, and the outputs, none where samples were left out; what will take turns with the plan is built
    meanwhile."""
    job, timed = search.job, search.job.timed is not None
    if job.engine is not LOCAL:
        search.build([choices, search.preferred] if timed else [choices])
    artifact, ends, size = _made(search, choices)
    with ThreadPoolExecutor(max_workers=1) as beside:  # the answers come from another process
        rest = beside.submit(_others_in_turns, search) if timed else None
        files = _sample_files(search)
        import_ahead((runtime.format for runtime in job.runtimes), JUDGES)
        _expect(search, 2 if timed else 1)
        outputs = answers(
            artifact, search.device, search.evaluation, job.reference, ends, Silent(), job.engine, files, within
        )
        if rest is not None:
            rest.result()
    if outputs is None:
        assert within is not None
        return _given_up(search, size, within), []
    accuracy = compare(
        job.reference, outputs, search.evaluation.labels, job.metric, ends.limits, job.model.heads, seconds=5.0
    )
    drop = shown_drop(accuracy)
    proof = Proof(
        latency=None,
        size=size,
        metric=accuracy.metric,
        unit=accuracy.unit,
        score=accuracy.score,
        float_score=accuracy.float_score,
        drop=drop.value if drop else None,
        drop_low=drop.low if drop else None,
        drop_high=drop.high if drop else None,
        unrecognizable=beyond_recognition(accuracy),
        held=False,
    )
    return proof, outputs


def _given_up(search: Search, size: int, within: Decisive) -> Proof:
    labelled = search.evaluation.labels is not None
    return Proof(
        latency=None,
        size=size,
        metric=TOP_1 if labelled else AGREEMENT,
        unit="%",
        score=None,
        float_score=100 * (1 - within.before / len(within.wanted)) if labelled else None,
        drop=within.drop,
        drop_low=None,
        drop_high=None,
        at_least=True,
        held=False,
    )


def _latencies(search: Search, choices: Mapping[str, str]) -> tuple[float | None, dict[str, float]]:
    """Median seconds of a plan's artefact, and of what took turns with it."""
    job, device = search.job, search.job.timed
    if device is None:
        return None, {}
    info = runtime_info(search.runtime.name)
    preferred, baseline = _others_in_turns(search)
    floats = info.baselines(device.environment(search.runtime.name))
    variants = {name: floats[name] for name in precisions(search.runtime, device)}
    made = {"plan": search.built(choices), "preferred": preferred}
    candidates = {name: one.candidate for name, one in made.items()} | {
        name: Candidate(baseline, search.runtime.name, options) for name, options in variants.items()
    }
    one = search.evaluation.first(1)
    own = {name: fed(one, built.ends) for name, built in made.items()}
    runs = device.latency(
        candidates, one, own_inputs=own, rounds=PROOF_ROUNDS, seconds=PROOF_SECONDS, warmup=3, threads=job.threads
    )
    medians = {name: float(np.median(seconds)) for name, seconds in runs.items()}
    return medians.pop("plan"), medians


def held(limits: Limits, proof: Proof) -> bool:
    """Whether a build can be recognized, and holds the user's limits on drop, latency and size."""
    return not exceeded(limits, proof.measured)
