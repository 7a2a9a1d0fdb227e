"""Inline SVG. Positions are percentages and text has a fixed size, so that a chart narrows without shrinking its words.

Colours come from the page's style sheet through classes, which is how they follow the light and the dark scheme.
Names pass through `Markup.format`, which escapes them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from markupsafe import Markup

from edgeq.records.schema import Accuracy, Interval, Latency, Layer, Speed
from edgeq.records.summary import interval_text, noisiest
from edgeq.records.wording import bytes_text, drop_text, seconds_text

if TYPE_CHECKING:
    from edgeq.planning.front import Front
    from edgeq.plans.plan import Plan
    from edgeq.training.loop import Epoch

_OPEN = Markup('<svg class="chart" width="100%" height="{}" role="img" aria-label="{}">')
_CLOSE = Markup("</svg>")
_HIGHEST = 60.0
"""The axis of the error chart ends at plus or minus this many dB."""


def drop_chart(drop: Interval, accuracy: Accuracy, limit: float | None) -> Markup:
    """The drop with its interval on a line, beside "as good as float" and the limit."""
    ends = [0.0, drop.low, drop.high, drop.value] + ([] if limit is None else [limit])
    low, high = min(ends), max(ends)
    margin = 0.12 * (high - low or 1.0)
    low, high = low - margin, high + margin

    def x(value: float) -> str:
        return _percent((value - low) / (high - low))

    says = f"Drop {drop_text(drop.value, accuracy)}, 95 % interval {interval_text(drop, accuracy)}"
    parts = [_OPEN.format(76, says + ("" if limit is None else f", limit {drop_text(limit, accuracy)}"))]
    parts.append(Markup('<line class="axis" x1="0%" x2="100%" y1="38" y2="38"/>'))
    parts.append(_tick(x(0), "float", "zero", 0 - low < 0.2 * (high - low), above=False))
    if limit is not None:
        right = limit - low > 0.8 * (high - low)
        parts.append(_tick(x(limit), f"limit {drop_text(limit, accuracy)}", "limit", not right, above=True, end=right))
    if drop.known:
        parts.append(
            Markup('<line class="interval" x1="{}" x2="{}" y1="38" y2="38"/>').format(x(drop.low), x(drop.high))
        )
        for end in (drop.low, drop.high):
            parts.append(Markup('<line class="whisker" x1="{0}" x2="{0}" y1="31" y2="45"/>').format(x(end)))
    parts.append(Markup('<circle class="point" cx="{}" cy="38" r="6"/>').format(x(drop.value)))
    return _join([*parts, _CLOSE])


def latency_chart(speed: Speed, name: str) -> Markup:
    """A bar to the median of each variant, ticks at p90 and p99; below it a dot for each twentieth of its runs."""
    rows: list[tuple[str, Latency, bool]] = [(name, speed.artifact, True)]
    rows += [(b.name, b.latency, False) for b in sorted(speed.baselines, key=lambda b: b.latency.p50)]
    most = 1.06 * max(latency.p99 for _, latency, _ in rows)
    height = 60
    says = "; ".join(f"{title}: median {seconds_text(latency.p50)}" for title, latency, _ in rows)
    label = Markup('<text x="0" y="{}" class="label">{}</text>')
    value = Markup('<text x="100%" y="{}" class="value" text-anchor="end">{}</text>')
    bar = Markup('<rect class="bar {}" x="0" y="{}" width="{}" height="12" rx="3"/>')
    line = Markup('<line class="tail {}" x1="{}" x2="{}" y1="{}" y2="{}"/>')
    dot = Markup('<circle class="dot {}" cx="{}" cy="{}" r="3"/>')
    parts = [_OPEN.format(height * len(rows), f"Latency. {says}")]
    for i, (title, latency, own) in enumerate(rows):
        top = i * height
        kind = "own" if own else "other"
        p50, p90, p99 = (_percent(v / most) for v in (latency.p50, latency.p90, latency.p99))
        parts += [label.format(top + 13, title), value.format(top + 13, seconds_text(latency.p50))]
        parts += [bar.format(kind, top + 20, p50), line.format(kind, p50, p99, top + 26, top + 26)]
        parts += [line.format(kind, tick, tick, top + 21, top + 31) for tick in (p90, p99)]
        parts += [dot.format(kind, _percent(q / most), top + 40) for q in latency.quantiles if q <= most]
    return _join([*parts, _CLOSE])


def bars(rows: Sequence[tuple[str, float, str, bool]], title: str) -> Markup:
    """Horizontal bars from zero: (label, amount, amount in words, whether it is the artefact's)."""
    most = max((amount for _, amount, _, _ in rows), default=0.0) or 1.0
    says = "; ".join(f"{label}: {words}" for label, _, words, _ in rows)
    parts = [_OPEN.format(42 * len(rows), f"{title}. {says}")]
    for i, (label, amount, words, own) in enumerate(rows):
        top = 42 * i
        parts.append(Markup('<text x="0" y="{}" class="label">{}</text>').format(top + 13, label))
        parts.append(Markup('<text x="100%" y="{}" class="value" text-anchor="end">{}</text>').format(top + 13, words))
        parts.append(
            Markup('<rect class="bar {}" x="0" y="{}" width="{}" height="14" rx="3"/>').format(
                "own" if own else "other", top + 20, _percent(max(0.004, amount / most))
            )
        )
    return _join([*parts, _CLOSE])


def stack(shares: Sequence[tuple[str, float, str]], title: str) -> Markup:
    """One bar cut into shares: (label, amount, class). The legend is the page's."""
    total = sum(amount for _, amount, _ in shares) or 1.0
    parts = [_OPEN.format(18, title + ": " + "; ".join(f"{label} {100 * a / total:.1f} %" for label, a, _ in shares))]
    left = 0.0
    for label, amount, kind in shares:
        parts.append(
            Markup('<rect class="{}" x="{}" y="0" width="{}" height="18"><title>{}</title></rect>').format(
                kind, _percent(left / total), _percent(amount / total), label
            )
        )
        left += amount
    return _join([*parts, _CLOSE])


def error_chart(layers: Sequence[Layer]) -> Markup:
    """Simulated SQNR of each layer, in the model's order; the three worst stand out."""
    known = [layer for layer in layers if layer.simulated_sqnr_db is not None]
    values = [layer.simulated_sqnr_db or 0.0 for layer in known]
    # A layer that is all but exact would flatten the others.
    top = min(_HIGHEST, 10.0 * math.ceil(max([10.0, *values]) / 10))
    bottom = max(-_HIGHEST, 10.0 * math.floor(min([0.0, *values]) / 10))
    plot, head = 140, 14

    def y(value: float) -> float:
        return round(head + plot * (top - max(bottom, min(top, value))) / (top - bottom), 2)

    worst = {id(layer) for layer in noisiest(known)}
    parts = [_OPEN.format(head + plot + 22, f"Simulated SQNR of {len(known)} layers, {min(values):.0f} dB at worst")]
    step = 10.0 if top - bottom <= 60 else 20.0
    level = bottom
    while level <= top:
        parts.append(Markup('<line class="grid" x1="7%" x2="100%" y1="{0}" y2="{0}"/>').format(y(level)))
        parts.append(
            Markup('<text class="small" x="6%" y="{}" text-anchor="end">{:.0f}</text>').format(y(level) + 4, level)
        )
        level += step
    bar = Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{:.2f}"><title>{}: {:.1f} dB</title></rect>')
    width = 0.93 / len(known)
    for i, (layer, value) in enumerate(zip(known, values, strict=True)):
        up, down = min(y(value), y(0)), max(y(value), y(0))
        kind = "noisy" if id(layer) in worst else "layer"
        left, right = _percent(0.07 + (i + 0.1) * width), _percent(0.8 * width)
        parts.append(bar.format(kind, left, up, right, max(1.0, down - up), layer.name, value))
    below = head + plot + 17
    parts.append(Markup('<text class="small" x="7%" y="{}">first layer</text>').format(below))
    parts.append(Markup('<text class="small" x="100%" y="{}" text-anchor="end">last layer</text>').format(below))
    return _join([*parts, _CLOSE])


def _tick(x: str, text: str, kind: str, start: bool, *, above: bool, end: bool = False) -> Markup:
    """A vertical line with its word, turned inwards near an end of the axis."""
    anchor = "end" if end else "start" if start else "middle"
    y = 12 if above else 72
    return Markup(
        '<line class="{0}" x1="{1}" x2="{1}" y1="18" y2="58"/>'
        '<text class="small {0}-text" x="{1}" y="{2}" text-anchor="{3}">{4}</text>'
    ).format(kind, x, y, anchor, text)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _join(parts: Sequence[Markup]) -> Markup:
    return Markup("").join(parts)


def front_chart(front: Front) -> Markup:
    """Measured plans: what they cost from left to right, what they lose from bottom to top, with its interval."""
    height, left, bottom = 320, 9.0, 44
    drops = [e for p in front.points for e in (p.drop, p.drop_low, p.drop_high) if e is not None] + [0.0]
    values = [p.value for p in front.points]
    low, high = min(drops), max(drops)
    margin = 0.08 * (high - low or 1.0)
    low, high = low - margin, high + margin
    first, last = 0.95 * min(values), 1.05 * max(values)

    def x(value: float) -> str:
        return f"{left + (97 - left) * (value - first) / (last - first or 1.0):.2f}%"

    def y(drop: float) -> str:
        return f"{12 + (height - bottom - 12) * (high - drop) / (high - low):.1f}"

    show = seconds_text if front.over == "latency" else lambda size: bytes_text(round(size))
    says = "; ".join(f"{p.name}: {show(p.value)}, drop {p.drop:.2f}" for p in front.points)
    parts = [_OPEN.format(height, says)]
    parts.append(Markup('<line class="axis" x1="{}%" x2="97%" y1="{}" y2="{}"/>').format(left, y(0.0), y(0.0)))
    parts.append(Markup('<text x="0" y="{}" class="label">0</text>').format(y(0.0)))
    for drop in (low + margin, high - margin):
        parts.append(Markup('<text x="0" y="{}" class="label">{:.2f}</text>').format(y(drop), drop))
    for value, anchor in ((first, "start"), (last, "end")):
        text = Markup('<text x="{}" y="{}" class="label" text-anchor="{}">{}</text>')
        parts.append(text.format(x(value), height - 12, anchor, show(value)))
    for point in front.points:
        if point.drop_low is not None and point.drop_high is not None:
            line = Markup('<line class="interval" x1="{0}" x2="{0}" y1="{1}" y2="{2}"><title>{3}</title></line>')
            parts.append(line.format(x(point.value), y(point.drop_low), y(point.drop_high), point.name))
        circle = Markup('<circle class="point{}" cx="{}" cy="{}" r="6"><title>{}</title></circle>')
        kind = "" if point.on_front else " other"
        parts.append(circle.format(kind, x(point.value), y(point.drop), f"{point.name}: {show(point.value)}"))
    return _join([*parts, _CLOSE])


def choices_text(plan: Plan) -> str:
    """How many layers have each choice."""
    count = Counter(layer.choice for layer in plan.layers)
    return ", ".join(f"{number} {choice}" for choice, number in sorted(count.items()))


def training_chart(epochs: Sequence[Epoch], best: int) -> Markup:
    """Loss of each epoch on the samples that were learned, and on those that were held out; the best one stands out."""
    height, left, top, bottom = 240, 9.0, 14, 200
    losses = [e.loss for e in epochs if e.loss is not None] + [e.held_out for e in epochs]
    low, high = min(losses), max(losses)

    def x(epoch: Epoch) -> str:
        return f"{left + (97 - left) * epoch.number / max(1, epochs[-1].number):.2f}%"

    def y(loss: float) -> str:
        return f"{top + (bottom - top) * (high - loss) / ((high - low) or 1.0):.1f}"

    parts = [_OPEN.format(height, f"Loss from {epochs[0].held_out:.4g} to {epochs[best].held_out:.4g}")]
    for loss in dict.fromkeys((high, low)):
        parts.append(Markup('<line class="grid" x1="{0}%" x2="97%" y1="{1}" y2="{1}"/>').format(left, y(loss)))
        parts.append(Markup('<text x="0" y="{}" class="label">{:.3g}</text>').format(float(y(loss)) + 4, loss))
    line = Markup('<line class="curve {}" x1="{}" y1="{}" x2="{}" y2="{}"/>')
    for a, b in pairwise(epochs):
        if a.loss is not None and b.loss is not None:
            parts.append(line.format("other", x(a), y(a.loss), x(b), y(b.loss)))
        parts.append(line.format("own", x(a), y(a.held_out), x(b), y(b.held_out)))
    point = Markup('<circle class="point" cx="{}" cy="{}" r="6"><title>epoch {}: {:.4g}</title></circle>')
    parts.append(point.format(x(epochs[best]), y(epochs[best].held_out), best, epochs[best].held_out))
    text = Markup('<text class="small" x="{}" y="{}" text-anchor="{}">{}</text>')
    parts.append(text.format(f"{left}%", height - 14, "start", "before"))
    parts.append(text.format("97%", height - 14, "end", f"epoch {epochs[-1].number}"))
    return _join([*parts, _CLOSE])
