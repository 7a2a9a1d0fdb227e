"""The plan of a decoder: sensitivities, the choices that fit best, and a proof in the runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeq.errors import UsageError
from edgeq.files import scratch_folder
from edgeq.language.decoder import Decoder, Weight
from edgeq.language.deploy import LanguageRequest, aim_of, float_model, method_of, rounded_as, texts_of
from edgeq.language.folder import open_folder
from edgeq.language.formats import FORMATS
from edgeq.language.judge import Reference, foretold, read_reference
from edgeq.language.perplexity import compared, perplexity
from edgeq.language.plan import DecoderPlan, DecoderProof, MatrixPlan, choices, chosen
from edgeq.language.rounding import round_weights
from edgeq.language.sensitivity import Unit, sensitivities
from edgeq.language.solve import solve
from edgeq.language.text import Texts
from edgeq.limits import Measured, beyond_recognition, drop_limit, exceeded
from edgeq.numerics import Scheme
from edgeq.prepare import Aim
from edgeq.progress import Clock
from edgeq.registry.schema import Runtime

ATTEMPTS = 4
"""Plans that are built and measured at most."""

LOOKED_AT = 512
"""Tokens that sensitivities are taken on."""

NEAR = 0.9
"""A plan that uses so much of what may be lost is not improved on."""


@dataclass(frozen=True)
class _Search:
    """What every attempt shares."""

    decoder: Decoder
    runtime: Runtime
    aim: Aim
    method: str
    calibration: Texts
    evaluation: Texts
    reference: Reference
    units: Sequence[Unit]
    sizes: Sequence[Mapping[str, int]]
    scratch: Path
    clock: Clock


def plan_language(request: LanguageRequest) -> DecoderPlan:
    """The smallest plan within a drop, or the one of least loss within a size, proved by perplexity on the device.

    Args:
        request: `out` plays no part; `limits` has `max_drop`, `max_size` or both.

    Returns:
        The best plan that was proved; its proof says whether all limits hold.

    Raises:
        UsageError: wrong arguments, folder or text; or no plan can be within the limits.
        DeviceError: a device or runtime failed, or there is none.
    """
    clock = Clock(request.progress)
    aim = aim_of(request)
    limits = aim.limits
    if limits.max_drop is None and limits.max_size is None:
        raise UsageError("there is nothing to plan for", remedy="give --max-drop, --max-size or both")
    if request.calibration is None or request.evaluation is None:
        missing = "--calib" if request.calibration is None else "--eval"
        raise UsageError(f"{missing} is missing", remedy="give text to look at, and other text to judge by")
    if aim.device is None:
        raise UsageError(aim.no_device_because, where=aim.target.name, remedy="plans are proved: name a --device")
    folder, method = open_folder(Path(request.model)), method_of(request)
    with scratch_folder() as scratch:
        with clock.stage("load"):
            calibration, evaluation = texts_of(request, folder, method)
        assert calibration is not None and evaluation is not None
        _, decoder = float_model(folder, scratch, clock)
        runtime = aim.runtimes[0]
        offered = {weight: _offered(weight, runtime) for weight in decoder.weights}
        with clock.stage("sensitivities") as steps:
            few = calibration.tokens[: max(1, LOOKED_AT // calibration.tokens.shape[1])]
            units = sensitivities(decoder, offered, few[:, :LOOKED_AT], steps)
        sizes = [_sizes(unit, offered) for unit in units]
        reference = read_reference(decoder, runtime, aim, evaluation, scratch, clock)
        search = _Search(
            decoder, runtime, aim, method, calibration, evaluation, reference, units, sizes, scratch, clock
        )  # fmt: skip
        return _found(search)


def _offered(weight: Weight, runtime: Runtime) -> dict[str, Scheme]:
    """What a matrix may be stored as; of choices that store the same, the preferred one."""
    found: dict[Scheme, str] = {}
    for name, one in choices(weight, runtime).items():
        found.setdefault(one.scheme, name)
    if not found:
        raise UsageError(f"{runtime.name} has no choice for it", where=weight.name, remedy="choose another --format")
    return {name: scheme for scheme, name in found.items()}


def _sizes(unit: Unit, offered: Mapping[Weight, Mapping[str, Scheme]]) -> dict[str, int]:
    """Bytes by choice: integers, scales, and zero points where there are any."""

    def size(weight: Weight, scheme: Scheme) -> int:
        group = scheme.group or weight.columns
        groups = -(-weight.columns // group)
        scale = 2 if scheme.half_scales else 4
        zero = math.ceil(groups * scheme.width / 8) if scheme.symmetry == "asymmetric" else 0
        return weight.rows * (math.ceil(groups * group * scheme.width / 8) + scale * groups + zero)

    return {choice: sum(size(weight, offered[weight][choice]) for weight in unit.weights) for choice in unit.losses}


def _found(search: _Search) -> DecoderPlan:
    """Attempts until one holds and none can be much better: what was predicted is corrected by what was proved."""
    limits = search.aim.limits
    score = perplexity(search.reference.foretold.nll)
    most_drop = None if limits.max_drop is None else drop_limit(limits.max_drop, "", score)
    # a divergence of d nats makes the perplexity about exp(d) times as large
    loss = None if most_drop is None else math.log1p(most_drop / score)
    rest = _unrounded(search.decoder)
    book: list[tuple[DecoderPlan, float]] = []
    for _ in range(ATTEMPTS):
        room = None if limits.max_size is None else limits.max_size - rest
        # within both, the size is what must hold and the loss is what is left
        try:
            taken = solve(search.units, search.sizes, most_size=room, most_loss=None if room is not None else loss)
        except UsageError:
            if not book:
                raise
            break  # what was built tells more than that there is nothing within what is left
        predicted = sum(unit.losses[choice] for unit, choice in zip(search.units, taken, strict=True))
        if any(plan.matrices == _matrices(search, taken) for plan, _ in book):
            break
        plan = _proved(search, taken, predicted)
        book.append((plan, predicted))
        proof = plan.proof
        assert proof is not None
        if room is not None:
            counted = sum(sizes[choice] for sizes, choice in zip(search.sizes, taken, strict=True))
            if proof.size <= (limits.max_size or 0):
                break
            # what is no weight hangs a little on the choices: it is not taken for less than it was
            rest = max(rest, proof.size - counted)
        else:
            assert most_drop is not None and loss is not None
            if NEAR * most_drop <= proof.drop <= most_drop:
                break
            loss = _corrected(book, most_drop)
    return min((plan for plan, _ in book), key=lambda plan: _rank(plan, limits.max_size))


def _unrounded(decoder: Decoder) -> int:
    """About how many bytes of a file are no weights that could be rounded."""
    known = {weight.name for weight in decoder.weights}
    others = sum(decoder.array(name).nbytes for name in decoder.initializers if name not in known)
    return int(others + decoder.proto.ByteSize())


def _corrected(book: Sequence[tuple[DecoderPlan, float]], most: float) -> float:
    """The predicted loss at which the drop is what may be lost: between what was proved on both sides of it,
    on logarithms; beyond one side, in proportion."""
    proved = sorted((max(plan.proof.drop, most * 1e-3), predicted) for plan, predicted in book if plan.proof)
    aimed = most * (1 + NEAR) / 2
    below = [one for one in proved if one[0] <= aimed]
    above = [one for one in proved if one[0] > aimed]
    if below and above:
        (low, at_low), (high, at_high) = below[-1], above[0]
        part = math.log(aimed / low) / math.log(high / low)
        return float(math.exp(math.log(at_low) + part * (math.log(at_high) - math.log(at_low))))
    drop, predicted = (below or above)[-1 if below else 0]
    return predicted * aimed / drop


def _rank(plan: DecoderPlan, most_size: int | None) -> tuple[bool, float, float]:
    """What holds first, then what is asked for least of; of what does not hold, what is nearest to the limits."""
    assert plan.proof is not None
    size, drop = float(plan.proof.size), plan.proof.drop
    if not plan.proof.held:
        return True, max(0.0, size - (most_size or math.inf)), drop
    return (False, drop, size) if most_size is not None else (False, size, drop)


def _matrices(search: _Search, names: Sequence[str]) -> dict[str, MatrixPlan]:
    of = {one.name: choice for unit, choice in zip(search.units, names, strict=True) for one in unit.weights}
    return {
        one.name: MatrixPlan(
            outputs=one.rows, inputs=one.columns, choice=of[one.name], tied=one.embedding and one.linear
        )
        for one in search.decoder.weights
    }


def _proved(search: _Search, names: Sequence[str], predicted: float) -> DecoderPlan:
    runtime, clock, aim = search.runtime, search.clock, search.aim
    plan = DecoderPlan(
        target=aim.target.name,
        runtime=runtime.name,
        format=runtime.format,
        method=search.method,
        matrices=_matrices(search, names),
        predicted_loss=predicted,
    )
    taken = chosen(plan, search.decoder.weights, runtime)
    schemes = {name: one.scheme for name, one in taken.items()}
    with clock.stage(f"round ({search.method})") as steps:
        found = round_weights(search.decoder, schemes, search.method, search.calibration.tokens, steps)
    rounded = rounded_as(found, taken)
    folder = search.scratch / "attempt"
    folder.mkdir(exist_ok=True)
    with clock.stage(f"export {runtime.format}"):
        path = FORMATS[runtime.format].write(search.decoder, rounded, folder)
    size = sum((folder / name).stat().st_size for name in FORMATS[runtime.format].files)
    assert aim.device is not None
    answers = foretold(path, runtime, aim.device, search.evaluation, "prove", clock)
    accuracy = compared(search.reference.foretold, answers, 0)
    drop = accuracy.drop
    assert drop is not None and accuracy.score is not None and accuracy.float_score is not None
    measured = Measured(drop.value, "", accuracy.float_score, None, size, beyond_recognition(accuracy))
    held = not exceeded(aim.limits, measured)
    where = f", run on an emulated device ({aim.device.name})" if aim.device.emulated else ""
    clock.progress.note(
        f"{size / 1e6:.1f} MB, perplexity {accuracy.score:.3f} (float {accuracy.float_score:.3f}){where}"
    )
    proof = DecoderProof(
        size=size,
        metric="perplexity",
        score=accuracy.score,
        float_score=accuracy.float_score,
        drop=drop.value,
        drop_low=drop.low,
        drop_high=drop.high,
        held=held,
    )
    return plan.model_copy(update={"proof": proof})
