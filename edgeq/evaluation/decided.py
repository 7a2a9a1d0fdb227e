"""When it is certain that an artefact loses too much, though not all samples were run.

An answer is right or wrong, and the drop is the number of wrong ones beyond the float model's. Once there are more of
them than the limit allows, no further sample can mend it. Those come first that are likeliest to be wrong: what the
float model answers wrongly, then what it is least sure of. So a plan that loses too much costs a fraction of the
samples, and one that does not costs nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeq.evaluation.accuracy import check_labels
from edgeq.evaluation.outputs import answers, read_output
from edgeq.limits import ROUNDING
from edgeq.model.heads import Head

Array = NDArray[Any]


class Decisive(NamedTuple):
    """What decides about a limit on the drop of top-1, or of agreement with the float model.

    Attributes:
        wanted: [N], the right answers.
        most: so many wrong ones are within the limit.
        before: so many of the float model's are wrong.
        order: [N], the samples in the order in which they are run.
    """

    wanted: NDArray[np.int64]
    most: int
    before: int
    order: NDArray[np.int64]

    @property
    def drop(self) -> float:
        """The least that an artefact loses which is given up, in points."""
        return 100 * (self.most + 1 - self.before) / len(self.wanted)


def decisive(
    reference: Sequence[Array], labels: Array | None, limit: float, heads: Sequence[Head] = ()
) -> Decisive | None:
    """What decides about a limit; None where the first output is no classifier's with one answer for each sample.

    Args:
        reference: per output, the float model's values [N, ...].
        labels: [N] class indices; without them the float model's answers are the right ones.
        limit: the largest drop, in points.
        heads: per output, what the graph tells of it.
    """
    first = reference[0]
    n = len(first)
    reading = read_output(first, heads[0] if heads else None, labelled=labels is not None)
    if reading.axis is None or first[0].size < 2:
        return None
    given = answers(first, reading.axis)
    if given.shape[1] != 1:
        return None
    wanted = given[:, 0] if labels is None else check_labels(labels, first.shape, first.dtype)
    wrong = given[:, 0] != wanted
    before = int(wrong.sum())
    best = np.partition(first.reshape(n, -1), -2, axis=1)
    sure = np.where(wrong, -np.inf, best[:, -1] - best[:, -2])
    most = before + floor(n * (limit + ROUNDING) / 100)
    return Decisive(wanted.astype(np.int64), most, before, np.argsort(sure, kind="stable"))
