"""What is taken from a plan of the data that it was made with: files, and never code. A plan is a file that others may
have written, and code is run only where the user names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeq.data.load import SYNTHETIC, names_function
from edgeq.errors import UsageError
from edgeq.plans.plan import Given


def completed(given: Given | None, told: Mapping[str, Any]) -> dict[str, Any]:
    """What the user gave, with what the plan remembers of data where that is None.

    Raises:
        UsageError: the plan was made with code of the user's, which was not given.
    """
    return {
        **told,
        "calibration": data_of(given, "--calib", told["calibration"], "calibration"),
        "evaluation": data_of(given, "--eval", told["evaluation"], "evaluation"),
        "preprocess": told["preprocess"] or (given.preprocess if given else None),
        "metric": metric_of(given, told["metric"]),
    }


def data_of(given: Given | None, option: str, told: str | Path | None, role: str) -> str | Path | None:
    """What the user gave, or else the file or folder that the plan remembers.

    Args:
        option: of the command line, for messages.
        role: the field of `Given`.

    Returns:
        None where neither says anything. What the plan remembers is a `Path`, which `load_data` never calls, or that
        samples are synthetic.

    Raises:
        UsageError: the plan was made with a function.
    """
    remembered = getattr(given, role) if given is not None else None
    if told is not None or remembered is None:
        return told
    if names_function(remembered) and not Path(remembered).exists():
        raise _code(option, remembered)
    return remembered if remembered == SYNTHETIC else Path(remembered)


def metric_of(given: Given | None, told: str | None) -> str | None:
    """What the user gave: a metric is always code.

    Raises:
        UsageError: nothing was given, and the plan was made with a metric of the user's.
    """
    if told is None and given is not None and given.metric is not None:
        raise _code("--metric", given.metric)
    return told


def _code(option: str, reference: str) -> UsageError:
    return UsageError(
        f"the plan was made with {reference!r}, and no code runs because a plan names it",
        where="plan",
        remedy=f"give {option} yourself: {option} {reference}, if you know what it does",
    )
