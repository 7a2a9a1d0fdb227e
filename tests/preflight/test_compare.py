"""Answers on two CPUs: what counts as another one."""

from __future__ import annotations

import numpy as np

from edgeq.preflight.compare import differing, moved


def test_scores_are_compared_by_their_largest() -> None:
    one = np.array([[1.0, 2.0, 3.0], [3.0, 2.9, 1.0], [5.0, 1.0, 1.0]])
    other = one + np.array([[0.9, 0.0, 0.0], [-0.2, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert differing([one], [other], len(one)) == [1]
    assert np.allclose(moved([one], [other], len(one)), [0.9, 0.2, 0.0])


def test_single_numbers_and_boxes_are_compared_by_their_range() -> None:
    one = np.linspace(0, 10, 11)[:, None]
    other = one.copy()
    other[3] += 0.09
    other[4] += 0.11
    assert differing([one], [other], len(one)) == [4]
    boxes = np.tile(one[:, :, None], (1, 20, 4))
    shifted = boxes.copy()
    shifted[7, 5, 2] += 0.2
    assert differing([boxes], [shifted], 11) == [7]


def test_a_segmentation_may_change_in_a_hundredth() -> None:
    one = np.zeros((3, 20, 20), np.int64)
    other = one.copy()
    other[1].reshape(-1)[:4] = 2
    other[2].reshape(-1)[:5] = 2
    assert differing([one], [other], len(one)) == [2]


def test_every_output_counts_and_no_number_is_another_answer() -> None:
    first, second = np.eye(4, 3), np.arange(4.0)[:, None]
    changed, broken = second.copy(), first.copy()
    changed[2], broken[3, 0] = 9, np.nan
    assert differing([first, second], [first, changed], 4) == [2]
    assert differing([first, second], [broken, second], 4) == [3]
    assert np.isinf(moved([first], [broken], 4)).tolist() == [False, False, False, True]
    assert differing([broken], [broken], 4) == [] and not moved([broken], [broken], 4).any()


def test_a_constant_output_that_moves_is_told() -> None:
    one = np.ones((2, 1))
    assert differing([one], [one], 2) == [] and differing([one], [one + np.array([[0.0], [1e-3]])], 2) == [1]


def test_rows_of_a_sample_and_shapes_that_differ() -> None:
    rows = np.random.default_rng(0).standard_normal((6, 5))  # three rows a sample
    changed = rows.copy()
    changed[4] = -changed[4]
    assert differing([rows], [changed], 2) == [1] and np.isfinite(moved([rows], [changed], 2)).all()
    assert differing([rows], [rows[:4]], 2) == [0, 1] == differing([rows], [rows, rows], 2)
    nothing = np.zeros((0, 4))
    assert differing([nothing], [nothing], 2) == [] and not moved([nothing], [nothing], 2).any()
