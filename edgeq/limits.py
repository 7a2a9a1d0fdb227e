"""The limits that a user sets, and whether a build holds them. What cannot be judged is not passed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from edgeq.errors import UsageError
from edgeq.records.schema import Accuracy, Gate, Speed
from edgeq.records.summary import (
    DISAGREEMENT,
    DROP,
    RECOGNIZABLE,
    best_baseline,
    judged_value,
    shown_drop,
    worst_output,
)
from edgeq.records.wording import bytes_text, drop_text, number, seconds_text, sqnr_text, times_text

LEAST_SQNR = 6.0
"""dB: the error is half as large as what the output says. Below it, the output cannot be recognized."""

LEAST_AGREEMENT = 50.0
"""Percent of the answers."""

ROUNDING = 1e-9
"""A drop that is over its limit by no more is a sum of floating point numbers."""

_TIME = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
_SIZE = {"": 1, "b": 1} | {
    f"{letter}{infix}b": base**power
    for power, letter in enumerate("kmgt", start=1)
    for infix, base in (("", 1000), ("i", 1024))
}
_REMEDY = (
    "look for the noisiest layers in the report and leave them in float with `edgeq plan`, try another format or "
    "target, or --allow-unrecognizable"
)
_ON_REAL_DEVICE = "reach the real device with a profile, or drop this limit"


@dataclass(frozen=True)
class Drop:
    """How much may be lost: `value` percent, or `value` in units of the metric."""

    value: float
    percent: bool

    def __str__(self) -> str:
        return f"{self.value:g}%" if self.percent else f"{self.value:g}"


@dataclass(frozen=True)
class Limits:
    """What an artefact must hold; None is no limit.

    Attributes:
        max_drop: largest loss against the float model.
        max_latency: longest median latency, in seconds.
        max_size: most bytes of all files of the artefact.
        max_fallback: most operators that the CPU may run instead of the accelerator.
        min_speedup: the least that the best float baseline's median must be above the artefact's.
        allow_slower: an artefact slower than the best float baseline is reported, but does not fail.
        allow_unrecognizable: nor does one whose outputs are beyond recognition.
    """

    max_drop: Drop | None = None
    max_latency: float | None = None
    max_size: int | None = None
    max_fallback: int | None = None
    min_speedup: float | None = None
    allow_slower: bool = False
    allow_unrecognizable: bool = False

    @classmethod
    def parse(
        cls,
        *,
        max_drop: str | None = None,
        max_latency: str | None = None,
        max_size: str | None = None,
        max_fallback: int | None = None,
        min_speedup: str | None = None,
        allow_slower: bool = False,
        allow_unrecognizable: bool = False,
    ) -> Limits:
        """Limits as written on a command line.

        Raises:
            UsageError: one of them cannot be read; it names the option and shows an example.
        """
        return cls(
            max_drop=None if max_drop is None else parse_drop(max_drop),
            max_latency=None if max_latency is None else parse_seconds(max_latency),
            max_size=None if max_size is None else parse_bytes(max_size),
            max_fallback=max_fallback,
            min_speedup=None if min_speedup is None else parse_speedup(min_speedup),
            allow_slower=allow_slower,
            allow_unrecognizable=allow_unrecognizable,
        )


def parse_drop(text: str) -> Drop:
    """ "1%" or "0.5".

    With "%": one percentage point of a metric in percent (top-1, agreement), one percent of the float model's score
    for a metric in any other unit. Without: units of the metric, so that "0.5" of a top-1 is half a point.
    """
    value, unit = _split(text, "--max-drop", "1%, 0.5")
    if unit not in ("", "%"):
        raise _unreadable(text, "--max-drop", "1%, 0.5")
    return Drop(value, unit == "%")


def parse_seconds(text: str, option: str = "--max-latency") -> float:
    """ "2ms", "1.5 s", "800us": seconds. The unit is required."""
    value, unit = _split(text, option, "2ms, 1.5 s, 800us")
    if unit not in _TIME or value == 0:
        raise _unreadable(text, option, "2ms, 1.5 s, 800us")
    return value * _TIME[unit]


def parse_bytes(text: str, option: str = "--max-size") -> int:
    """ "4MB" (4 000 000), "512KiB" (524 288), "4096": bytes."""
    value, unit = _split(text, option, "4MB, 512KiB, 4096")
    if unit not in _SIZE or value == 0:
        raise _unreadable(text, option, "4MB, 512KiB, 4096")
    return int(round(value * _SIZE[unit], 3))  # 2.01 times a million is a little less than it should be


def parse_speedup(text: str) -> float:
    """ "1.5x" or "1.5": times as fast as the best float baseline."""
    value, unit = _split(text, "--min-speedup", "1.5x")
    if unit not in ("", "x", "×") or value == 0:  # noqa: RUF001
        raise _unreadable(text, "--min-speedup", "1.5x")
    return value


class Measured(NamedTuple):
    """What limits are held against; None where it was not measured.

    Attributes:
        drop: in `unit`.
        float_score: what a relative limit on the drop relates to.
        latency: median seconds.
        size: bytes.
        unrecognizable: why it is beyond recognition; empty if it is not.
    """

    drop: float | None
    unit: str
    float_score: float | None
    latency: float | None
    size: int
    unrecognizable: str


class Room(NamedTuple):
    """A memory of a board.

    Attributes:
        has, needed: bytes; None where it is not known what is needed.
        how: how it is known, or why it is not.
    """

    name: str
    has: float
    needed: int | None
    how: str


def exceeded(limits: Limits, found: Measured) -> dict[str, float]:
    """By limit that does not hold (`recognizable`, `drop`, `latency`, `size`), by how much, in its own unit; infinite
    where it cannot be judged."""
    over = {"recognizable": inf if found.unrecognizable and not limits.allow_unrecognizable else 0.0}
    if limits.max_drop is not None:
        most = drop_limit(limits.max_drop, found.unit, found.float_score)
        over["drop"] = inf if most is None or found.drop is None else _beyond(found.drop, most)
    if limits.max_latency is not None:
        over["latency"] = inf if found.latency is None else found.latency - limits.max_latency
    if limits.max_size is not None:
        over["size"] = float(found.size - limits.max_size)
    return {name: amount for name, amount in over.items() if amount > 0}


def _beyond(value: float, most: float) -> float:
    return value - most if value > most + ROUNDING else 0.0


def judge(
    limits: Limits,
    *,
    accuracy: Accuracy | None,
    speed: Speed | None,
    size_bytes: int,
    emulated: bool,
    quantized: bool = True,
    not_validated_because: str | None = None,
    no_speed_because: str | None = None,
    fallen_back: Sequence[str] | None = None,
    no_fallback_because: str | None = None,
    board: Sequence[Room] = (),
) -> list[Gate]:
    """One gate for each limit that was set and for each memory of the board, "recognizable" wherever the artefact was
    run, and "faster than float" wherever that was measured.

    Args:
        limits: what the user set.
        accuracy: None where the artefact was not run.
        speed: None where there is no latency of a real device.
        size_bytes: all files of the artefact.
        emulated: the device was emulated; then no latency gate can be judged, whatever `speed` says.
        quantized: whether anything in the artefact is; where nothing is, it is the float model, and as fast as that.
        not_validated_because: why `accuracy` is None.
        no_speed_because: why `speed` is None.
        fallen_back: operators that do not run on the accelerator; None where that is not known.
        no_fallback_because: why it is not.
        board: what its profile says of its memories.
    """
    gates = []
    real = None if emulated else speed
    drop = None if accuracy is None else shown_drop(accuracy)
    missed = exceeded(
        limits,
        Measured(
            drop=None if drop is None else drop.value,
            unit="" if accuracy is None else accuracy.unit,
            float_score=None if accuracy is None else accuracy.float_score,
            latency=None if real is None else real.artifact.p50,
            size=size_bytes,
            unrecognizable="" if accuracy is None else beyond_recognition(accuracy),
        ),
    )
    if accuracy is not None and accuracy.outputs:
        gates.append(_recognizable_gate(accuracy, passed="recognizable" not in missed))
    if limits.max_drop is not None:
        gates.append(_drop_gate(limits.max_drop, accuracy, not_validated_because, passed="drop" not in missed))
    why = "the device is emulated, so its timing means nothing" if emulated else no_speed_because
    why = why or not_validated_because or "latency was not measured"
    if limits.max_latency is not None:
        gates.append(_latency_gate(limits.max_latency, real, why, passed="latency" not in missed))
    if limits.min_speedup is not None:
        gates.append(_speedup_gate(limits.min_speedup, real, why))
    if real is not None and real.baselines:
        gates.append(_faster_gate(limits.allow_slower, real, quantized=quantized))
    if limits.max_fallback is not None:
        gates.append(_fallback_gate(limits.max_fallback, fallen_back, no_fallback_because or not_validated_because))
    if limits.max_size is not None:
        passed = "size" not in missed
        over = "" if passed else f"{bytes_text(size_bytes - limits.max_size)} over"
        stated = f"at most {bytes_text(limits.max_size)}"
        gates.append(_gate("size", stated, bytes_text(size_bytes), passed, over, limits.max_size, size_bytes))
    return gates + [_room_gate(room) for room in board]


def beyond_recognition(accuracy: Accuracy) -> str:
    """Which outputs are, and why; empty if none is."""
    return "; ".join(f"{output.name}: {output.unrecognizable}" for output in accuracy.outputs if output.unrecognizable)


def _recognizable_gate(accuracy: Accuracy, *, passed: bool) -> Gate:
    beyond = beyond_recognition(accuracy)
    worst = worst_output(accuracy)
    assert worst is not None  # the caller has outputs
    stated = f"at least {LEAST_SQNR:g} dB, or {LEAST_AGREEMENT:g} % of the answers"
    reason = ""
    if beyond:
        reason = f"beyond recognition: {beyond}"
        reason += ", which was allowed" if passed else f"; remedy: {_REMEDY}"
    value = judged_value(worst)
    shown = f"{value:.1f} % of the answers" if worst.judged_by == "agreement" else sqnr_text(value)
    return _gate(RECOGNIZABLE, stated, shown, passed, reason, worst.least, value)


def drop_limit(limit: Drop, unit: str, float_score: float | None) -> float | None:
    """The limit in the unit of a score.

    None where a relative limit has nothing to relate to (a float score of 0).
    """
    if not limit.percent or unit == "%":
        return limit.value
    return limit.value / 100 * abs(float_score) if float_score else None


def _drop_gate(limit: Drop, accuracy: Accuracy | None, not_validated_because: str | None, *, passed: bool) -> Gate:
    name, stated = DROP, f"at most {limit}"
    if accuracy is None:
        why = not_validated_because or "the artefact was not run"
        return _unjudged(name, stated, why, "choose a target that can be run here, or drop this limit")
    drop, most = shown_drop(accuracy), drop_limit(limit, accuracy.unit, accuracy.float_score)
    if drop is None:
        why = "there are no labels, no metric, and the output has no classes to agree on"
        return _unjudged(name, stated, why, "pass labels or --metric package.module:function")
    if most is None:
        why = "a percentage of the float model's score, which is 0"
        return _unjudged(name, stated, why, "give the limit in units of the metric, without %")
    by_agreement = accuracy.drop is None
    if by_agreement:
        name = DISAGREEMENT
    elif limit.percent and accuracy.unit != "%":
        stated += f" of the float score ({number(most)}{_unit(accuracy)})"
    elif accuracy.unit == "%":
        stated = f"at most {limit.value:g} point" + ("" if limit.value == 1 else "s")
    reasons = ["no labels and no metric: judged on samples answered unlike the float model"] if by_agreement else []
    if not drop.known:
        reasons.append(drop.method)
    elif passed and drop.high > most:
        reasons.append(
            f"not certain with {accuracy.samples} samples: the interval reaches {drop_text(drop.high, accuracy)}"
        )
    elif not passed and drop.low <= most:
        reasons.append(
            f"not certain with {accuracy.samples} samples: the interval begins at {drop_text(drop.low, accuracy)}"
        )
    return _gate(name, stated, drop_text(drop.value, accuracy), passed, "; ".join(reasons), most, drop.value)


def _latency_gate(most: float, speed: Speed | None, why: str, *, passed: bool) -> Gate:
    name, stated = "latency", f"median at most {seconds_text(most)}"
    if speed is None:
        return _unjudged(name, stated, why, _ON_REAL_DEVICE)
    p50 = speed.artifact.p50
    tail = f"99 % of calls within {seconds_text(speed.artifact.p99)}" if speed.artifact.p99 > most >= p50 else ""
    return _gate(name, stated, seconds_text(p50), passed, tail, most, p50)


def _speedup_gate(least: float, speed: Speed | None, why: str) -> Gate:
    name, stated = "speedup", f"at least {times_text(least)} the best float baseline"
    best = None if speed is None else best_baseline(speed)
    if best is None:
        why = why if speed is None else "no float baseline was measured"
        return _unjudged(name, stated, why, _ON_REAL_DEVICE)
    passed = 1 / best.ratio >= least
    reason = f"against {best.name}"
    spread = best.ratio_interval
    if spread is not None and spread.low > 0 and passed != (1 / (spread.high if passed else spread.low) >= least):
        reason += f"; not certain: {times_text(1 / spread.high)} to {times_text(1 / spread.low)}"
    return _gate(name, stated, times_text(1 / best.ratio), passed, reason, least, 1 / best.ratio)


def _faster_gate(allow_slower: bool, speed: Speed, *, quantized: bool) -> Gate:
    best = best_baseline(speed)
    assert best is not None  # the caller has baselines
    faster = best.ratio < 1
    reason = f"{seconds_text(speed.artifact.p50)} beside {seconds_text(best.latency.p50)} of {best.name}"
    if not quantized:
        reason += "; no layer is quantized: the artefact is the float model"
    elif not faster:
        reason = f"slower than float: {reason}"
        reason += ", which was allowed" if allow_slower else "; remedy: another runtime or target, or --allow-slower"
    elif best.ratio_interval is not None and best.ratio_interval.high >= 1:
        reason += "; not certain: the interval of the ratio includes 1"
    passed, factor = faster or allow_slower or not quantized, 1 / best.ratio
    return _gate("faster than float", "above 1x", times_text(factor), passed, reason, 1.0, factor)


def _fallback_gate(most: int, fallen: Sequence[str] | None, not_validated_because: str | None) -> Gate:
    stated = f"at most {most} operators on the CPU"
    if fallen is None:
        why = not_validated_because or "this runtime has no accelerator to fall back from"
        return _unjudged("fallback", stated, why, "drop this limit, or run it where there is one")
    more = f" and {len(fallen) - 3} more" if len(fallen) > 3 else ""
    reason = f"on the CPU: {', '.join(fallen[:3])}{more}" if len(fallen) > most else ""
    return _gate("fallback", stated, f"{len(fallen)}", len(fallen) <= most, reason, most, len(fallen))


def _room_gate(room: Room) -> Gate:
    stated = f"at most {bytes_text(room.has)}, what the board has"
    if room.needed is None:
        return _unjudged(room.name, stated, room.how, "give evaluation data, or a profile without this figure")
    passed = room.needed <= room.has
    over = "" if passed else f"{bytes_text(room.needed - room.has)} over; "
    return _gate(room.name, stated, bytes_text(room.needed), passed, over + room.how, room.has, room.needed)


def _gate(
    name: str, stated: str, measured: str, passed: bool, reason: str, limit_value: float, measured_value: float
) -> Gate:
    return Gate(
        name=name,
        limit=stated,
        measured=measured,
        passed=passed,
        reason=reason,
        limit_value=limit_value,
        measured_value=measured_value,
    )


def _unjudged(name: str, stated: str, why: str, remedy: str) -> Gate:
    reason = f"cannot be judged: {why}; remedy: {remedy}"
    return Gate(name=name, limit=stated, measured="not measured", passed=False, reason=reason)


def _unit(accuracy: Accuracy) -> str:
    return f" {accuracy.unit}" if accuracy.unit else ""


def _split(text: str, option: str, examples: str) -> tuple[float, str]:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-zµμ%×]*)\s*", text.lower())  # noqa: RUF001
    if match is None or not math.isfinite(float(match[1])):
        raise _unreadable(text, option, examples)
    return float(match[1]), match[2]


def _unreadable(text: str, option: str, examples: str) -> UsageError:
    return UsageError(f"cannot read {text!r}", where=option, remedy=f"write it like one of: {examples}")
