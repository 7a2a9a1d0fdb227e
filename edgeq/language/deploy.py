"""A language model from its folder to artefacts that are proven: read, made float ONNX, rounded, written, judged."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path

from edgeq.errors import EdgeqError, InternalError, UsageError, foreseen
from edgeq.files import scratch_folder, staged_directory
from edgeq.hugging_face.folder import HfFolder
from edgeq.language.decoder import Decoder
from edgeq.language.folder import open_folder
from edgeq.language.formats import FORMATS, differing
from edgeq.language.judge import Judged, Subject, judge, read_reference
from edgeq.language.kept import float_decoder, has_integers, keeping, rounded_again
from edgeq.language.openvino_tokenizer import write_tokenizers
from edgeq.language.plan import DecoderPlan, chosen, left_float, uniform
from edgeq.language.rounding import KEPT, METHODS, WITHOUT_TEXT, Rounded, round_weights
from edgeq.language.text import CALIBRATED, JUDGED, Texts, packed
from edgeq.limits import Limits
from edgeq.prepare import Aim, take_aim
from edgeq.progress import Clock, Progress, Silent
from edgeq.records.schema import Audit, FloatOperator, Layer, Report
from edgeq.registry.load import load_target
from edgeq.registry.schema import DecoderChoice, Runtime
from edgeq.report.build import failed_build
from edgeq.report.conclude import Built, conclude, write_build

EFFORTS = {"fast": "nearest", "balanced": "gptq", "max": "gptq"}
"""The method of each effort."""

BESIDE = ("genai_config.json", "generation_config.json", "config.json", "chat_template.jinja", "tokenizer*", "*.model",
          "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json")  # fmt: skip
"""What a build's folder has beside the artefact, so that it answers prompts by itself."""


@dataclass(frozen=True)
class LanguageRequest:
    """What a language model is built from.

    Attributes:
        model: a Hugging Face folder.
        target: name of a target, or a target file.
        out: folder of the build.
        calibration: text, or a `.npy` of tokens [texts, length]; not needed by methods that look at matrices alone.
        evaluation: likewise, to judge by.
        weights, words: what linear layers and tables of words are stored as: `w4g32`, `w8g64`, `w4g32asym`, `float32`;
            what the runtime prefers, of 4 and of 8 bits, if None.
        method: how weights are rounded (see `edgeq.language.rounding.METHODS`); that of the effort if None.
        plan: which choice each matrix gets, instead.
        format, device, profile, threads, limits, overwrite, progress: see `edgeq.api.deploy.DeployRequest`.
    """

    model: str | Path
    _: KW_ONLY
    target: str
    out: str | Path
    calibration: str | Path | None = None
    evaluation: str | Path | None = None
    weights: str | None = None
    words: str | None = None
    method: str | None = None
    effort: str | None = None
    plan: DecoderPlan | None = None
    format: str = "auto"
    device: str | None = None
    profile: str | None = None
    threads: int = 1
    limits: Limits | None = None
    overwrite: bool = False
    progress: Progress = field(default_factory=Silent)


def deploy_language(request: LanguageRequest) -> Report:
    """Takes a language model to an artefact that is proven on its target.

    Returns:
        The report, which is also in `out`.

    Raises:
        UsageError: wrong arguments, folder or text.
        UnsupportedError: the model cannot be handled.
        DeviceError: a device or runtime failed.
    """
    clock = Clock(request.progress)
    aim = aim_of(request)
    folder = open_folder(Path(request.model))
    method = method_of(request, folder)
    with staged_directory(Path(request.out), overwrite=request.overwrite) as out, scratch_folder() as scratch:
        with clock.stage("load"):
            calibration, evaluation = texts_of(request, folder, method)
        subject, decoder = float_model(folder, scratch, clock)
        rounded: dict[str, Rounded] = {}
        again: list[str] = []
        left: list[str] = []
        built = []
        for runtime in aim.runtimes:
            plan = request.plan or _uniform(request, decoder, runtime, aim, method)
            if request.plan is None:
                for text in left_float(plan, decoder.weights, runtime, request.weights, request.words):
                    clock.progress.note(text)
                    left.append(text)
            try:
                with foreseen(runtime.format):
                    taken = chosen(plan, decoder.weights, runtime)
                    schemes = {name: one.scheme for name, one in taken.items()}
                    again += rounded_again(decoder, plan, schemes, runtime.format)
                    key = repr(sorted(schemes.items()))
                    if key not in rounded:
                        with clock.stage(f"round ({plan.method})") as steps:
                            tokens = None if calibration is None else calibration.tokens
                            rounded[key] = round_weights(decoder, schemes, plan.method, tokens, steps)
                    built.append(
                        build(
                            decoder,
                            subject,
                            aim,
                            runtime,
                            plan,
                            rounded_as(rounded[key], taken),
                            evaluation,
                            out,
                            scratch,
                            clock,
                        )
                    )
            except EdgeqError as error:
                if len(aim.runtimes) == 1:
                    raise
                clock.progress.note(f"{runtime.format}: {error.cause}")
                for name in FORMATS[runtime.format].files:
                    (out / name).unlink(missing_ok=True)
                built.append(Built(failed_build(runtime, aim.device, error), None, [], [], error))
        if all(one.error for one in built):
            raise next(one.error for one in built if one.error)
        beside = copy_beside(folder, decoder, out)
        warnings = [*told_of(decoder), *left, *_warnings(calibration, evaluation)]
        for at, one in enumerate(built):
            if one.error is None:
                sources = {name: (out / name).stat().st_size for name in (*beside, *_more(one, folder, out, warnings))}
                built[at] = replace(one, build=one.build.model_copy(update={"sources": sources}))
        report = conclude(
            subject,
            aim.target,
            None if aim.profile is None else aim.profile.name,
            [one.build for one in built],
            keep_all=request.format == "all",
            warnings=warnings + again,
            data={role: one for role, one in (("calibration", calibration), ("evaluation", evaluation)) if one},
            seconds=clock.seconds,
        )
        write_build(out, report, built, None, keep_all=request.format == "all")
        return report


def aim_of(request: LanguageRequest) -> Aim:
    """The target with those of its runtimes that language models are written for.

    Raises:
        UsageError: there is none.
    """
    plan = request.plan
    form = request.format
    if plan is not None:
        if load_target(request.target).name != plan.target or form not in ("auto", plan.format):
            remedy = f"--target {plan.target}, and no other --format than {plan.format}"
            raise UsageError(f"the plan is for {plan.format} on {plan.target}", where="plan", remedy=remedy)
        form = plan.format
    aim = take_aim(
        load_target(request.target),
        form,
        device=request.device,
        profile=request.profile,
        threads=request.threads,
        limits=request.limits,
    )
    able = [one for one in aim.runtimes if one.decoders and one.format in FORMATS]
    if not able:
        known = ", ".join(sorted(FORMATS))
        raise UsageError(
            f"{aim.target.name} has no runtime for language models"
            + ("" if form in ("auto", "all") else f" with the format {form}"),
            remedy=f"choose a target and format that has: {known} on x86-avx512, for instance",
        )
    return Aim(**{**vars(aim), "runtimes": able})


def method_of(request: LanguageRequest, folder: HfFolder | None = None) -> str:
    """How weights are rounded: as asked for, or as the plan or the effort says; where nothing is asked for, and the
    folder has integers already, not at all.

    Raises:
        UsageError: there is no such method or effort, or the plan says another one.
    """
    if request.plan is not None:
        if request.method is not None:
            raise UsageError("a plan says itself how weights are rounded", remedy="leave --method away, or edit it")
        return request.plan.method
    asked = request.method or request.effort or request.weights
    if folder is not None and not asked and has_integers(folder):
        return KEPT
    effort = request.effort or "balanced"
    if effort not in EFFORTS:
        raise UsageError(f"there is no effort {effort!r}", remedy=f"one of {', '.join(EFFORTS)}")
    method = request.method or EFFORTS[effort]
    if method not in METHODS:
        raise UsageError(f"there is no method {method!r}", where="--method", remedy=f"one of {', '.join(METHODS)}")
    return method


def texts_of(request: LanguageRequest, folder: HfFolder, method: str) -> tuple[Texts | None, Texts | None]:
    """To calibrate on, and to judge by.

    Raises:
        UsageError: one cannot be read, or the method wants one that is not given.
    """
    if request.calibration is None and method not in WITHOUT_TEXT:
        remedy = f"give text with --calib, or take --method {' or '.join(WITHOUT_TEXT)}"
        raise UsageError(f"{method} looks at text", where="--calib", remedy=remedy)
    calibration = evaluation = None
    if request.calibration is not None:
        path = Path(request.calibration)
        calibration = packed(path, folder, CALIBRATED, overlapping=False, option="--calib")
    if request.evaluation is not None:
        evaluation = packed(Path(request.evaluation), folder, JUDGED, overlapping=True, option="--eval")
    return calibration, evaluation


def float_model(folder: HfFolder, scratch: Path, clock: Clock) -> tuple[Subject, Decoder]:
    """The float ONNX file, and what a report tells of the model.

    Raises:
        UnsupportedError: there is no such file, or it does not answer as the model does.
    """
    with clock.stage("float model"):
        decoder = float_decoder(folder, scratch)
    for text in told_of(decoder):
        clock.progress.note(text)
    return Subject(folder, decoder), decoder


def told_of(decoder: Decoder) -> list[str]:
    """What there is to say of a float model before anything is done with it."""
    if not decoder.unread:
        return []
    few = ", ".join(decoder.unread[:3]) + (" and others" if len(decoder.unread) > 3 else "")
    count = f"{len(decoder.unread)} tensor{'s are' if len(decoder.unread) > 1 else ' is'}"
    return [f"{count} in the model's files, and not in the model that its config.json tells of: {few}"]


def build(
    decoder: Decoder,
    subject: Subject,
    aim: Aim,
    runtime: Runtime,
    plan: DecoderPlan,
    rounded: Rounded,
    evaluation: Texts | None,
    out: Path,
    scratch: Path,
    clock: Clock,
) -> Built:
    """One format: written, read back, judged.

    Raises:
        InternalError: the file does not hold what was rounded.
        DeviceError: a device or runtime failed.
    """
    form = FORMATS[runtime.format]
    with clock.stage(f"export {runtime.format}"):
        artifact = form.write(decoder, rounded, out)
        if other := differing(form.read_back(artifact), rounded):
            raise InternalError(ValueError(f"the file does not hold what {other[0]} was rounded to"), artifact.name)
    files = [out / name for name in form.files]
    judged = Judged(None, None, None, None, None, aim.no_device_because or "no evaluation data was given")
    if evaluation is not None and aim.device is not None:
        reference = read_reference(decoder, runtime, aim, evaluation, scratch, clock)
        judged = judge(artifact, reference, runtime, aim, evaluation, subject.words, clock)
    return judged.built(runtime, aim, files, plan, _audit(decoder, rounded), _layers(decoder, plan, rounded))


def _audit(decoder: Decoder, rounded: Rounded) -> Audit:
    """No product is computed on integers: weights alone are."""
    left = [weight for weight in decoder.weights if weight.linear and weight.name not in rounded.weights]
    return Audit(
        tensors_checked=len(rounded.weights),
        bytes_checked=sum(w.integers.size * w.q.scheme.width // 8 + w.q.scale.nbytes for w in rounded.weights.values()),
        integer_mac_percent=0.0,
        float_operators=[
            FloatOperator(layer=one.name, op="linear", macs=one.rows * one.columns, reason="the plan keeps it in float")
            for one in left
        ],
    )


def _layers(decoder: Decoder, plan: DecoderPlan, rounded: Rounded) -> list[Layer]:
    return [
        Layer(
            name=weight.name,
            op="linear" if weight.linear else "embedding",
            precision=plan.matrices[weight.name].choice,
            weights=plan.matrices[weight.name].choice,
            activations="int8, in every call" if weight.name in rounded.dynamic else "float32",
            macs=weight.rows * weight.columns if weight.linear else 0,
            parameters=weight.rows * weight.columns,
            simulated_sqnr_db=None,
        )
        for weight in decoder.weights
    ]


def _uniform(request: LanguageRequest, decoder: Decoder, runtime: Runtime, aim: Aim, method: str) -> DecoderPlan:
    plan = uniform(decoder.weights, runtime, aim.target.name, method, request.weights, request.words)
    return keeping(plan, decoder, runtime) if method == KEPT else plan


def rounded_as(rounded: Rounded, taken: Mapping[str, DecoderChoice]) -> Rounded:
    """What was rounded, with what its inputs are rounded to."""
    return rounded._replace(dynamic=frozenset(name for name, one in taken.items() if one.dynamic))


def copy_beside(folder: HfFolder, decoder: Decoder, out: Path) -> list[str]:
    """Copies what answers need beside the artefact: the tokenizer, and what the model's own folder says of decoding.

    Returns:
        The names of the files.
    """
    found: dict[str, Path] = {}
    for place in (folder.path, decoder.path.parent):  # what the builder wrote fits its file
        found |= {file.name: file for pattern in BESIDE for file in sorted(place.glob(pattern)) if file.is_file()}
    for name, file in found.items():
        shutil.copyfile(file, out / name)
    return list(found)


def _more(one: Built, folder: HfFolder, out: Path, warnings: list[str]) -> list[str]:
    """Names of what the pipelines of this format's runtime read beside; a warning says why there is none."""
    if one.build.format != "openvino":
        return []
    try:
        paths = write_tokenizers(folder.path, out)
    except EdgeqError as error:
        remedy = error.remedy.partition(";")[0]
        warnings.append(
            f"no tokenizer for OpenVINO's own pipelines, which edgeq does not need: {error.cause} ({remedy})"
        )
        return []
    return [file.name for path in paths for file in (path, path.with_suffix(".bin"))]


def _warnings(calibration: Texts | None, evaluation: Texts | None) -> list[str]:
    if calibration is None or evaluation is None:
        return []
    same = {text.tobytes() for text in calibration.tokens} & {text.tobytes() for text in evaluation.tokens}
    return [f"{len(same)} evaluation texts are also calibration texts"] if same else []
