"""Every figure that a report can hold, wherever it is shown: what was not measured on a real device says so beside it.

The figures are found in the schema. One that is new there has no place in `KINDS`, and fails here until it has.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from itertools import count
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel
from rich.console import Console

from edgeq.records.devices import DevicesReport
from edgeq.records.schema import Build, Report
from edgeq.report.console import render
from edgeq.report.devices import render_devices
from edgeq.report.html import render_html
from edgeq.report.junit import junit_xml

KINDS = {
    # of a clock, or of memory as a device has it: nothing of it may be shown of an emulated device, or it says so
    "timed": r"speed\.|decoding\.|sustained\.|seconds_in_turns|peak_memory_bytes|cold_start_seconds|"
    r"placements\.microseconds",
    # answers: an emulated device gives them, and the page says that it is one
    "answered": r"accuracy\.",
    "simulated": r"layers\.simulated_sqnr_db",
    # by a compiler, of a device that nothing was run on
    "estimated": r"npu\.",
    # by reading files and graphs, which is the same everywhere
    "counted": r"files|sources|size_bytes|float_size_bytes|arena_bytes|audit\.|layers\.(macs|parameters)",
    # what a limit is, and what it was held against: the words of the gate tell more
    "limits": r"gates\.(limit_value|measured_value)",
}
SAYS = {"timed": "emulat", "answered": "emulat", "simulated": "simulat", "estimated": "estimat"}


def kind_of(path: str) -> str:
    (kind,) = [kind for kind, pattern in KINDS.items() if re.match(rf"(?:{pattern})", path)] or ["unknown"]
    return kind


class Filled:
    """A model with another number at each place, of three digits that occur nowhere else."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self._next = (n for n in count(123) if "0" not in str(n) and len(set(str(n))) == 3)

    def make(self, kind: Any, path: str = "") -> Any:
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        if get_origin(kind) in (Union, UnionType):
            return self.make(next(one for one in get_args(kind) if one is not NoneType), path)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            fields = kind.model_fields.items()
            return kind(**{name: self.make(f.annotation, f"{path}.{name}".strip(".")) for name, f in fields})
        if get_origin(kind) is list:
            return [self.make(get_args(kind)[0], path)]
        if get_origin(kind) is dict:
            return {"name": self.make(get_args(kind)[1], path)}
        if get_origin(kind) is Literal:
            return get_args(kind)[0]
        if kind is bool:
            return True
        if kind in (int, float):
            self.numbers[path] = next(self._next)
            return self.numbers[path] * 1000 if kind is int else self.numbers[path] / 10
        return f"text {path}"


def filled(**changes: Any) -> tuple[Build, dict[str, int]]:
    fill = Filled()
    build: Build = fill.make(Build)
    for path in ("error", "not_validated_because"):
        changes.setdefault(path, None)
    assert build.speed is not None
    speed = build.speed.model_copy(update={"best": build.speed.baselines[0].name})
    return build.model_copy(update={"speed": speed, **changes}), fill.numbers


def shown(build: Build) -> dict[str, list[str]]:
    """By where a report is shown, its lines; a table's heads stand in each line of it."""
    report = (
        Filled().make(Report).model_copy(update={"builds": [build], "chosen": build.format, "data": {}, "seconds": {}})
    )
    pages = {}
    for name, draw in (
        ("console", lambda to: render(report, to)),
        (
            "devices",
            lambda to: render_devices(
                DevicesReport(artifact="a.onnx", reports={build.device: report}, unreached={}), to
            ),
        ),
    ):
        to = Console(file=io.StringIO(), width=400)
        draw(to)
        whole = re.sub(r"\s*\n {10,}", " ", to.file.getvalue())  # type: ignore[attr-defined]
        pages[name] = whole.splitlines()  # a remark of several lines is one
    page = re.sub(r"<style>.*?</style>", "", render_html(report), flags=re.S)
    sections = re.split(r"(?=<section|<details|<header|<article)", page)
    pages["page"] = [html.unescape(re.sub(r"<[^>]*>", " ", section)) for section in sections]
    pages["junit"] = [junit_xml(report)]
    return pages


def places(number: int, pages: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    bytes_alone = re.compile(r"[\d.]+x (less|smaller)")  # of two sizes, which are counted
    digits = re.compile(r"(?<![\d.])0?\.?0*" + r"\.?".join(str(number)) + r"0*(?!\.?[1-9])")
    for name, lines in pages.items():
        for line in lines:
            if digits.search(bytes_alone.sub("", line)):
                yield name, line


def test_every_figure_of_the_schema_has_a_kind() -> None:
    _, numbers = filled()
    assert {path: kind_of(path) for path in numbers if kind_of(path) == "unknown"} == {}
    assert len(numbers) > 40


def not_measured() -> Iterator[tuple[str, bool]]:
    """Figures, and whether they are an emulated device's."""
    for path in filled()[1]:
        yield path, True
        if kind_of(path) not in ("timed", "answered"):
            yield path, False


@pytest.mark.parametrize(("path", "emulated"), not_measured())
def test_no_figure_that_was_not_measured_is_shown_without_saying_so(path: str, emulated: bool) -> None:
    build, numbers = filled(emulated=emulated)
    pages, kind = shown(build), kind_of(path)
    for place, line in places(numbers[path], pages):
        whole = "\n".join(pages[place])
        if kind in ("timed", "estimated"):
            assert SAYS[kind] in line.lower(), f"{path} in {place}: {line}"
        elif kind in SAYS:
            assert SAYS[kind] in whole.lower(), f"{path} in {place}"


def test_what_a_device_was_timed_at_is_shown() -> None:
    build, numbers = filled(emulated=False)
    pages = shown(build)
    seen = {path for path, number in numbers.items() if any(places(number, pages))}
    assert {"speed.artifact.p50", "peak_memory_bytes", "cold_start_seconds", "accuracy.score"} <= seen, (
        "the test sees them"
    )
    assert "layers.simulated_sqnr_db" in seen and "arena_bytes" in seen


def test_what_is_modelled_is_shown_as_that() -> None:
    build, _ = filled(emulated=False, validated=False, accuracy=None, speed=None, sustained=None)
    pages = shown(build)
    for place in ("console", "page"):
        lines = [line for line in pages[place] if "text modelled.value" in line]
        assert lines and all("modelled, not measured" in line.lower() for line in lines)
    whole = "\n".join(pages["page"]).lower()
    assert "nothing below was measured on a device" in whole
