"""Artefacts of one model in one runtime, whoever made them: their answers, and their times in turns in one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeq.api.validate import ends_of_file
from edgeq.case import check_classes
from edgeq.data.dataset import Dataset
from edgeq.data.load import load_data
from edgeq.devices import Candidate, Device, Inputs
from edgeq.errors import EdgeqError
from edgeq.evaluation.accuracy import compare
from edgeq.evaluation.latency import speed
from edgeq.evaluation.measure import Array, fed, real_outputs
from edgeq.evaluation.reference import reference_outputs
from edgeq.export.artifact import Exporter
from edgeq.frontends.load import load
from edgeq.model.model import Model
from edgeq.progress import Silent
from edgeq.records.schema import Accuracy, Baseline
from edgeq.runtimes import runtime

FLOAT = "float"
SECONDS, ROUNDS = 6.0, 200
"""That each artefact's turns may take, and no more of them than that."""


@dataclass(frozen=True)
class Truth:
    """A model, the data that its artefacts are judged on, and what it answers."""

    model: Model
    data: Dataset
    reference: list[Array]


@dataclass(frozen=True)
class Judged:
    """What was measured of one artefact.

    Attributes:
        error: why there is nothing.
        size: bytes of all its files.
        float_size: likewise, of the float model in the same format.
        beside: its time beside the float model's.
        median: of its times, in seconds.
    """

    error: str = ""
    accuracy: Accuracy | None = None
    size: int | None = None
    float_size: int | None = None
    beside: Baseline | None = None
    median: float | None = None


def truth(folder: Path) -> Truth:
    """Of a folder with `model.pt2` and `evaluation.npz`.

    Raises:
        EdgeqError: they cannot be read.
    """
    model = load(folder / "model.pt2")
    data = load_data(folder / "evaluation.npz", model.inputs, role="evaluation")
    check_classes(model, data)
    return Truth(model.with_samples(data), data, reference_outputs(model, data, Silent()))


def judged(
    known: Truth, artefacts: Mapping[str, Path], name: str, form: str, device: Device, scratch: Path
) -> dict[str, Judged]:
    """By name, what each artefact is worth.

    Args:
        artefacts: the file of each that the runtime opens.
        name: of the runtime.
        form: the format, of the float model beside them.
        scratch: folder for that.

    Raises:
        EdgeqError: the float model cannot be written or run, or the turns cannot be taken.
    """
    found: dict[str, Judged] = {}
    runs: dict[str, tuple[Candidate, Inputs]] = {}
    for key, path in artefacts.items():
        candidate = Candidate(path, name)
        try:
            found[key], runs[key] = _answers(known, candidate, device)
        except EdgeqError as error:
            found[key] = Judged(error.cause)
    whole = Exporter(known.model, scratch).float_model(form)[0]
    turns = {FLOAT: Candidate(whole, name), **{key: candidate for key, (candidate, _) in runs.items()}}
    own = {key: inputs for key, (_, inputs) in runs.items()}
    first = known.data.first(1)
    seconds = device.latency(turns, first, own_inputs=own, rounds=ROUNDS, seconds=SECONDS * len(turns))
    for key in runs:
        beside = speed({"artifact": seconds[key], FLOAT: seconds[FLOAT]}, threads=1).baselines[0]
        size, float_size = _size(artefacts[key], name), _size(whole, name)
        median = float(np.median(seconds[key]))
        found[key] = Judged("", found[key].accuracy, size, float_size, beside, median)
    return found


def _answers(known: Truth, candidate: Candidate, device: Device) -> tuple[Judged, tuple[Candidate, Inputs]]:
    ends = ends_of_file(device, candidate, known.model)
    feed = fed(known.data.inputs, ends)
    answers = real_outputs(device.outputs(candidate, feed), known.reference, ends)
    accuracy = compare(known.reference, answers, known.data.labels, None, ends.limits, known.model.heads)
    return Judged(accuracy=accuracy), (candidate, {key: array[:1] for key, array in feed.items()})


def _size(path: Path, name: str) -> int:
    files = [path, *(file for file in runtime(name).companions(path) if file.is_file())]
    return sum(file.stat().st_size for file in files)
