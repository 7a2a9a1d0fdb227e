"""A build in tasks of lm-evaluation-harness, beside its float model in the same runtime."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from edgeq.devices import Candidate
from edgeq.errors import EdgeqError, MissingExtraError, UsageError
from edgeq.evaluation.interval import paired_drop
from edgeq.files import scratch_folder
from edgeq.language.folder import open_folder
from edgeq.language.formats import FORMATS
from edgeq.language.generate import built_decoder, opened
from edgeq.language.judge import float_file
from edgeq.language.measure import float_of
from edgeq.language.tasks import copied
from edgeq.progress import Clock, Progress, Silent
from edgeq.records.schema import Interval
from edgeq.records.tasks import TaskScore, TasksReport
from edgeq.runtimes import RUNTIMES
from edgeq.version import __version__

OFFLINE = ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
"""Nothing is fetched while tasks run."""

_SEPARATOR = ","
"""Between a metric and its filter in the harness' results."""


@dataclass(frozen=True)
class TasksRequest:
    """What a build is asked.

    Attributes:
        build: folder of `edgeq deploy`.
        tasks: names of tasks, groups or tags.
        tasks_from: folder with their YAML files; the harness' own tasks if None, as far as their data are on this
            machine.
        trust_tasks: the folder's code may run.
        model: the Hugging Face folder that the build was made from, to compare with.
        device: where to run, if not where the build was proven.
    """

    build: str | Path
    _: KW_ONLY
    tasks: Sequence[str]
    tasks_from: str | Path | None = None
    trust_tasks: bool = False
    model: str | Path | None = None
    device: str | None = None
    progress: Progress = field(default_factory=Silent)


def evaluate(request: TasksRequest) -> TasksReport:
    """Asks a build, and its float model where it is given, the same questions.

    Raises:
        UsageError: wrong arguments, folders or tasks, or tasks whose code is not trusted.
        UnsupportedError: a task wants what edgeq does not do.
        DeviceError: a device or runtime failed.
        MissingExtraError: the harness is not installed.
    """
    clock = Clock(request.progress)
    folder = Path(request.build)
    build = built_decoder(folder)
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder())
        stack.enter_context(_offline())
        harness = _harness()
        manager = stack.enter_context(_manager(harness, request, scratch))
        device = opened(build, request.device)
        files = {"artifact": folder / FORMATS[build.format].loads}
        warnings: list[str] = []
        if request.model is not None:
            subject, decoder, warnings = float_of(folder, open_folder(Path(request.model)), scratch, clock)
            files["float32"] = float_file(decoder, build.format, scratch)
        found = {}
        for name, file in files.items():
            from edgeq.language.harness import ArtifactLM, Place

            with clock.stage("tasks" if name == "artifact" else "tasks (float model)") as steps:
                model = ArtifactLM(Place(device, Candidate(file, build.runtime), folder), steps)
                found[name] = _asked(harness, model, manager, request.tasks)
    return TasksReport(
        edgeq=__version__,
        harness=version("lm_eval"),
        build=folder.resolve().name,
        model=None if request.model is None else subject.source,
        format=build.format,
        runtime=build.runtime,
        runtime_version=RUNTIMES[build.runtime].version() or "not installed",
        device=device.name,
        emulated=device.emulated,
        tasks=list(request.tasks),
        scores=scores(found["artifact"], found.get("float32")),
        warnings=warnings,
        seconds={name: round(spent, 3) for name, spent in clock.seconds.items()},
    )


def scores(artifact: Mapping[str, Any], reference: Mapping[str, Any] | None) -> list[TaskScore]:
    """A row for each metric of each task and group, from the harness' results.

    Args:
        artifact, reference: what `simple_evaluate` gives.
    """
    found = []
    for task, values in artifact["results"].items():
        better = artifact.get("higher_is_better", {}).get(task, {})
        for key, value in values.items():
            metric, comma, kind = key.partition(_SEPARATOR)
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            beside = None if reference is None else float(reference["results"][task][key])
            known = better.get(metric)
            found.append(
                TaskScore(
                    task=task,
                    metric=metric,
                    filter=kind,
                    higher_is_better=known,
                    samples=_documents(artifact, task),
                    score=float(value),
                    stderr=_error(values, metric, kind),
                    float_score=beside,
                    float_stderr=None if reference is None else _error(reference["results"][task], metric, kind),
                    difference=None if beside is None else float(value) - beside,
                    drop=None if reference is None else _paired(artifact, reference, task, metric, kind, known),
                )
            )
    return found


def _paired(
    artifact: Mapping[str, Any], reference: Mapping[str, Any], task: str, metric: str, kind: str, better: bool | None
) -> Interval | None:
    """What was lost by document; None where documents are not just right or wrong, or the score is no mean of them."""
    sides = []
    for side in (reference, artifact):
        told = {
            one["doc_id"]: one.get(metric) for one in side.get("samples", {}).get(task, []) if one["filter"] == kind
        }
        if not told or not all(_is_number(value) and value in (0, 1) for value in told.values()):
            return None
        if abs(sum(told.values()) / len(told) - side["results"][task][f"{metric}{_SEPARATOR}{kind}"]) > 1e-9:
            return None
        sides.append(told)
    before, after = sides
    if before.keys() != after.keys():
        return None
    wrong = better is False
    right = (np.array([bool(side[document]) != wrong for document in before]) for side in (before, after))
    return paired_drop(*right)


def _documents(results: Mapping[str, Any], task: str) -> int:
    """Of a task, or of all tasks of a group."""
    counts = results.get("n-samples", {})
    if task in counts:
        return int(counts[task]["effective"])
    below = results.get("group_subtasks", {}).get(task, [])
    return sum(_documents(results, one) for one in below)


def _error(values: Mapping[str, Any], metric: str, kind: str) -> float | None:
    told: Any = values.get(f"{metric}_stderr{_SEPARATOR}{kind}")
    return float(told) if _is_number(told) else None  # the harness says "N/A" in words


def _is_number(value: object) -> bool:
    return isinstance(value, bool | int | float | np.number)


def _asked(harness: Any, model: Any, manager: Any, tasks: Sequence[str]) -> dict[str, Any]:
    """What the harness makes of a model's answers.

    Raises:
        UsageError: a task cannot be loaded or asked.
    """
    try:
        found = harness.simple_evaluate(
            model=model, tasks=list(tasks), task_manager=manager, log_samples=True, batch_size=1
        )
    except EdgeqError:
        raise
    except Exception as error:  # whatever a task makes of its data
        gist = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        remedy = "look at the task's YAML file and its data, which have to be on this machine"
        raise UsageError(f"the harness cannot ask it ({gist})", where=", ".join(tasks), remedy=remedy) from error
    return dict(found)


@contextmanager
def _manager(harness: Any, request: TasksRequest, scratch: Path) -> Iterator[Any]:
    """Knows the tasks; of a folder it knows a copy. Templates in it run in a sandbox, and what the harness makes of the
    data goes with the scratch folder."""
    import datasets
    import lm_eval.utils
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from lm_eval.api import metrics, registry
    from lm_eval.tasks import TaskManager

    assert metrics  # whose import registers the metrics
    if request.tasks_from is None:
        if request.trust_tasks:
            raise UsageError("there are no tasks to trust", where="--trust-tasks", remedy="give --tasks-from as well")
        manager = TaskManager()
        _refuse_unknown(request.tasks, manager.all_tasks, "--tasks-from DIR has tasks of your own")
        yield manager
        return
    out = scratch / "asked"
    out.mkdir()
    known = frozenset(registry.METRIC_REGISTRY)
    names = copied(Path(request.tasks_from), out, known, trusted=request.trust_tasks)
    _refuse_unknown(request.tasks, names, f"it has: {', '.join(names)[:300]}")
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(datasets.config, "HF_DATASETS_CACHE", scratch / "data"))
        if not request.trust_tasks:
            usual = lm_eval.utils.env
            box = ImmutableSandboxedEnvironment(
                loader=usual.loader, undefined=usual.undefined, keep_trailing_newline=usual.keep_trailing_newline
            )
            box.filters |= {"regex_replace": usual.filters["regex_replace"]}
            stack.enter_context(mock.patch.object(lm_eval.utils, "env", box))
        yield TaskManager(include_path=str(out), include_defaults=False)


def _refuse_unknown(asked: Sequence[str], known: Sequence[str], remedy: str) -> None:
    if unknown := [name for name in asked if name not in known]:
        raise UsageError(f"there is no task {unknown[0]!r}", where="--lm-eval", remedy=remedy)


def _harness() -> Any:
    """`lm_eval.evaluator`.

    Raises:
        MissingExtraError: the harness is not installed.
        UsageError: it is, and cannot be imported.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError("lm_eval", "lm-eval")
    try:
        from lm_eval import evaluator
    except Exception as error:  # 0.4.12 and later raise a TypeError where typing-extensions is older than 4.13
        gist = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        remedy = "pip install 'edgeq[lm-eval]' brings versions that go together"
        raise UsageError(f"lm_eval {version('lm_eval')} cannot be imported ({gist})", remedy=remedy) from error
    return evaluator


@contextmanager
def _offline() -> Iterator[None]:
    """For the libraries that are yet to be imported by variables, for those that were by what they read from them."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, dict.fromkeys(OFFLINE, "1")))
        for module, name in (("datasets.config", "HF_HUB_OFFLINE"), ("huggingface_hub.constants", "HF_HUB_OFFLINE")):
            if importlib.util.find_spec(module.partition(".")[0]) is not None:
                stack.enter_context(mock.patch.object(importlib.import_module(module), name, True))
        yield
