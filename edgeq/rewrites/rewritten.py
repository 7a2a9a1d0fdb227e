"""The float network, rewritten where that helps on samples that were held out, or as a plan says: between loading and
calibrating."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np

from edgeq.cache import Cache, Entry, cached, content_key
from edgeq.data.dataset import Dataset
from edgeq.errors import UsageError
from edgeq.installed import installed
from edgeq.model.model import Model
from edgeq.progress import Clock
from edgeq.registry.schema import Runtime, arithmetic
from edgeq.rewrites import REWRITES, rewrite_named
from edgeq.rewrites.price import price_of
from edgeq.rewrites.rewrite import WORTH_DB, Asked, Channels, Chosen, Observed, Parameters, Rewrite, split

FEWEST = 8
"""Calibration samples below which nothing could be held out that says more than chance."""

T = TypeVar("T")


class Given(NamedTuple):
    """What rewrites are for, and where what they take long for is kept."""

    data: Dataset
    runtimes: Sequence[Runtime]
    clock: Clock
    cache: Cache

    def kept(self, stage: str, model: Model, rewrite: Rewrite, places: Mapping[str, int]) -> tuple[Cache, str, str]:
        """Where the cache has something of these places."""
        key = content_key(
            stage,
            rewrite.version,
            rewrite=rewrite.title,
            places=dict(places),
            model=model.fingerprint,
            data=self.data.sha256,
            runtimes=[arithmetic(runtime) for runtime in self.runtimes],
            **installed("torch"),
        )
        return self.cache if rewrite.version else Cache(None), stage, key


def rewritten(model: Model, given: Given, names: Sequence[str]) -> tuple[Model, list[str]]:
    """The model with these rewrites done where they help, one after the other, and what there is to say of each.

    A model that was rewritten before is left as it is: its places are not those of the model as it was loaded.
    """
    remarks: list[str] = []
    if model.rewrites or len(given.data) < FEWEST:
        return model, remarks
    for name in names:
        rewrite = rewrite_named(name)
        places = rewrite.places(model, given.runtimes)
        if places and not model.program.calling:
            wordless = model.program.wordless
            remarks.append(f"{rewrite.title} is not tried, since edgeq cannot write this program anew: {wordless}")
        elif places:
            model, remark = _judged(model, given, name, rewrite, places)
            remarks += [remark] if remark else []
    return model, remarks


def as_planned(model: Model, given: Given, wanted: Mapping[str, Parameters]) -> Model:
    """The model rewritten as a plan says.

    Args:
        wanted: by rewrite.

    Raises:
        UsageError: there is no such rewrite or place, or the parameter is none.
    """
    if model.rewrites and wanted:
        raise UsageError("the model was rewritten before", where="rewrites", remedy="give it as it was loaded")
    for name in (*(name for name in REWRITES if name in wanted), *(name for name in wanted if name not in REWRITES)):
        rewrite, parameters = rewrite_named(name), wanted[name]
        places = rewrite.places(model, given.runtimes)
        _check(name, rewrite, places, parameters)
        if parameters:
            model = _applied(model, name, rewrite, _observed(model, given, rewrite, places), parameters)
    return model


def _judged(model: Model, given: Given, name: str, rewrite: Rewrite, places: Mapping[str, int]) -> tuple[Model, str]:
    observed = _observed(model, given, rewrite, places)
    with given.clock.stage(rewrite.title) as progress:
        parameters, before, after = cached(
            *given.kept("rewrites", model, rewrite, places),
            lambda: rewrite.choose(Asked(model, given.runtimes, split(given.data.inputs), observed, progress)),
            lambda chosen: Entry(list(chosen)),
            lambda entry: Chosen(*entry.values),
        )
    if not parameters:
        return model, ""
    told = f"{np.mean(before):.1f} to {np.mean(after):.1f} dB, simulated on calibration samples that were held out"
    gains = np.subtract(after, before)
    changed = _applied(model, name, rewrite, observed, parameters)
    told += _added(model, changed)
    if gains.mean() < max(WORTH_DB, price_of(model, changed)) or gains.min() <= -WORTH_DB:
        remark = f"{rewrite.title} was undone: {told}"
        given.clock.progress.note(remark)
        return model, remark
    ends = dict.fromkeys(f"{end(parameters.values()):g}" for end in (min, max))
    remark = f"{rewrite.title} of {len(parameters)} values, {rewrite.parameter} {' to '.join(ends)}: {told}"
    given.clock.progress.note(remark)
    return changed, remark


def _added(model: Model, changed: Model) -> str:
    """What a rewrite adds, in words; empty if it adds no multiply-accumulates."""
    numbers, macs = changed.parameters - model.parameters, changed.macs - model.macs
    if not macs:
        return ""
    worth, more = price_of(model, changed), 100 * macs / max(model.macs, 1)
    return f"; it adds {numbers} numbers in float, as dear as {worth:.1f} dB, and {more:.1f} % multiply-accumulates"


def _observed(model: Model, given: Given, rewrite: Rewrite, places: Mapping[str, int]) -> Observed:
    def observed() -> Observed:
        from edgeq.rewrites.channels import channels_of  # PyTorch takes seconds to import

        return channels_of(model, split(given.data.inputs).observed, places)

    with given.clock.stage("channels"):
        return cached(
            *given.kept("channels", model, rewrite, places),
            observed,
            lambda found: Entry(list(found), {str(i): np.stack(one) for i, one in enumerate(found.values())}),
            lambda entry: {place: Channels(*entry.arrays[str(i)]) for i, place in enumerate(entry.values)},
        )


def _applied(model: Model, name: str, rewrite: Rewrite, observed: Observed, parameters: Parameters) -> Model:
    changed = rewrite.apply(model, observed, parameters)
    return replace(changed, rewrites={**model.rewrites, name: dict(parameters)})


def _check(name: str, rewrite: Rewrite, places: Mapping[str, int], parameters: Parameters) -> None:
    low, high = rewrite.ends
    for place, parameter in parameters.items():
        if place not in places:
            raise UsageError(
                f"{place} is no value of this model that {rewrite.title} can change",
                where=f"rewrites.{name}",
                remedy=f"take it out, or name one of: {', '.join(places) or 'none'}",
            )
        if not low <= parameter <= high:
            raise UsageError(
                f"{rewrite.parameter} {parameter:g}",
                where=f"rewrites.{name}.{place}",
                remedy=f"give one from {low:g} to {high:g}",
            )
