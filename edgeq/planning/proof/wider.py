"""Which types of activations are tried: those of more bits than the preferred ones take a search, builds and proofs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edgeq.errors import EdgeqError, UsageError
from edgeq.lowering.assign import FLOAT
from edgeq.lowering.choices import by_activations
from edgeq.lowering.form import form
from edgeq.planning.proof.outcome import Outcome
from edgeq.planning.proof.proven import proven_choices
from edgeq.planning.proof.proving import loses_too_much
from edgeq.planning.proof.search import SAME, Search
from edgeq.planning.solver.solve import solve
from edgeq.registry.schema import Runtime


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
    runtime: Runtime, opened: Callable[[Runtime], list[Search]], why: Callable[[], str]
) -> Iterator[list[Search]]:
    """Searches of a runtime with the first type of activations that the rules leave something of; then, as long as that
    may mend something, with each wider type as well. Their notes say what was tried, and why.

    Args:
        opened: makes the searches.
        why: what wider ones may mend of what was found so far; empty if nothing.

    Raises:
        EdgeqError: there are no searches.
    """
    found: list[Search] = []
    refused: EdgeqError | None = None
    for kind, typed in by_activations(runtime).items():
        reason, more = why() if found else "", list[Search]()
        if found and not reason:
            return
        try:
            vain = in_vain(found[-1], typed) if found else ""
            more = [] if vain else opened(typed)
        except EdgeqError as error:
            if not found and not isinstance(error, UsageError):
                raise
            refused, vain = refused or error, error.cause
        if found:
            told = f"{kind} activations were {f'not tried: {vain}' if vain else f'tried as well: {reason}'}"
            found[0].job.clock.progress.note(told)
            for one in (*found, *more):
                one.notes.append(told)
        found += more
        if more:
            yield more
    if refused is not None and not found:
        raise refused


def in_vain(search: Search, typed: Runtime) -> str:
    """Why wider activations are of no use; empty if they may be of some.

    The same weights under a layer that computes in float take as many bytes and lose less, and no runtime that has this
    for every layer is faster with wider integers. What a model says of time or energy may still speak for them.

    Args:
        search: among the narrower ones, of the same runtime.
        typed: that runtime with the wider ones as well (see `by_activations`).
    """
    job = search.job
    if search.costs.latency_from == "modelled" or search.minimize == "energy":
        return ""
    options, _ = proven_choices(job.target, typed, job.model, job.calibration.histograms)
    known = {form(choice) for offered in search.options.values() for choice in offered}
    wider = [(name, choice) for name, offered in options.items() for choice in offered if form(choice) not in known]
    if not wider:
        return "no layer of this model has a kernel for them"
    in_float = all((choice.removesuffix(form(choice) or "") or FLOAT) in options[name] for name, choice in wider)
    return "every layer has the same weights in float as well, which lose less" if in_float else ""
