"""Linear programs with integers, as HiGHS takes and answers them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

State = Literal["optimal", "time limit", "infeasible"]


class Rows(NamedTuple):
    """Sparse rows: row i adds up the columns `column[start[i]:start[i + 1]]` times `factor`, and lies between `low[i]`
    and `high[i]`."""

    start: NDArray[np.int32]
    column: NDArray[np.int32]
    factor: Vector
    low: Vector
    high: Vector

    def __len__(self) -> int:
        return len(self.low)


class Answer(NamedTuple):
    """What HiGHS made of a program.

    Attributes:
        state: `time limit` whatever ended the search before its time.
        values: of the columns; None if it has none that keep the rows.
        proved: no solution has a smaller objective; minus infinity if nothing is known.
    """

    state: State
    values: Vector | None
    proved: float


def rows(entries: Sequence[Mapping[int, float]], low: float | Sequence[float], high: float | Sequence[float]) -> Rows:
    """Rows from factors by column."""
    start = np.cumsum([0, *map(len, entries)], dtype=np.int32)
    column = np.fromiter((column for row in entries for column in row), np.int32)
    factor = np.fromiter((value for row in entries for value in row.values()), np.float64)
    lows, highs = (np.array(np.broadcast_to(limit, len(entries)), np.float64) for limit in (low, high))
    return Rows(start, column, factor, lows, highs)


def dense_rows(factors: Sequence[Vector], high: float) -> Rows:
    """Rows that may use every column, at most `high` each."""
    return rows([{int(i): float(row[i]) for i in np.flatnonzero(row)} for row in factors], -inf, high)


def stacked(first: Rows, second: Rows) -> Rows:
    start = np.concatenate([first.start, second.start[1:] + first.start[-1]])
    pairs = [(getattr(first, name), getattr(second, name)) for name in Rows._fields[1:]]
    return Rows(start, *map(np.concatenate, pairs))


def minimized(
    objective: Vector,
    lower: Vector,
    upper: Vector,
    within: Rows,
    *,
    integers: int,
    gap: float,
    seconds: float,
) -> Answer:
    """Minimizes over columns between `lower` and `upper`, the first `integers` of them, one at least, whole.

    Args:
        gap: between the solution and what is proved, relative to the solution, at which the search may end.
        seconds: after so long it ends.
    """
    import highspy

    if seconds <= 0.0:
        return Answer("time limit", None, -inf)
    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = len(objective), len(within)
    program.col_cost_, program.col_lower_, program.col_upper_ = objective, lower, upper
    program.row_lower_, program.row_upper_ = within.low, within.high
    program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    program.a_matrix_.start_, program.a_matrix_.index_, program.a_matrix_.value_ = within[:3]
    whole, split = highspy.HighsVarType.kInteger, highspy.HighsVarType.kContinuous
    program.integrality_ = [whole] * integers + [split] * (len(objective) - integers)
    with _muted():
        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        solver.setOptionValue("output_flag", False)
    solver.setOptionValue("time_limit", seconds)
    solver.setOptionValue("mip_rel_gap", gap)
    # programs of a few hundred choices take half as long without: what a restart's presolve finds was of no use
    solver.setOptionValue("mip_allow_restart", False)
    solver.passModel(program)
    solver.run()
    status, info = solver.getModelStatus(), solver.getInfo()
    # every column has two ends, so nothing is unbounded
    if status in (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible):
        return Answer("infeasible", None, inf)
    done = status == highspy.HighsModelStatus.kOptimal
    solution = solver.getSolution()
    feasible = info.primal_solution_status == int(highspy.SolutionStatus.kSolutionStatusFeasible)
    values = np.array(solution.col_value) if feasible else None
    return Answer("optimal" if done else "time limit", values, info.mip_dual_bound)


@contextmanager
def _muted() -> Iterator[None]:
    """Keeps a line away that HiGHS 1.16 prints before it can be told not to, past Python to descriptor 1.

    What other threads print meanwhile is lost as well.
    """
    if sys.stdout:
        sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
