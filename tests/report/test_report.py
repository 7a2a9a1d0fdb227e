"""The report as a page, on the console, as JUnit, and as JSON."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from rich.console import Console

from edgeq.evaluation.accuracy import compare
from edgeq.evaluation.latency import speed
from edgeq.limits import Limits, judge
from edgeq.records.schema import (
    Accuracy,
    Audit,
    Build,
    FloatOperator,
    Interval,
    Layer,
    Modelled,
    Placement,
    Report,
)
from edgeq.records.summary import in_order, noisiest, shown_drop, shrink, speedup, where
from edgeq.records.wording import bytes_text, count_text, number, seconds_text
from edgeq.report.charts import drop_chart, error_chart
from edgeq.report.console import render
from edgeq.report.html import render_html, write_html
from edgeq.report.junit import junit_xml, write_junit

VOID = {"meta", "br"}


def accuracy(labelled: bool = True, worse: int = 9) -> Accuracy:
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(1000, 50)).astype(np.float32)
    labels = logits.argmax(axis=1)
    logits[np.arange(1000), labels] += 1
    labels[:200] = (labels[:200] + 1) % 50
    measured = logits.copy()
    for i in range(300, 300 + worse):
        measured[i, labels[i]] = -9
    measured[0, labels[0]] = 9
    measured += rng.normal(scale=0.05, size=measured.shape).astype(np.float32)
    return compare([logits], [measured], labels if labelled else None, limits=[(-8.0, 5.5)])


def layers(count: int = 53) -> list[Layer]:
    rng = np.random.default_rng(1)
    made = []
    for i in range(count):
        depthwise = i % 3 == 1
        made.append(
            Layer(
                name=f"features.{i // 3}.conv.{i % 3}", op="depthwise_conv2d" if depthwise else "conv2d",
                precision="float32" if i == 52 else "integer", weights="-" if i == 52 else "int8 per channel",
                activations="uint8", macs=int(rng.integers(1e6, 2e7)), parameters=int(rng.integers(300, 400_000)),
                simulated_sqnr_db=None if i == 52 else float(rng.normal(24 if depthwise else 33, 3) - i / 12),
            )
        )  # fmt: skip
    return made


def build(format: str = "onnx", **changes: object) -> Build:
    rng = np.random.default_rng(7)
    fast = {"onnx": 2.44e-3, "openvino": 2.15e-3, "tflite": 2.94e-3}[format]
    runs = {}
    for name, median in (("artifact", fast), ("float32", 4.58e-3), ("bfloat16", 2.9e-3)):
        seconds = rng.lognormal(0, 0.05, 200) + (rng.random(200) < 0.04) * 0.3
        runs[name] = median * seconds / np.median(seconds)
    timed = speed(runs, threads=1, sizes={"float32": 14_020_000, "bfloat16": 14_020_000})
    judged = accuracy()
    values: dict[str, object] = {
        "format": format, "runtime": "onnxruntime" if format == "onnx" else format, "runtime_version": "1.23.0",
        "device": "x86 with AVX512-VNNI, 2 cores", "emulated": False,
        "files": {f"model.{format}": 3_612_345}, "size_bytes": 3_612_345, "validated": True,
        "not_validated_because": None, "accuracy": judged, "speed": timed, "no_speed_because": None,
        "peak_memory_bytes": 61_000_000, "cold_start_seconds": 0.112,
        "placements": [Placement(name=f"features.{i}/QLinearConv", op="QLinearConv", where="CPUExecutionProvider",
                                 integer=i != 3, microseconds=42.0 + i) for i in range(54)],
        "audit": Audit(tensors_checked=107, bytes_checked=3_500_000, integer_mac_percent=99.6, float_operators=[
            FloatOperator(layer="classifier.softmax", op="softmax", macs=0,
                          reason="the target has no integer kernel for softmax")]),
        "layers": layers(), "float_size_bytes": 14_020_000,
        "gates": judge(Limits.parse(max_drop="1%", max_latency="3ms", max_size="4MB"), accuracy=judged, speed=timed,
                       size_bytes=3_612_345, emulated=False),
    }  # fmt: skip
    return Build.model_validate(values | changes)


def emulated_build() -> Build:
    judged = accuracy(labelled=False)
    return build(
        "tflite", emulated=True, device="cortex-a53 under qemu-aarch64 10", accuracy=judged, speed=None,
        no_speed_because="the device is emulated", peak_memory_bytes=None, cold_start_seconds=None,
        modelled=[Modelled(name="latency", value="12 ms", source="bandwidth and MAC rate of the profile cortex-a53")],
        gates=judge(Limits.parse(max_drop="1%", max_latency="3ms"), accuracy=judged, speed=None, size_bytes=1,
                    emulated=True),
    )  # fmt: skip


def report(builds: list[Build] | None = None, **changes: object) -> Report:
    builds = [build("onnx"), build("openvino"), emulated_build()] if builds is None else builds
    values: dict[str, object] = {
        "edgeq": "0.1.0", "model": "mobilenet_v2.pt", "model_hash": "9f2c" * 16, "model_kind": "exported program",
        "parameters": 3_504_872, "macs": 300_774_272, "target": "x86-avx512", "profile": "this-machine",
        "verdict": "passed",
        "verdict_text": "Int8 ONNX loses 0.8 points of top-1 and runs 1.2 times as fast as the best float baseline.",
        "chosen": "onnx", "chosen_because": "the fastest one that holds every limit.", "builds": builds,
        "warnings": ["16 of 128 calibration images are duplicates."],
        "data": {"calibration samples": 128, "evaluation samples": 1000, "source": "folder of images"},
        "environment": {"python": "3.11.2", "torch": "2.13.0", "platform": "Linux-x86_64"},
        "seconds": {"load": 3.2, "calibrate": 12.9, "plan": 22.0, "export": 8.4, "validate": 71.0, "report": 0.02},
    }  # fmt: skip
    return Report.model_validate(values | changes)


class Page(HTMLParser):
    """Checks that tags are balanced; collects what would load something, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.loads += [f"{k}={v}" for k, v in attrs if k in ("src", "href", "srcset", "action", "data", "poster")]
        self.loads += [f"{k}={v}" for k, v in attrs if k.startswith("on") or (v and "url(" in v)]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


VARIANTS = {
    "three formats": report(),
    "one format": report([build()]),
    "emulated": report([emulated_build()], chosen="tflite", verdict="failed", profile=None),
    "not validated": report(
        [build(validated=False, not_validated_because="no such device here", accuracy=None, speed=None,
               no_speed_because="no such device here", placements=[], gates=[], layers=[], peak_memory_bytes=None,
               cold_start_seconds=None, float_size_bytes=None)],
        verdict="not validated",
    ),
    "failed build": report(
        [build(error="the converter refused aten.foo", validated=False, accuracy=None, speed=None,
               size_bytes=0, files={}, placements=[], layers=[], gates=[])], chosen="",
        verdict="failed",
    ),
    "empty": report([], chosen="", warnings=[], seconds={}, data={}, environment={}),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_page_is_well_formed_and_loads_nothing(name: str) -> None:
    html = render_html(VARIANTS[name])
    page = parse(html)
    assert page.loads == []
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not re.search(r"https?://|@import|url\(", html)
    assert "default-src 'none'" in html
    assert html == render_html(VARIANTS[name].model_copy(deep=True))


def test_page_begins_with_the_verdict() -> None:
    text = "".join(parse(render_html(report())).text)
    assert text.index("loses 0.8 points") < text.index("median of 200 runs")
    for figure in ("2.44 ms", "3.61 MB", "99.6 %", "14 MB", "79.20 %", "simulated, not a result", "classifier.softmax"):
        assert figure in text, figure


def test_page_escapes_names_from_outside() -> None:
    evil = "<script>alert('x')</script>\"&"
    bad_layer = layers(2)[0].model_copy(update={"name": evil})
    bad = build(
        layers=[bad_layer], files={evil: 10}, device=evil,
        audit=Audit(tensors_checked=0, bytes_checked=0, integer_mac_percent=0,
                    float_operators=[FloatOperator(layer=evil, op=evil, macs=1, reason=evil)]),
        placements=[Placement(name=evil, op=evil, where=evil, integer=None, microseconds=None)],
    )  # fmt: skip
    everywhere = {"model": evil, "verdict_text": evil, "warnings": [evil], "seconds": {evil: 1.0}, "data": {evil: evil}}
    html = render_html(report([bad], **everywhere))
    page = parse(html)
    assert "script" not in page.tags and "<script" not in html
    assert page.loads == []
    assert evil in "".join(page.text)


def test_page_labels_what_is_emulated_modelled_or_not_measured() -> None:
    text = "".join(parse(render_html(VARIANTS["emulated"])).text)
    assert "timing under emulation says nothing" in text
    assert "Modelled, not measured" in text and "12 ms" in text
    assert "cannot be judged: the device is emulated" in text
    assert "answered unlike the float model" in text
    text = "".join(parse(render_html(VARIANTS["not validated"])).text)
    assert "no such device here" in text and "2.44 ms" not in text


def test_timing_of_an_emulated_device_is_never_shown() -> None:
    slipped_in = build(emulated=True, gates=[])
    assert speedup(slipped_in) is None
    page = render_html(report([slipped_in]))
    assert "2.44 ms" not in "".join(parse(page).text)
    assert "2.44 ms" not in on_console(report([slipped_in]))[0]


def test_page_is_written_whole(tmp_path: Path) -> None:
    write_html(report(), tmp_path / "report.html")
    write_junit(report(), tmp_path / "junit.xml")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_html(report())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["junit.xml", "report.html"]


@pytest.mark.parametrize("name", VARIANTS)
def test_report_survives_json(name: str) -> None:
    assert Report.model_validate_json(VARIANTS[name].model_dump_json()) == VARIANTS[name]


def test_report_of_an_earlier_edgeq_is_read() -> None:
    """Fields that were added later have defaults."""
    old = report().model_dump(mode="json")
    for b in old["builds"]:
        del b["modelled"], b["float_size_bytes"]
        for gate in b["gates"]:
            del gate["limit_value"], gate["measured_value"]
        if b["speed"] is not None:
            del b["speed"]["artifact"]["quantiles"]
    assert Report.model_validate(old).builds[0].size_bytes == 3_612_345


# ---- charts


def positions(svg: str, kind: str) -> list[float]:
    return [float(v) for v in re.findall(rf'class="{kind}"[^>]*?(?:x1|cx|x)="([\d.]+)%', svg)]


def test_drop_chart_keeps_the_order_of_its_marks() -> None:
    known = accuracy()
    drop = Interval(value=0.4, low=-0.3, high=1.1, method="m")
    svg = drop_chart(drop, known, 1.0)
    (zero,), (limit,), (point,) = (positions(svg, k) for k in ("zero", "limit", "point"))
    low, high = positions(svg, "whisker")
    assert 0 <= low < zero < point < limit < high <= 100
    # Linear: 0.4 lies two fifths of the way from 0 to 1.
    assert (point - zero) / (limit - zero) == pytest.approx(0.4, abs=0.001)
    unknown = drop_chart(drop.model_copy(update={"known": False, "low": 0.4, "high": 0.4}), known, None)
    assert "whisker" not in unknown and "no interval" in unknown


def test_error_chart_marks_the_three_noisiest() -> None:
    some = layers(20)
    svg = error_chart(some)
    assert svg.count('class="noisy"') == 3 and svg.count('class="layer"') == 17
    lowest = sorted(layer.simulated_sqnr_db or 0 for layer in some)[:3]
    assert [layer.simulated_sqnr_db for layer in noisiest(some)] == lowest


def test_error_chart_is_not_flattened_by_an_exact_layer() -> None:
    some = layers(4)
    tall = error_chart([*some, some[0].model_copy(update={"simulated_sqnr_db": 200.0})])
    heights = [float(v) for v in re.findall(r'<rect[^>]*height="([\d.]+)"', str(tall))]
    assert max(heights) == 140.0 and min(heights) > 40
    assert "200.0 dB" in tall


def test_page_of_a_format_that_was_chosen_but_is_missing() -> None:
    page = render_html(report(chosen="gone"))
    parse(page)
    assert "gone" in page


# ---- derived figures


def test_derived_figures() -> None:
    one = build()
    assert shrink(one) == pytest.approx(14_020_000 / 3_612_345)
    assert shrink(one.model_copy(update={"float_size_bytes": None})) == pytest.approx(14_020_000 / 3_612_345)
    assert (where(one).integer, where(one).floating, where(one).unknown) == (53, 1, 0)
    assert [b.format for b in in_order(report(chosen="openvino"))] == ["openvino", "onnx", "tflite"]
    without = accuracy(labelled=False)
    drop = shown_drop(without)
    assert drop is not None and without.agreement is not None
    assert drop.value == pytest.approx(100 - without.agreement.value)
    assert drop.low <= drop.value <= drop.high


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (seconds_text(0.00244), "2.44 ms"), (seconds_text(800e-6), "800 us"), (seconds_text(0.9999), "1 s"),
        (seconds_text(125), "2 min 05 s"), (seconds_text(3725), "1 h 02 min"), (seconds_text(0), "0 s"),
        (seconds_text(5e-9), "5 ns"), (bytes_text(3_612_345), "3.61 MB"), (bytes_text(999), "999 B"),
        (bytes_text(999_999), "1 MB"), (count_text(300_774_272), "301 M"), (count_text(12), "12"),
        (number(12345.0), "12 300"), (number(-0.00001), "-1.00e-05"), (number(0), "0"),
    ],
)  # fmt: skip
def test_wording(text: str, expected: str) -> None:
    assert text == expected


# ---- console


def on_console(of: Report, width: int = 100, encoding: str = "utf-8") -> tuple[str, bytes]:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    render(of, Console(file=stream, width=width), Path("build"))
    stream.flush()
    return raw.getvalue().decode(encoding), raw.getvalue()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("width", [70, 100, 200])
def test_console_fits_and_has_no_colour_when_piped(name: str, width: int) -> None:
    text, raw = on_console(VARIANTS[name], width)
    assert max(len(line) for line in text.splitlines()) <= min(width, 100)
    assert b"\x1b" not in raw
    assert VARIANTS[name].verdict.upper() in text


def test_console_tells_the_figures() -> None:
    text, _ = on_console(report())
    for figure in ("79.20 %", "80.00 %", "0.80 points", "2.44 ms", "3.61 MB", "3.88x less", "99.6 %", "not certain"):
        assert figure in text, figure
    assert "emulated device" in text and "modelled, not measured: latency 12 ms" in text
    assert "build/model.onnx" in text and "validate 1 min" not in text and "validate 71 s" in text


def test_console_without_unicode_and_with_markup_in_names() -> None:
    evil = "[bold]größe[/bold] [/x]"
    text, raw = on_console(report([build(device=evil)], model=evil, verdict_text=evil), encoding="ascii")
    assert "[bold]gr??e[/bold] [/x]" in text
    assert raw.isascii()


# ---- junit


def test_junit_counts_what_it_holds() -> None:
    root = ET.fromstring(junit_xml(report(model="a\x00<b>&")))
    for suite, of in zip(root, report().builds, strict=True):
        cases = suite.findall("testcase")
        assert len(cases) == int(suite.get("tests", "")) == len(of.gates) + 1
        assert len(suite.findall(".//failure")) == int(suite.get("failures", "")) == sum(not g.passed for g in of.gates)
    assert "a?<b>&" in (root[0].get("name") or "")
    assert ET.fromstring(junit_xml(VARIANTS["not validated"])).find(".//skipped") is not None
    assert ET.fromstring(junit_xml(VARIANTS["failed build"])).find(".//error") is not None
