"""Continual metrics against numbers worked out by hand, and against definitions of other tools that we do not use."""

from __future__ import annotations

import numpy as np
import pytest

from nlft.measure.continual import (
    acquisition,
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    final_acquisition,
    forgetting,
    forward_transfer,
    intransigence,
    probe_retention,
    task_retention,
)

NAN = float("nan")
LOWER = np.array([[NAN, NAN, NAN], [0.80, NAN, NAN], [0.85, 0.70, NAN], [0.90, 0.60, 0.75]])
"""A published example; base row and upper triangle were not measured."""
FULL = np.array([[0.10, 0.20, 0.05], [0.80, 0.25, 0.00], [0.85, 0.70, 0.15], [0.90, 0.60, 0.75]])


def test_the_published_example() -> None:
    assert forgetting(LOWER) == pytest.approx(0.025)
    assert backward_transfer(LOWER) == pytest.approx(0.0)
    assert average_accuracy(LOWER) == pytest.approx(0.75)
    assert average_incremental_accuracy(LOWER) == pytest.approx((0.80 + 0.775 + 0.75) / 3)


def test_other_tools_definitions_differ_on_it() -> None:
    """Three numbers of one name: a maximum that includes the last row, one without it, and none."""
    R = LOWER[1:]
    mammoth = np.mean([max(np.nan_to_num(R[:, j])) - R[-1, j] for j in range(2)])
    sapt = np.mean([np.nanmax(R[:-1, j]) - R[-1, j] for j in range(2)])
    avalanche = np.mean([R[j, j] - R[-1, j] for j in range(2)])
    assert (mammoth, sapt, avalanche) == (pytest.approx(0.05), pytest.approx(0.025), pytest.approx(0.0))
    assert forgetting(LOWER) == pytest.approx(sapt) != pytest.approx(mammoth)
    assert backward_transfer(LOWER) == pytest.approx(-avalanche)


def test_likelihoods_are_not_padded_with_zeros() -> None:
    R = -np.array([[NAN] * 3, [2.0, NAN, NAN], [2.2, 2.1, NAN], [2.4, 2.3, 1.9]])
    padded = np.nan_to_num(R[1:])
    assert np.mean([max(padded[:, j]) - padded[-1, j] for j in range(2)]) == pytest.approx(1.35)
    assert forgetting(R) == pytest.approx(0.30)
    assert backward_transfer(R) == pytest.approx(-0.30)


def test_the_base_row_and_the_upper_triangle() -> None:
    assert forward_transfer(FULL) == pytest.approx(((0.25 - 0.20) + (0.15 - 0.05)) / 2)
    np.testing.assert_allclose(acquisition(FULL), [0.70, 0.50, 0.70])
    np.testing.assert_allclose(final_acquisition(FULL), [0.80, 0.40, 0.70])
    np.testing.assert_allclose(task_retention(FULL), [0.10, -0.10, 0.0], atol=1e-15)
    np.testing.assert_allclose(probe_retention(np.array([[0.9, 2.0], [0.0, 0.0], [0.8, 2.5]])), [-0.1, 0.5])


def test_what_was_learned_later_is_no_maximum_of_before() -> None:
    """Scores on a task before its own stage do not count as having been learned."""
    R = np.array([[0.9, 0.9], [0.5, 0.9], [0.4, 0.6]])
    assert forgetting(R) == pytest.approx(0.1)


def test_one_missing_value_makes_nan_and_an_absent_task_is_left_out() -> None:
    absent = FULL.copy()
    absent[:, 1] = NAN
    assert average_accuracy(absent) == pytest.approx((0.90 + 0.75) / 2)
    assert forgetting(absent) == pytest.approx(-0.05)
    assert backward_transfer(absent) == pytest.approx(0.10)
    assert average_incremental_accuracy(absent) == pytest.approx((0.80 + 0.85 + 0.825) / 3)
    cut = FULL.copy()
    cut[3] = NAN
    for metric in (average_accuracy, average_incremental_accuracy, backward_transfer, forgetting):
        assert np.isnan(metric(cut)), metric
    assert forward_transfer(cut) == pytest.approx(0.075)


def test_one_task_has_nothing_earlier() -> None:
    R = np.array([[0.1], [0.7]])
    assert average_accuracy(R) == average_incremental_accuracy(R) == pytest.approx(0.7)
    assert all(np.isnan(metric(R)) for metric in (backward_transfer, forgetting, forward_transfer))


def test_intransigence_is_what_a_task_alone_learned_more() -> None:
    assert intransigence(FULL, np.array([0.90, 0.70, 0.70])) == pytest.approx((0.10 + 0.0 - 0.05) / 3)
    assert intransigence(-LOWER, np.array([-0.70, -0.70, -0.70])) == pytest.approx((0.10 + 0.0 + 0.05) / 3)
    absent = FULL.copy()
    absent[:, 1] = NAN
    assert intransigence(absent, np.array([0.90, NAN, 0.70])) == pytest.approx((0.10 - 0.05) / 2)
    assert np.isnan(intransigence(FULL, np.array([0.90, NAN, 0.70])))
    cut = FULL.copy()
    cut[2, 1] = NAN
    assert np.isnan(intransigence(cut, np.ones(3))) and np.isnan(intransigence(np.full((2, 1), NAN), np.ones(1)))
