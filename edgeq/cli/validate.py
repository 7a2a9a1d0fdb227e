"""`edgeq validate`: from an artefact that is there already to its report, on one device or on several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeq.cli import options as o
from edgeq.cli.language import validate_language
from edgeq.cli.outcome import conclude, limits_from
from edgeq.cli.shell import Shell
from edgeq.errors import UsageError
from edgeq.files import refuse_unwritable

_Devices = Annotated[
    list[str],
    typer.Option("--device", metavar="D", help="A name from `edgeq device list`, or an address. Once for each."),
]
_File = Annotated[
    Path | None, typer.Option("--devices", metavar="FILE", help="A file with the name of a device on each line.")
]


def validate(
    shell: Shell,
    *,
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A build, or a .onnx, .xml or .tflite file.")],
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="The float model that it was made from.")] = None,
    evaluation: o.Evaluation = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="T", help="What it is for; that of the build if not given.")
    ] = None,
    device: _Devices = [],  # noqa: B006 (typer copies it)
    devices: _File = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write the outcome as JUnit XML.")] = None,
    threads: o.Threads = 1,
    sustain: Annotated[
        str | None, typer.Option(metavar="60s", help="Call it without a rest for so long: does the device slow down?")
    ] = None,
    read: o.Judging,
    limits: o.BuildLimits,
    tasks: o.Tasks,
) -> int:
    """Measure an artefact that is there already against the float model, on one device or side by side on several.

    Exit codes are those of `edgeq deploy`. Of several devices, a limit that one misses counts more (3) than one that
    could not be used (5).
    """
    from edgeq.language.plan import is_decoder_build
    from edgeq.limits import parse_seconds

    if tasks.lm_eval or is_decoder_build(artifact):
        others = {"--devices": devices, "--sustain": sustain, "--device": device[1:] or None}
        how = {"model": model, "evaluation": evaluation, "target": target, "threads": threads, **vars(read)}
        return validate_language(shell, artifact, device[0] if device else None, how, tasks, others, limits, junit)
    if tasks.tasks_from is not None or tasks.trust_tasks:
        option = "--trust-tasks" if tasks.tasks_from is None else "--tasks-from"
        raise UsageError("there is no task to ask", where=option, remedy="name one with --lm-eval")
    for option, value in (("--model", model), ("--eval", evaluation)):
        if value is None:
            raise UsageError(f"{option} is missing", remedy=f"give {option}")
    told: dict[str, Any] = {
        "model": model,
        "target": target,
        "evaluation": evaluation,
        "threads": threads,
        **vars(read),
    }
    told["limits"] = limits_from(limits)
    told["sustain"] = None if sustain is None else parse_seconds(sustain, "--sustain")
    if told["sustain"] is not None and told["sustain"] < 0.1:
        raise UsageError("less than a tenth of a second tells nothing", where="--sustain", remedy="60s or more")
    if junit is not None:
        refuse_unwritable(junit, option="--junit")
    names = [*device, *(_listed(devices) if devices is not None else ())]
    if len(names) > 1 or devices is not None:
        return _on_several(shell, artifact, names, junit, told)
    with shell.stages() as stages:
        from edgeq.api.validate import validate as measure

        report = measure(artifact, device=names[0] if names else None, progress=stages, **told)
    if junit is not None:
        from edgeq.report.junit import write_junit

        write_junit(report, junit)
    return conclude(shell, report, None)


def _on_several(shell: Shell, artifact: Path, names: list[str], junit: Path | None, told: dict[str, Any]) -> int:
    with shell.stages() as stages:
        from edgeq.api.validate import ValidateRequest
        from edgeq.api.validate_fleet import validate_fleet

        report = validate_fleet(ValidateRequest(artifact, progress=stages, **told), names)
    if junit is not None:
        from edgeq.files import atomic_write
        from edgeq.report.junit import junit_of_devices

        atomic_write(junit, junit_of_devices(report))
    if not shell.quiet:
        from edgeq.report.devices import render_devices

        render_devices(report, shell.console)
    if shell.json:
        shell.document(report)
    return report.exit_code


_REMEDY = "write the name of a device on each line"


def _listed(file: Path) -> list[str]:
    if file.exists() and not file.is_file():
        raise UsageError("is no plain file", where=str(file), remedy=_REMEDY)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot be read: {error}", where=str(file), remedy="a name of a device on each line"
        ) from None
    found = [name for line in lines if (name := line.partition(" #")[0].strip()) and not name.startswith("#")]
    if not found:
        raise UsageError("names no device", where=str(file), remedy=_REMEDY)
    return found
