"""Perplexity of an artefact beside that of its float model, text by text."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgeq.devices.decoding import Foretold
from edgeq.evaluation.interval import paired_bootstrap
from edgeq.limits import LEAST_AGREEMENT
from edgeq.records.schema import Accuracy, Interval, Output


def perplexity(nll: NDArray[np.float32]) -> float:
    """exp of the mean negative log-likelihood; infinite beyond floats."""
    mean = float(np.mean(nll, dtype=np.float64))
    return math.exp(mean) if mean < 700 else math.inf


def compared(reference: Foretold, found: Foretold, words: int) -> Accuracy:
    """The artefact's perplexity, its rise with an interval over texts, and how often its likeliest token is float's.

    Args:
        reference, found: of the same texts.
        words: that the model has.
    """

    def rise(texts: NDArray[np.intp]) -> float:
        return perplexity(found.nll[texts]) - perplexity(reference.nll[texts])

    same = (reference.best == found.best).mean(axis=1)
    agreement = _mean(100 * same)
    lost = f"{agreement.value:.1f} % of the likeliest tokens are float's" if agreement.value < LEAST_AGREEMENT else ""
    return Accuracy(
        metric="perplexity",
        unit="",
        higher_is_better=False,
        samples=len(found.nll),
        float_score=perplexity(reference.nll),
        score=perplexity(found.nll),
        drop=paired_bootstrap(rise, len(found.nll)),
        agreement=agreement,
        sqnr_db=None,
        tied_percent=None,
        saturated_percent=None,
        outputs=[
            Output(
                name="logits",
                kind="scores",
                kind_because="the model foretells the next token",
                shape=[found.nll.shape[1], words],
                agreement=agreement,
                sqnr_db=None,
                judged_by="agreement",
                least=LEAST_AGREEMENT,
                unrecognizable=lost,
            )
        ],
    )


def _mean(values: NDArray[np.float64]) -> Interval:
    """Of one number for each text."""
    return paired_bootstrap(lambda texts: float(values[texts].mean()), len(values))
