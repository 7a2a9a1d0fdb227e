"""What the commands do with a folder of a language model that decodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq.cli.options import BuildLimits, PlanLimits, Tasks
from edgeq.cli.outcome import conclude, limits_from
from edgeq.cli.shell import Shell
from edgeq.errors import GateError, UsageError

if TYPE_CHECKING:
    from edgeq.language.plan import DecoderPlan

_NOT_FOR_THEM = {"preprocess": "--preprocess", "inputs": "--input", "arch": "--arch", "trust_pickle": "--trust-pickle",
                 "metric": "--metric"}  # fmt: skip


def deploy_language(
    shell: Shell,
    model: str,
    plan: Path | None,
    how: Mapping[str, Any],
    others: Mapping[str, object],
    limits: BuildLimits,
) -> int:
    """`edgeq deploy` of a language model.

    Args:
        how: the command's arguments that both kinds of models have, and those that are for others.
        others: options that are for others.
    """
    refuse(how, others)
    told = {name: value for name, value in how.items() if name not in _NOT_FOR_THEM}
    told["effort"] = None if told["effort"] is None else told["effort"].value
    with shell.stages() as stages:
        from edgeq.language.deploy import LanguageRequest, deploy_language
        from edgeq.language.plan import read_decoder_plan

        if plan is not None:
            if given := [name for name in ("weights", "words") if told[name] is not None]:
                remedy = f"leave --{given[0]} away, or edit the plan"
                raise UsageError("a plan says itself what weights become", where=f"--{given[0]}", remedy=remedy)
            told["plan"] = read_decoder_plan(plan)
            told["target"] = told["target"] or told["plan"].target
        if told["target"] is None:
            raise UsageError("--target is missing", remedy="give --target, or a plan with --plan")
        request = LanguageRequest(model, limits=limits_from(limits), progress=stages, **told)
        report = deploy_language(request)
    return conclude(shell, report, how["out"])


def plan_language(
    shell: Shell,
    model: str,
    targets: Sequence[str],
    out: Path,
    how: Mapping[str, Any],
    others: Mapping[str, object],
    limits: PlanLimits,
) -> int:
    """`edgeq plan` of a language model; the arguments are those of `deploy_language`."""
    refuse(how, others)
    if len(targets) > 1:
        raise UsageError("language models are planned for one target at a time", remedy="give --target once")
    told = {name: value for name, value in how.items() if name not in _NOT_FOR_THEM}
    told["effort"] = None if told["effort"] is None else told["effort"].value
    with shell.stages() as stages:
        from edgeq.files import refuse_unwritable, write_json
        from edgeq.language.deploy import LanguageRequest
        from edgeq.language.search import plan_language as find

        refuse_unwritable(out)
        request = LanguageRequest(
            model, target=targets[0], out=out, limits=limits_from(limits), progress=stages, **told
        )
        found = find(request)
        write_json(out, found)
    if not shell.quiet:
        _show(shell, found, out)
    if shell.json:
        shell.document(found)
    from edgeq.records.wording import bytes_text, number

    proof = found.proof
    assert proof is not None  # it raises where nothing can be run
    if proof.held:
        return 0
    remedy = f"allow {bytes_text(proof.size)}, or a perplexity of {number(proof.score)}"
    cause = "no plan that was built holds every limit; the best one is written"
    return shell.tell(GateError(cause, where=str(out), remedy=remedy))


def _show(shell: Shell, plan: DecoderPlan, out: Path) -> None:
    from rich.table import Table

    from edgeq.records.wording import bytes_text, number

    table = Table("choice", "matrices", "numbers", box=None, pad_edge=False)
    for choice in dict.fromkeys(one.choice for one in plan.matrices.values()):
        mine = [one for one in plan.matrices.values() if one.choice == choice]
        table.add_row(choice, str(len(mine)), number(sum(one.outputs * one.inputs for one in mine)))
    shell.console.print(table)
    if plan.proof is not None:
        proof = plan.proof
        drop = f"{proof.drop:+.3f} ({proof.drop_low:+.3f} to {proof.drop_high:+.3f})"
        score = f"perplexity {proof.score:.3f}, float {proof.float_score:.3f}"
        told = f"{plan.format}, {plan.method}: {bytes_text(proof.size)}, {score}: {drop}"
        shell.console.print(told, soft_wrap=True, highlight=False)
    shell.console.print(str(out), soft_wrap=True, highlight=False)


def validate_language(
    shell: Shell,
    build: Path,
    device: str | None,
    how: Mapping[str, Any],
    tasks: Tasks,
    others: Mapping[str, object],
    limits: BuildLimits,
    junit: Path | None,
) -> int:
    """`edgeq validate` of a build of a language model: by text, or by tasks.

    Args:
        how: the command's arguments that both kinds of models have, and those that are for others.
        others: options that are for others.
    """
    refuse(how, others)
    if tasks.lm_eval:
        return _validate_by_tasks(shell, build, device, how, tasks, limits, junit)
    if given := [option for option, value in _of_tasks(tasks).items() if value]:
        raise UsageError("there is no task to ask", where=given[0], remedy="name one with --lm-eval")
    told = {name: value for name, value in how.items() if name not in _NOT_FOR_THEM}
    for name, option in (("model", "--model"), ("evaluation", "--eval")):
        if told[name] is None:
            raise UsageError(f"{option} is missing", remedy=f"give {option}, or a task with --lm-eval")
    with shell.stages() as stages:
        from edgeq.language.measure import MeasureRequest, measure

        report = measure(MeasureRequest(build, device=device, limits=limits_from(limits), progress=stages, **told))
    if junit is not None:
        from edgeq.report.junit import write_junit

        write_junit(report, junit)
    return conclude(shell, report, None)


def _validate_by_tasks(
    shell: Shell,
    build: Path,
    device: str | None,
    how: Mapping[str, Any],
    tasks: Tasks,
    limits: BuildLimits,
    junit: Path | None,
) -> int:
    given = {"--eval": how["evaluation"], "--target": how["target"], "--junit": junit}
    given["--threads"] = how["threads"] if how["threads"] != 1 else None
    given |= {f"--{name.replace('_', '-')}": value for name, value in vars(limits).items()}
    if told := [option for option, value in given.items() if value]:
        raise UsageError("this does not go with tasks", where=told[0], remedy=f"leave {told[0]} or --lm-eval away")
    with shell.stages() as stages:
        from edgeq.language.evaluate import TasksRequest, evaluate

        request = TasksRequest(
            build,
            tasks=tasks.lm_eval,
            tasks_from=tasks.tasks_from,
            trust_tasks=tasks.trust_tasks,
            model=how["model"],
            device=device,
            progress=stages,
        )
        report = evaluate(request)
    if not shell.quiet:
        from edgeq.report.tasks import render_tasks

        render_tasks(report, shell.console)
    if shell.json:
        shell.document(report)
    return 0


def _of_tasks(tasks: Tasks) -> dict[str, object]:
    return {"--tasks-from": tasks.tasks_from, "--trust-tasks": tasks.trust_tasks}


def refuse(how: Mapping[str, Any], others: Mapping[str, object]) -> None:
    """Refuses options that are for models of other kinds.

    Raises:
        UsageError: one is given.
    """
    given = [option for option, value in others.items() if value is not None]
    given += [option for name, option in _NOT_FOR_THEM.items() if how.get(name)]
    if given:
        raise UsageError("this is not for language models", where=given[0], remedy=f"leave {given[0]} away")
