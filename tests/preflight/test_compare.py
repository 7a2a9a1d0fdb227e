"""Answers on two CPUs: what counts as another one."""

from __future__ import annotations

import numpy as np

from edgeq.preflight.compare import differing, moved


def test_scores_are_compared_by_their_largest() -> None:
    one = np.array([[1.0, 2.0, 3.0], [3.0, 2.9, 1.0], [5.0, 1.0, 1.0]])
    other = one + np.array([[0.9, 0.0, 0.0], [-0.2, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert differing([one], [other]) == [1]
    assert np.allclose(moved([one], [other]), [0.9, 0.2, 0.0])


def test_single_numbers_and_boxes_are_compared_by_their_range() -> None:
    one = np.linspace(0, 10, 11)[:, None]
    other = one.copy()
    other[3] += 0.09
    other[4] += 0.11
    assert differing([one], [other]) == [4]
    boxes = np.tile(one[:, :, None], (1, 20, 4))
    shifted = boxes.copy()
    shifted[7, 5, 2] += 0.2
    assert differing([boxes], [shifted]) == [7]


def test_a_segmentation_may_change_in_a_hundredth() -> None:
    one = np.zeros((3, 20, 20), np.int64)
    other = one.copy()
    other[1].reshape(-1)[:4] = 2
    other[2].reshape(-1)[:5] = 2
    assert differing([one], [other]) == [2]


def test_every_output_counts_and_no_number_is_another_answer() -> None:
    first, second = np.eye(4, 3), np.arange(4.0)[:, None]
    changed, broken = second.copy(), first.copy()
    changed[2], broken[3, 0] = 9, np.nan
    assert differing([first, second], [first, changed]) == [2]
    assert differing([first, second], [broken, second]) == [3]
    assert np.isinf(moved([first], [broken])).tolist() == [False, False, False, True]
    assert differing([broken], [broken]) == [] and not moved([broken], [broken]).any()


def test_a_constant_output_that_moves_is_told() -> None:
    one = np.ones((2, 1))
    assert differing([one], [one]) == [] and differing([one], [one + np.array([[0.0], [1e-3]])]) == [1]
