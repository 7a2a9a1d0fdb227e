"""What the commands do with a folder of a language model that decodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeq.cli.options import BuildLimits
from edgeq.cli.outcome import conclude, limits_from
from edgeq.cli.shell import Shell
from edgeq.errors import UsageError

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


def refuse(how: Mapping[str, Any], others: Mapping[str, object]) -> None:
    """Refuses options that are for models of other kinds.

    Raises:
        UsageError: one is given.
    """
    given = [option for option, value in others.items() if value is not None]
    given += [option for name, option in _NOT_FOR_THEM.items() if how.get(name)]
    if given:
        raise UsageError("this is not for language models", where=given[0], remedy=f"leave {given[0]} away")
