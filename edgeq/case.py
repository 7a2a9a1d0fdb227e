"""A case: a model, the data that it is calibrated and judged by, and how to read them. What a user gives, loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeq.cache import Cache, Entry, cached, content_key
from edgeq.calibration.synthetic import synthetic_data
from edgeq.data.dataset import Dataset, overlap
from edgeq.data.kept import load_kept_data
from edgeq.data.load import SYNTHETIC, Role
from edgeq.evaluation.accuracy import check_labels
from edgeq.evaluation.metric import Metric, load_metric
from edgeq.frontends.kept import load_kept
from edgeq.frontends.load import load
from edgeq.hugging_face.folder import has_tokenizer
from edgeq.methods.effort import EffortName
from edgeq.model.model import Model
from edgeq.model.ops import shape_of
from edgeq.plans.plan import Given
from edgeq.progress import Clock, Progress, Silent

if TYPE_CHECKING:
    import torch

FEW_SAMPLES = 32


Smooth = Literal["auto", "off"]
"""Whether SmoothQuant is applied where it helps."""


@dataclass(frozen=True)
class Case:
    """As the user gives it.

    Attributes:
        model: a file, a module or a loaded model.
        calibration: samples that set the ranges (see `edgeq.data.load_data`); `synthetic` to make them from what the
            model's batch norms have kept of its training data (see `edgeq.calibration.zeroq`).
        evaluation: samples, with labels where there are any, that artefacts are judged on.
        preprocess: how images become inputs: a preset or a TOML file; or how texts do: a folder with their tokenizer,
            if that is not the model's own.
        metric: `package.module:function` or a loaded metric; top-1 where there are labels.
        inputs, arch, trust_pickle: see `edgeq.load`.
        smooth_quant: `off` leaves SmoothQuant out of the rewrites that are tried.
        rewrites: of the float model, as a plan says them; those of the effort, where they help, if None (see
            `edgeq.rewrites`).
        effort: how much is tried for a better rounding: `fast`, `balanced` or `max` (see `edgeq.methods.effort`);
            `balanced`, or what a plan says, if None.
        method: how all weights are rounded instead (see `edgeq.methods`).
        threads: of the latency runs.
        progress: hears of stages and steps.
    """

    model: str | Path | torch.nn.Module | Model
    _: KW_ONLY
    calibration: str | Path | Dataset
    evaluation: str | Path | Dataset | None = None
    preprocess: str | None = None
    metric: str | Metric | None = None
    inputs: Sequence[str] = ()
    arch: str | None = None
    trust_pickle: bool = False
    smooth_quant: Smooth = "auto"
    rewrites: Mapping[str, Mapping[str, float]] | None = None
    effort: EffortName | None = None
    method: str | None = None
    threads: int = 1
    progress: Progress = field(default_factory=Silent)


@dataclass(frozen=True)
class Loaded:
    """The same, read and checked.

    Attributes:
        warnings: what the user should know.
    """

    model: Model
    calibration: Dataset
    evaluation: Dataset | None
    metric: Metric | None
    warnings: list[str]


def load_case(case: Case, clock: Clock, cache: Cache) -> Loaded:
    """Reads model, data and metric.

    Raises:
        UsageError: wrong arguments or data.
        UnsupportedError: the model cannot be handled.
    """
    metric = load_metric(case.metric) if isinstance(case.metric, str) else case.metric
    with clock.stage("load"):
        net = load_model(case, cache)
        calib, evals = _both(case, net, cache)
        if evals is not None and metric is None:
            check_classes(net, evals)
        if evals is not None and metric is not None and metric.check is not None:
            metric.check(evals.labels)
    if calib is None:  # last: it takes minutes, and what is wrong with the rest is told before
        calib = synthetic_data(net, clock, cache)
    warnings = _warnings(net, calib, evals, cache)
    for text in warnings:
        clock.progress.note(text)
    return Loaded(net, calib, evals, metric, warnings)


def check_classes(net: Model, data: Dataset) -> None:
    """Refuses labels that are no classes of the model's first output, before any long work.

    Raises:
        UsageError: see `check_labels`.
    """
    if data.labels is not None:
        first = shape_of(net.nodes[net.output_nodes[0]])
        check_labels(data.labels, (len(data), *first[1:]))


def given(case: Case, calibration: Dataset, device: str | None = None) -> Given:
    """What a plan remembers of a case: names of files, but no values.

    Args:
        device: that was asked for.
    """

    def named(data: str | Path | Dataset | None) -> str | None:
        # a folder of the name that means samples without data
        return f"./{data}" if data == Path(SYNTHETIC) else str(data) if isinstance(data, str | Path) else None

    return Given(
        calibration=named(case.calibration) or calibration.source,
        evaluation=named(case.evaluation),
        preprocess=case.preprocess,
        metric=case.metric if isinstance(case.metric, str) else None,
        device=device,
    )


def load_model(case: Case, cache: Cache) -> Model:
    """The model of a case, from the cache if an earlier run read the same file."""
    if isinstance(case.model, Model):
        return case.model
    if isinstance(case.model, str | Path) and case.arch is None and not case.trust_pickle:
        return load_kept(Path(case.model), case.inputs, cache)
    return load(case.model, inputs=case.inputs, arch=case.arch, trust_pickle=case.trust_pickle)


def _both(case: Case, model: Model, cache: Cache) -> tuple[Dataset | None, Dataset | None]:
    """Calibration and evaluation samples: files side by side, since reading and hashing leave the interpreter free. A
    function of the user's may mind. Of synthetic ones there are none yet."""
    how = (case.preprocess, own_tokenizer(case.model))
    calibration = partial(_data, case.calibration, model, how, "calibration", cache)
    if case.evaluation is None:
        return calibration(), None
    evaluation = partial(_data, case.evaluation, model, how, "evaluation", cache)
    if not all(
        isinstance(source, str | Path) and Path(source).is_file() for source in (case.calibration, case.evaluation)
    ):
        return calibration(), evaluation()
    with ThreadPoolExecutor(2, "data") as pool:
        first, second = pool.submit(calibration), pool.submit(evaluation)
        return first.result(), second.result()


def _data(
    data: str | Path | Dataset, model: Model, how: tuple[str | None, Path | None], role: Role, cache: Cache
) -> Dataset | None:
    if isinstance(data, Dataset):
        return data
    if role == "calibration" and data == SYNTHETIC:
        return None
    preprocess, tokenizer = how
    return load_kept_data(data, model.inputs, preprocess=preprocess, role=role, cache=cache, tokenizer=tokenizer)


def own_tokenizer(model: object) -> Path | None:
    """The folder of a model as the user names it, if that holds a tokenizer."""
    return Path(model) if isinstance(model, str | Path) and has_tokenizer(Path(model)) else None


def _warnings(model: Model, calib: Dataset, evals: Dataset | None, cache: Cache) -> list[str]:
    found = [*model.notes, *calib.notes, *(evals.notes if evals else ())]
    if evals is not None and (shared := _shared(calib, evals, cache)):
        found.append(
            f"{shared} of {len(evals)} evaluation samples are also calibration samples: "
            "the accuracy is not that of unseen data"
        )
    if len(calib) < FEW_SAMPLES:
        found.append(f"only {len(calib)} calibration samples: ranges may miss what other inputs reach")
    return found


def _shared(calib: Dataset, evals: Dataset, cache: Cache) -> int:
    """How many evaluation samples are calibration samples too."""
    key = content_key("overlap", 1, calibration=calib.sha256, evaluation=evals.sha256)
    count: int = cached(cache, "overlap", key, lambda: overlap(calib, evals), Entry, lambda entry: entry.values)
    return count
