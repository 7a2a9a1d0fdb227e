"""What a language model reaches in tasks of lm-evaluation-harness."""

from __future__ import annotations

from typing import Literal

from edgeq.records.schema import Interval
from edgeq.records.strict import Strict


class TaskScore(Strict):
    """One metric of one task, in the harness' own unit."""

    task: str
    metric: str
    filter: str
    """Of the harness: how answers were cut out of what was generated; `none` where they were not."""
    higher_is_better: bool | None
    """None where the task does not say."""
    samples: int
    """Documents."""
    score: float
    stderr: float | None
    """As the harness has it, over documents; None where it has none. It says nothing of the difference, for which both
    models answer the same documents."""
    float_score: float | None
    """None where no float model was given."""
    float_stderr: float | None
    difference: float | None
    """The artefact's score less float's."""
    drop: Interval | None
    """Percentage points lost, paired by document, where each is right or wrong; None for other metrics."""


class TasksReport(Strict):
    """An artefact in the tasks that were asked for."""

    schema_version: Literal[1] = 1
    edgeq: str
    harness: str
    """Version of lm-evaluation-harness."""
    build: str
    """Name of the folder."""
    model: str | None
    """Of the float model's folder."""
    format: str
    runtime: str
    runtime_version: str
    device: str
    emulated: bool
    tasks: list[str]
    """As they were asked for."""
    scores: list[TaskScore]
    warnings: list[str]
    seconds: dict[str, float]
    """Where the time went, by stage."""
