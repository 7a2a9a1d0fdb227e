"""Measures a build of a language model that is there already against the float model that it was made from."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from edgeq.devices.likeness import unlike
from edgeq.errors import UsageError
from edgeq.files import scratch_folder
from edgeq.hugging_face.folder import HfFolder
from edgeq.language.decoder import Decoder
from edgeq.language.deploy import LanguageRequest, aim_of, float_model, told_of
from edgeq.language.folder import open_folder
from edgeq.language.formats import FORMATS
from edgeq.language.generate import built_decoder
from edgeq.language.judge import Subject, judge, read_reference
from edgeq.language.plan import PLAN, read_decoder_plan
from edgeq.language.text import JUDGED, packed
from edgeq.limits import Limits
from edgeq.progress import Clock, Progress, Silent
from edgeq.reading import read_json
from edgeq.records.schema import Report
from edgeq.records.strict import validated
from edgeq.report.conclude import conclude


@dataclass(frozen=True)
class MeasureRequest:
    """What is judged, and by what.

    Attributes:
        build: folder of `edgeq deploy`.
        model: the Hugging Face folder that it was made from.
        evaluation: text, or a `.npy` of tokens [texts, length].
        target: that of the build if not given.
        device: where it runs, if not where the target says.
    """

    build: str | Path
    _: KW_ONLY
    model: str | Path
    evaluation: str | Path
    target: str | None = None
    device: str | None = None
    limits: Limits | None = None
    threads: int = 1
    progress: Progress = field(default_factory=Silent)


def measure(request: MeasureRequest) -> Report:
    """Perplexity and speed of a build, once more.

    Returns:
        A report with one build; nothing is written.

    Raises:
        UsageError: wrong arguments, folders or text.
        UnsupportedError: the float model cannot be handled.
        DeviceError: a device or runtime failed.
    """
    clock = Clock(request.progress)
    place = Path(request.build)
    built, plan = built_decoder(place), read_decoder_plan(place / PLAN)
    aim = aim_of(
        LanguageRequest(
            request.model,
            target=request.target or plan.target,
            out=place,
            format=built.format,
            device=request.device,
            threads=request.threads,
            limits=request.limits,
        )
    )
    runtime = next((one for one in aim.runtimes if one.name == built.runtime), None)
    if runtime is None:
        remedy = f"give --target {plan.target}, for which it was built"
        raise UsageError(f"{aim.target.name} does not run {built.runtime}", where="--target", remedy=remedy)
    if aim.device is None:
        raise UsageError(aim.no_device_because, where=aim.target.name, remedy="name a device with --device")
    folder = open_folder(Path(request.model))
    with clock.stage("load"):
        evaluation = packed(Path(request.evaluation), folder, JUDGED, overlapping=True, option="--eval")
    form = FORMATS[built.format]
    with scratch_folder() as scratch:
        subject, decoder, warnings = float_of(place, folder, scratch, clock)
        reference = read_reference(decoder, runtime, aim, evaluation, scratch, clock)
        judged = judge(place / form.loads, reference, runtime, aim, evaluation, subject.words, clock)
        found = judged.built(runtime, aim, [place / name for name in form.files], plan, None, [])
        other = unlike(aim.target, aim.device, aim.device.environment(runtime.name))
        return conclude(
            subject,
            aim.target,
            None,
            [found.build],
            keep_all=False,
            warnings=[*warnings, *filter(None, [other])],
            data={"evaluation": evaluation},
            seconds=clock.seconds,
        )


def float_of(build: Path, folder: HfFolder, scratch: Path, clock: Clock) -> tuple[Subject, Decoder, list[str]]:
    """The float model that a build is held against, and what there is to say of the two.

    Raises:
        UsageError: the build was made from a model of other shapes.
    """
    report = validated(Report, read_json(build / "report.json", "a report", "build it again"), build / "report.json")
    plan = read_decoder_plan(build / PLAN)
    subject, decoder = float_model(folder, scratch, clock)
    told = {name: (one.outputs, one.inputs) for name, one in plan.matrices.items()}
    if told != {weight.name: (weight.rows, weight.columns) for weight in decoder.weights}:
        remedy = f"give the folder {report.model}, which it was made from"
        raise UsageError("its matrices are not those of the build", where=f"--model {folder.path}", remedy=remedy)
    same = report.model_hash == subject.sha256
    other = [] if same else [f"the build was made from another folder than {subject.source}"]
    return subject, decoder, [*told_of(decoder), *other]
