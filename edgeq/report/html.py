"""`report.html`: the report as one page that needs nothing else, neither network nor script."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from edgeq.files import atomic_write
from edgeq.records import summary, wording
from edgeq.records.schema import Report
from edgeq.report import charts
from edgeq.visible import visible

if TYPE_CHECKING:
    from edgeq.planning.front import Front
    from edgeq.training.train import Trained

_PALETTE = 8
"""Colours of the style sheet for the stages of a run."""


def render_html(report: Report) -> str:
    """The page. Equal reports give equal pages."""
    stages = sorted(report.seconds.items(), key=lambda item: (-item[1], item[0]))
    page = _template().render(
        report=report,
        builds=summary.in_order(report),
        chosen=next((build for build in report.builds if build.format == report.chosen), None),
        stages=[(name, seconds, f"stage{min(i, _PALETTE - 1)}") for i, (name, seconds) in enumerate(stages)],
        total_seconds=sum(report.seconds.values()),
    )
    return visible(page, keep="\n")


def render_front(front: Front) -> str:
    """The page of a front."""
    return visible(_template("front.html.j2").render(front=front), keep="\n")


def render_training(trained: Trained) -> str:
    """The page of a training."""
    return visible(_template("training.html.j2").render(trained=trained, name=trained.out.name), keep="\n")


def write_html(report: Report, path: Path) -> None:
    """Write the page.

    Raises:
        UsageError: the folder is not writable, or the disk is full.
    """
    atomic_write(path, render_html(report))


@cache
def _template(name: str = "report.html.j2") -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        seconds=wording.seconds_text,
        bytes=wording.bytes_text,
        count=wording.count_text,
        times=wording.times_text,
    )
    environment.globals.update(charts=charts, summary=summary, wording=wording)
    return environment.get_template(name)
