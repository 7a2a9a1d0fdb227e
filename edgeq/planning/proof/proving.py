"""What a plan measures in its runtime, and whether that holds the limits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.cache import Cache, Entry, cached, content_key, write_folder
from edgeq.data.files import in_files
from edgeq.devices import Candidate, Files
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
Choices = Mapping[str, str]

PROOF_ROUNDS = 200
PROOF_SECONDS = 1.2
PROOF_VERSION = 5
"""To be raised whenever what is measured for a proof, or how it is kept, changes."""

TURNS_VERSION = 1
"""Likewise of the artefact that plans take turns with."""


def held(limits: Limits, proof: Proof) -> bool:
    """Whether a build can be recognized, and holds the user's limits on drop, latency and size."""
    return not exceeded(limits, proof.measured)


def loses_too_much(limits: Limits, proof: Proof) -> bool:
    return not held(replace(limits, max_latency=None, max_size=None), proof)


def prove(search: Search, choices: Choices, answered: Proof | None = None) -> Proof:
    """What a plan measures in its runtime, beside the preferred kernels everywhere and the float model.

    Args:
        answered: what it is known to answer.
    """

    def timed() -> Proof:
        """The clock runs when all is built, the plan has given its answers, and every worker rests."""
        judged = answered or _keep(search, choices, "answers", lambda: _judged(search, choices))
        latency, others = _latencies(search, choices)
        return judged.model_copy(update={"latency": latency, "latency_of": others})

    return _noted(search, choices, _keep(search, choices, "proof", timed))


def judge(search: Search, choices: Choices) -> Proof:
    """The same without the times of a plan that loses too much, nor the samples that are left once that is certain:
    nobody wants them if another one loses less."""
    found = _answered(search, choices)
    return _noted(search, choices, found) if loses_too_much(search.provable, found) else prove(search, choices, found)


def errors_of(search: Search, choices: Choices) -> list[Array]:
    """By how much a plan's artefact misses the float model's outputs on the evaluation data, in its runtime: per output
    [N, ...], float16, in units of the output's root mean square in each sample (see `relative`)."""
    proof, outputs = _run(search, choices)
    _keep(search, choices, "answers", lambda: proof)
    return [relative(found, wanted) for found, wanted in zip(outputs, search.job.reference, strict=True)]


def size_of(search: Search, choices: Choices) -> int:
    """Bytes of a plan's files, which are built if no earlier run did."""
    if known := search.proofs.get(search.name(choices)) or _kept(search, choices, "answers"):
        return known.size
    cache, key = _place(search, choices)
    size: int = cached(cache, "size", key, lambda: search.built(choices).size, Entry, lambda entry: entry.values)
    return size


def _noted(search: Search, choices: Choices, proof: Proof) -> Proof:
    search.proofs[search.name(choices)] = found = proof.model_copy(update={"held": held(search.provable, proof)})
    return found


def _place(search: Search, choices: Choices, **more: int) -> tuple[Cache, str]:
    """Where what is measured of a plan is kept: nowhere if its metric cannot be named."""
    judge = identity(search.job.metric)
    key = content_key(
        "proof",
        PROOF_VERSION,
        costs=search.key,
        choices=list(search.name(choices)),
        precision=search.precision,
        effort=search.job.effort,
        evaluation=search.evaluation.sha256,
        metric=judge,
        **more,
    )
    return search.job.cache if judge else Cache(None), key


def _kept(search: Search, choices: Choices, stage: str, **more: int) -> Proof | None:
    """What an earlier run measured of a plan."""
    cache, key = _place(search, choices, **more)
    entry = cache.get(stage, key)
    with contextlib.suppress(ValueError):  # of another kind: it is measured again
        return None if entry is None else Proof.model_validate(entry.values)
    return None


def _keep(search: Search, choices: Choices, stage: str, measure: Callable[[], Proof], **more: int) -> Proof:
    """The same, measured if none did."""
    cache, key = _place(search, choices, **more)
    return cached(
        cache,
        stage,
        key,
        measure,
        lambda proof: Entry(proof.model_dump(mode="json")),
        lambda entry: Proof.model_validate(entry.values),
    )


def _answered(search: Search, choices: Choices) -> Proof:
    """Size and answers of a plan, as far as it takes to see that it loses too much."""
    limit, job, within = search.provable.max_drop, search.job, None
    if limit is not None and job.metric is None:
        within = decisive(job.reference, search.evaluation.labels, limit.value, job.model.heads)
    most = {} if within is None else {"most": within.most}
    known = _kept(search, choices, "answers") or _kept(search, choices, "missed", **most)
    found = known or _judged(search, choices, within)
    if found.at_least:
        return _keep(search, choices, "missed", lambda: found, **most)
    return _keep(search, choices, "answers", lambda: found)


def _expect(search: Search, jobs: int) -> None:
    """So many jobs will follow: a core is idle while files are written, and one while a runtime loads an artefact."""
    if search.job.engine is LOCAL:  # others give a job away in parts
        search.device.expect(search.runtime.name, jobs)


def _turns_kept(search: Search) -> Made:
    def made() -> dict[str, np.ndarray]:
        path = search.built(search.preferred).candidate.path
        rest = sorted(file for file in path.parent.iterdir() if file != path)
        return {file.name: np.fromfile(file, np.uint8) for file in (path, *rest)}

    key = content_key("turns", TURNS_VERSION, costs=search.key, choices=list(search.name(search.preferred)))
    files = cached(search.job.cache, "turns", key, made, lambda some: Entry(None, some), lambda entry: entry.arrays)
    folder = search.folder / "turns"
    folder.mkdir(parents=True, exist_ok=True)
    write_folder(files, folder)
    candidate = Candidate(folder / next(iter(files)), search.runtime.name, run_options(search.precision))
    return Made(candidate, Ends({}, [], []), sum(content.size for content in files.values()))


def _others_in_turns(search: Search) -> tuple[Made, Path]:
    """What a plan takes turns with: the preferred kernels everywhere, for their time alone, and the float model. Files
    of the former are kept: building them takes seconds of the processor away from every plan's answers."""
    if search.turns is None:
        search.turns = _turns_kept(search) if search.runtime.io == "float" else search.built(search.preferred)
    return search.turns, search.exporter.float_model(search.runtime.format)[0]


def _sample_files(search: Search) -> Files | None:
    """The evaluation data in files: jobs are given links, not 300 MB for every proof. None where they are given parts
    of it, or integers."""
    if search.job.engine is not LOCAL or search.runtime.io != "float":
        return None
    return in_files(search.evaluation, search.exporter.scratch / "samples")


def _judged(search: Search, choices: Choices, within: Decisive | None = None) -> Proof:
    """Size and answers of a plan.

    Args:
        within: samples are left out once it is certain that the plan loses more.
    """
    return _run(search, choices, within)[0]


def _run(search: Search, choices: Choices, within: Decisive | None = None) -> tuple[Proof, list[Array]]:
    """The same, and the outputs, none where samples were left out; what will take turns with the plan is built
    meanwhile."""
    job, timed = search.job, search.job.timed is not None
    if job.engine is not LOCAL:
        search.build([choices, search.preferred] if timed else [choices])
    _expect(search, 1)
    with ThreadPoolExecutor(max_workers=1) as beside:  # writing leaves the interpreter free, and answers are elsewhere
        samples = beside.submit(_sample_files, search)
        artifact, ends, size = search.built(choices)
        files = samples.result()
        rest = beside.submit(_others_in_turns, search) if timed else None
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
        loss=_loss(outputs, job.reference),
        unrecognizable=beyond_recognition(accuracy),
        held=False,
    )
    return proof, outputs


def _loss(outputs: Sequence[Array], reference: Sequence[Array]) -> float:
    errors = [relative(found, wanted) for found, wanted in zip(outputs, reference, strict=True)]
    return float(sum(np.square(e, dtype=np.float64).mean() for e in errors if e.size))


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


def _latencies(search: Search, choices: Choices) -> tuple[float | None, dict[str, float]]:
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
