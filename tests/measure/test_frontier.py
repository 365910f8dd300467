"""Frontiers: learning on its scale, envelopes, reading them, and what is never extrapolated."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nlft.measure.frontier import (
    Reading,
    base_forgetting,
    ceilings,
    common_level,
    common_range,
    lower_envelope,
    mean_between,
    most_within,
    normalised_learning,
    ratio_to,
    read_envelope,
    reference_of,
)
from nlft.measure.matrix import Column

HITS = Column("a", "a", "task", "test", "exact_match", 10)
NATS = Column("b", "b", "task", "test", "nll", 10)
SWEEP = [(0.8, 0.3), (0.5, 0.2), (0.6, 0.1), (math.nan, 0.0), (0.9, math.nan)]


def test_ceilings_are_one_or_the_best_anyone_had() -> None:
    first, second = np.array([[0.1, 8.0], [0.9, 2.5], [0.2, 2.1]]), np.array([[0.1, 8.0], [0.5, 2.0], [0.5, np.nan]])
    np.testing.assert_array_equal(ceilings([first, second], [HITS, NATS]), [1.0, -2.0])
    np.testing.assert_array_equal(ceilings([], [HITS, NATS]), [1.0, np.nan])


def test_learning_is_zero_at_the_base_and_one_at_the_ceiling() -> None:
    R = np.array([[0.2, -8.0], [0.6, -9.0], [0.4, -3.5]])
    now, end = normalised_learning(R, np.array([1.0, -2.0]))
    assert now == pytest.approx((0.4 / 0.8 + 4.5 / 6) / 2)
    assert end == pytest.approx((0.2 / 0.8 + 4.5 / 6) / 2)


def test_a_task_with_nothing_to_learn_is_left_out() -> None:
    R = np.array([[1.0, 0.0], [0.9, 0.0], [0.8, 0.5]])
    assert normalised_learning(R, np.array([1.0, 1.0])) == (0.5, 0.5)
    assert all(math.isnan(value) for value in normalised_learning(R[:, :1], np.array([1.0])))
    assert math.isnan(normalised_learning(R, np.array([1.0, np.nan]))[0])


def test_forgetting_of_the_base_does_not_mix_units() -> None:
    probes = [
        Column(name, name, "probe", "test", metric, 10)
        for name, metric in (("x", "nll"), ("y", "f1"), ("z", "accuracy"))
    ]
    G = np.array([[-1.0, 0.9, 0.8], [-3.0, 0.7, 0.9]])
    assert base_forgetting(G, probes) == (pytest.approx((0.2 - 0.1) / 2), "fraction")
    assert base_forgetting(G[:, :1], probes[:1]) == (pytest.approx(2.0), "nats/token")
    lost, unit = base_forgetting(np.empty((2, 0)), [])
    assert math.isnan(lost) and unit is None


def test_the_envelope_is_monotone_and_below_every_point() -> None:
    envelope = lower_envelope(SWEEP)
    assert envelope == [(0.5, 0.1), (0.6, 0.1), (0.8, 0.3)]
    generator = np.random.default_rng(0)
    points = [(float(x), float(y)) for x, y in generator.random((40, 2))]
    levels, lost = np.array(lower_envelope(points)).T
    assert np.all(np.diff(levels) > 0) and np.all(np.diff(lost) >= 0)
    assert all(np.interp(x, levels, lost) <= y + 1e-12 for x, y in points)
    assert lower_envelope([(0.5, 0.2), (0.5, 0.1)]) == [(0.5, 0.1)] and lower_envelope([]) == []


@pytest.mark.parametrize(("level", "lost"), [(0.5, 0.1), (0.55, 0.1), (0.7, 0.2), (0.8, 0.3)])
def test_reading_between_points_is_linear(level: float, lost: float) -> None:
    reading = read_envelope(lower_envelope(SWEEP), level)
    assert (reading.value, reading.why) == (pytest.approx(lost), "")


@pytest.mark.parametrize(
    ("level", "why"), [(0.81, "learned at most 80 %"), (0.49, "learned at least 50 %; add a smaller learning rate")]
)
def test_nothing_is_extrapolated(level: float, why: str) -> None:
    reading = read_envelope(lower_envelope(SWEEP), level)
    assert math.isnan(reading.value) and reading.why == why
    assert read_envelope([], level).why == "no finished run"


def test_the_common_level_is_the_smallest_maximum() -> None:
    a, b, c = [(0.2, 0.0), (0.9, 0.1)], [(0.1, 0.0), (0.6, 0.3)], [(0.7, 0.0), (0.8, 0.1)]
    assert common_level({"a": a, "b": b}) == 0.6
    assert math.isnan(common_level({"a": a, "b": b, "c": c}))
    assert math.isnan(common_level({"a": a})) and math.isnan(common_level({"a": a, "b": []}))


def test_the_common_range_is_what_all_span() -> None:
    a, b, c = [(0.2, 0.0), (0.9, 0.1)], [(0.1, 0.0), (0.6, 0.3)], [(0.7, 0.0), (0.8, 0.1)]
    assert common_range({"a": a, "b": b}) == (0.2, 0.6)
    for nothing in ({"a": a, "b": b, "c": c}, {"a": a}, {"a": a, "b": []}):
        assert all(math.isnan(end) for end in common_range(nothing))


def test_the_area_is_the_mean_over_the_range() -> None:
    """(0, 0) (0.4, 0.1) (1, 0.4): the trapezia by hand."""
    curve = [(0.0, 0.0), (0.4, 0.1), (1.0, 0.4)]
    assert mean_between(curve, 0.0, 1.0) == pytest.approx(0.4 * 0.05 + 0.6 * 0.25)
    assert mean_between(curve, 0.2, 0.7) == pytest.approx((0.2 * 0.075 + 0.3 * 0.175) / 0.5)
    assert mean_between(curve, 0.5, 0.6) == pytest.approx(0.175)
    for low, high in ((-0.1, 0.5), (0.5, 1.1), (0.5, 0.5), (0.6, 0.5), (math.nan, math.nan)):
        assert math.isnan(mean_between(curve, low, high)), (low, high)
    assert math.isnan(mean_between([], 0.0, 1.0))


@pytest.mark.parametrize(
    ("budget", "learned", "why"),
    [
        (0.05, 0.3, ""),
        (0.1, 0.5, ""),
        (0.25, 0.65, ""),
        (0.02, 0.2, ""),
        (0.01, math.nan, "lost at least 2 points; add a smaller learning rate"),
        (0.4, 0.8, "the sweep ends within the budget: it may be more"),
        (0.5, 0.8, "the sweep ends within the budget: it may be more"),
    ],
)
def test_the_most_that_is_learned_within_a_budget(budget: float, learned: float, why: str) -> None:
    curve = [(0.2, 0.02), (0.4, 0.08), (0.5, 0.1), (0.8, 0.4)]
    found = most_within(curve, budget, "fraction")
    assert found.why == why and found.value == pytest.approx(learned, nan_ok=True)
    assert most_within([], budget, "fraction").why == "no finished run"


def test_a_loss_is_given_in_the_unit_of_the_probes() -> None:
    """1.25 points, where the budget's column says 1.0 points."""
    for unit, said in (("fraction", "1.25 points"), ("nats/token", "0.0125 nats/token")):
        assert most_within([(0.2, 0.0125)], 0.01, unit).why == f"lost at least {said}; add a smaller learning rate"


def test_the_reference_is_the_better_plain_method() -> None:
    readings = {"full": Reading(0.3), "lora": Reading(0.2), "ours": Reading(0.02), "late": Reading(math.nan)}
    assert reference_of(readings, ["full", "lora", "late"]) == "lora"
    assert reference_of(readings, ["late"]) is None
    assert ratio_to(0.02, 0.2) == pytest.approx(0.1)
    assert all(math.isnan(ratio_to(*pair)) for pair in ((0.1, 0.0), (0.1, -0.1), (-0.1, 0.2), (0.1, math.nan)))
