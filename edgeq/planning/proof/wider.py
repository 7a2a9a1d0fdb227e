"""Which types of activations are tried: those of more bits than the preferred ones take a search, builds and proofs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from edgeq.cache import Entry, cached, content_key
from edgeq.errors import EdgeqError, UsageError
from edgeq.evaluation.measure import fed
from edgeq.lowering.assign import FLOAT
from edgeq.lowering.choices import by_activations, uniform
from edgeq.lowering.form import form, on_integers
from edgeq.planning.costs.builds import build_all
from edgeq.planning.proof.outcome import Outcome
from edgeq.planning.proof.proven import proven_choices
from edgeq.planning.proof.proving import loses_too_much
from edgeq.planning.proof.search import SAME, Search
from edgeq.planning.solver.solve import solve
from edgeq.records.wording import seconds_text
from edgeq.registry.schema import Runtime

ROUNDS = 30
SECONDS = 1.0
FEWEST = 5

_IN_FLOAT = " in float"

VAIN_VERSION = 1
"""To be raised whenever what is built or timed for `in_vain` changes."""


def why_wider(best: Outcome) -> str:
    """What is wrong with the best plan so far that activations of more bits may mend; empty if nothing is."""
    search, measure = best.search, best.search.minimize
    if best.proof is not None:
        return "without them the best plan loses too much" if loses_too_much(search.job.limits, best.proof) else ""
    if not best.held:  # it is too large, whatever it may lose
        return ""
    if best.loses_too_much:
        return "without them no plan is predicted to lose little enough"
    others = {name: cap for name, cap in best.caps.items() if name != "loss"}
    least, cost = solve(search.problem, minimize=measure, limits=others).costs[measure], best.predicted[measure]
    return f"without them the limit on the loss is paid for in {measure}" if cost > least * (1 + SAME) else ""


def in_kinds(
    runtime: Runtime,
    opened: Callable[[Runtime], list[Search]],
    why: Callable[[], str],
    note: Callable[[str], None],
) -> Iterator[tuple[str, str, list[Search]]]:
    """Searches of a runtime with the first type of activations that the rules leave something of; then, as long as that
    may mend something, with each wider type as well. By the type, and what it may mend.

    Args:
        opened: makes the searches.
        why: what wider ones may mend of what was found so far; empty if nothing.
        note: hears of types that were not tried.

    Raises:
        EdgeqError: there are no searches.
    """
    found: list[Search] = []
    refused: UsageError | None = None
    for kind, typed in by_activations(runtime).items():
        reason = why() if found else ""
        if found and not reason:
            return
        try:
            if found and (vain := in_vain(found[0], typed)):
                note(f"{kind} activations were not tried: {vain}")
                continue
            if found:
                found[0].job.clock.progress.note(f"{kind} activations are tried as well: {reason}")
            found = opened(typed)
        except EdgeqError as error:
            if found:  # what was found without them stands
                note(f"{kind} activations were tried as well: {reason}; {error.cause}")
                continue
            if not isinstance(error, UsageError):
                raise
            refused = refused or error
            continue
        yield kind, reason, found
    if refused is not None and not found:
        raise refused


def in_vain(search: Search, typed: Runtime) -> str:
    """Why wider activations are of no use, by the device's clock; empty if they may be of some, or nobody knows.

    A layer takes them where it loses too much with narrow ones and takes too long in float. The same weights stored
    under a layer that computes in float take as many bytes and lose less. So where the runtime has that for every
    layer, and with it everywhere the model is no slower, then wider integers have nothing to give.

    Args:
        search: among the narrower ones, of the same runtime.
        typed: that runtime with the wider ones as well (see `by_activations`).

    Raises:
        DeviceError: the runtime refused a build, or crashed.
    """
    job = search.job
    if job.timed is None or search.minimize == "energy":
        return ""
    options, _ = proven_choices(job.target, typed, job.model, job.calibration.histograms)
    known = {form(choice) for offered in search.options.values() for choice in offered}
    plans: dict[str, dict[str, str]] = {}
    for choice in dict.fromkeys(c for offered in options.values() for c in offered if form(c) not in known):
        wide = uniform(options, choice)
        in_float = {name: _in_float(one) for name, one in wide.items()}
        if any(one not in options[name] for name, one in in_float.items()):
            return ""
        if wide not in plans.values():
            plans |= {choice: wide, choice + _IN_FLOAT: in_float}
    if not plans:
        return "no layer of this model has a kernel for them"

    def timed() -> dict[str, float]:
        folder = Path(mkdtemp(dir=search.exporter.scratch))
        with job.clock.stage(f"wider activations in {typed.name}, everywhere") as steps:
            built = build_all(job.model, typed, job.calibration, plans, search.exporter, folder, steps, job.engine)
            one = job.calibration_data.first(1)
            runs = search.device.latency(
                {name: b.candidate for name, b in built.items()},
                one,
                own_inputs={name: fed(one, b.ends) for name, b in built.items()},
                rounds=ROUNDS,
                seconds=SECONDS,
                fewest=FEWEST,
                warmup=1,
                threads=job.threads,
            )
        return {name: float(np.median(seconds)) for name, seconds in runs.items()}

    key = content_key("wider", VAIN_VERSION, costs=search.key, runtime=typed.model_dump(mode="json"), options=options)
    seconds = cached(job.cache, "wider", key, timed, Entry, lambda entry: entry.values)
    pairs = [(seconds[name], seconds[name + _IN_FLOAT]) for name in plans if name + _IN_FLOAT in plans]
    integers, floats = min(pairs, key=lambda pair: pair[0] / pair[1])
    if integers < floats:
        return ""
    return f"everywhere they take {seconds_text(integers)}, and the same weights in float {seconds_text(floats)}"


def _in_float(choice: str) -> str:
    """The choice that stores the same weights, and computes in float."""
    return choice.removesuffix(form(choice) or "") or FLOAT if on_integers(choice) else choice
