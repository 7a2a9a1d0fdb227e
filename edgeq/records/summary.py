"""Figures that follow from a report: derived once, shown alike in the console and on the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeq.records.schema import Accuracy, Baseline, Build, Gate, Interval, Layer, Output, Report, Speed, Sustained
from edgeq.records.wording import drop_text, sqnr_text, times_text

DROP = "accuracy drop"
DISAGREEMENT = "disagreement with float"
"""Names of the gate on accuracy, with and without labels or a metric."""

RECOGNIZABLE = "recognizable"
"""The gate on the worst output."""


@dataclass(frozen=True)
class Where:
    """Operators of a build by how they ran, counted as the runtime names them."""

    integer: int
    floating: int
    unknown: int
    places: dict[str, int]

    @property
    def total(self) -> int:
        return self.integer + self.floating + self.unknown


def some(names: Sequence[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def fallen_back_text(build: Build) -> str:
    """What the CPU ran instead of the accelerator; empty where it ran nothing."""
    return f"on the CPU instead of the accelerator: {some(build.fallen_back)}" if build.fallen_back else ""


def in_order(report: Report) -> list[Build]:
    """The builds, the chosen one first."""
    return sorted(report.builds, key=lambda b: b.format != report.chosen)


def best_baseline(speed: Speed) -> Baseline | None:
    """The fastest float baseline, or None where none was measured."""
    return next((b for b in speed.baselines if b.name == speed.best), None)


def speedup(build: Build) -> float | None:
    """How many times as fast as the best float baseline; None on an emulated device, whatever was timed there."""
    best = None if build.speed is None or build.emulated else best_baseline(build.speed)
    return None if best is None else 1 / best.ratio


def float_size(build: Build) -> int | None:
    """Bytes of the float model in the same format, or of the best baseline that has a size."""
    if build.float_size_bytes:
        return build.float_size_bytes
    best = None if build.speed is None else best_baseline(build.speed)
    return best.size_bytes if best is not None and best.size_bytes else None


def shrink(build: Build) -> float | None:
    """How many times smaller than float."""
    size = float_size(build)
    return size / build.size_bytes if size and build.size_bytes else None


def shown_drop(accuracy: Accuracy) -> Interval | None:
    """The drop, or without labels and metric the disagreement with the float model, in percent."""
    if accuracy.drop is not None or accuracy.agreement is None:
        return accuracy.drop
    same = accuracy.agreement
    return same.model_copy(update={"value": 100 - same.value, "low": 100 - same.high, "high": 100 - same.low})


def worst_output(accuracy: Accuracy) -> Output | None:
    """The output that is nearest to being beyond recognition, or farthest beyond it; None in older reports."""

    def part(output: Output) -> tuple[bool, float]:
        return not output.unrecognizable, judged_value(output) / output.least

    return min(accuracy.outputs, key=part, default=None)


def judged_value(output: Output) -> float:
    """What an output is judged by: percent of answers that are the same, or dB."""
    if output.judged_by == "agreement" and output.agreement is not None:
        return output.agreement.value
    return output.sqnr_db if output.sqnr_db is not None else 0.0


def likeness_text(accuracy: Accuracy) -> str:
    """The worst output in words, with its name where there are others."""
    worst = worst_output(accuracy)
    if worst is None:
        same = accuracy.agreement
        return "" if same is None else f"agrees with the float model on {same.value:.1f} %"
    name = "" if len(accuracy.outputs) == 1 else f" in {worst.name}, the worst of {len(accuracy.outputs)} outputs"
    if worst.judged_by == "agreement":
        return f"agrees with the float model on {judged_value(worst):.1f} %{name}"
    return f"{sqnr_text(worst.sqnr_db)}{name}"


def interval_text(drop: Interval, accuracy: Accuracy, *, unit: bool = True) -> str:
    """The interval in words: -0.32 to 1.12 points."""
    if not drop.known:
        return "no interval"
    low, high = (drop_text(end, accuracy) for end in (drop.low, drop.high))
    return f"{low.partition(' ')[0]} to {high if unit else high.partition(' ')[0]}"


def drop_gate(build: Build) -> Gate | None:
    """The gate on accuracy, if a limit was set."""
    return next((g for g in build.gates if g.name in (DROP, DISAGREEMENT)), None)


def where(build: Build) -> Where:
    """How the operators ran, by the runtime's own account."""
    places: dict[str, int] = {}
    for placement in build.placements:
        places[placement.where] = places.get(placement.where, 0) + 1
    kinds = [p.integer for p in build.placements]
    return Where(
        integer=kinds.count(True),
        floating=kinds.count(False),
        unknown=kinds.count(None),
        places=dict(sorted(places.items(), key=lambda item: (-item[1], item[0]))),
    )


def noisiest(layers: Sequence[Layer], count: int = 3) -> list[Layer]:
    """The layers with the lowest simulated SQNR, worst first."""
    known = [layer for layer in layers if layer.simulated_sqnr_db is not None]
    return sorted(known, key=lambda layer: (layer.simulated_sqnr_db or 0.0, layer.name))[:count]


def how_run(build: Build) -> str:
    """One phrase for the label beside a build's name."""
    if build.error is not None:
        return "failed"
    if not build.validated:
        return "not validated"
    return "emulated device" if build.emulated else "measured on the device"


def sustained_text(sustained: Sustained) -> str:
    """What came of calls without a rest: whether the device slowed down, and what a call took of energy."""
    seconds = sum(window.seconds for window in sustained.windows)
    slower = times_text(sustained.throttled)
    told = f"{seconds:.3g} s without a rest: the last calls took {slower} of the time of the first"
    if sustained.windows[-1].celsius is not None:
        told += f", at {sustained.windows[-1].celsius:.0f} °C"
    energy = [f"{1000 * value:.3g} mJ a call ({name})" for name, value in sustained.joules.items()]
    return ", ".join([told, *energy])
