"""Intervals and tests: against closed forms, by coverage, and where a bootstrap would lie."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nlft.errors import DataError
from nlft.measure import interval
from nlft.measure.interval import draw_clusters, paired_difference, sign_flip_p, wilson


def difference(before: list[float], after: list[float], clusters: list[int] | None = None, **options: object):
    ones = np.ones(len(before))
    return paired_difference(before, after, ones, ones, clusters or list(range(len(before))), **options)  # type: ignore[arg-type]


def test_width_agrees_with_the_normal_approximation() -> None:
    generator = np.random.default_rng(1)
    x = generator.normal(size=400)
    y = x + generator.normal(0.3, 0.5, size=400)
    found = difference(x.tolist(), y.tolist())
    error = 1.96 * np.std(y - x, ddof=1) / 20
    assert found.value == pytest.approx(np.mean(y - x))
    assert found.low == pytest.approx(found.value - error, abs=0.06 * error)
    assert found.high == pytest.approx(found.value + error, abs=0.06 * error)


def test_pairing_takes_out_what_items_share() -> None:
    x = np.linspace(-50, 50, 40)
    found = difference(x.tolist(), (x + 0.25).tolist())
    assert (found.low, found.high) == (pytest.approx(0.25), pytest.approx(0.25))


def test_items_about_one_thing_are_one_draw() -> None:
    generator = np.random.default_rng(2)
    shift = np.repeat(generator.normal(size=25), 16)
    clusters = np.repeat(np.arange(25), 16).tolist()
    x = np.zeros(400)
    apart, together = difference(x.tolist(), shift.tolist()), difference(x.tolist(), shift.tolist(), clusters)
    assert (together.n_items, together.n_clusters) == (400, 25)
    # 16 equal rows a cluster: a standard error 4 times as wide.
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(4.0, rel=0.12)


def test_weighted_values_are_ratios_of_sums() -> None:
    found = paired_difference([2.0, 4.0], [3.0, 4.0], [3.0, 1.0], [1.0, 1.0], ["a", "b"])
    assert found.value == pytest.approx(7 / 2 - 10 / 4)
    # The draws of two clusters: (a, a) 3 - 2, (b, b) 4 - 4, (a, b) the whole.
    assert (found.low, found.high) == (pytest.approx(0.0), pytest.approx(1.0))


def test_coverage_is_near_its_level() -> None:
    generator = np.random.default_rng(3)
    hits = 0
    for trial in range(300):
        kept = generator.random(60) >= 0.2
        x = np.ones(60)
        found = difference(x.tolist(), kept.astype(float).tolist(), draws=400, seed=trial, bounded=True)
        hits += found.low <= -0.2 <= found.high
    assert 0.90 <= hits / 300 <= 0.985


def test_no_change_is_not_certainty() -> None:
    ones = [1.0] * 50
    found = difference(ones, ones, bounded=True)
    limit = wilson(0, 50)[1]
    assert (found.value, found.low, found.high) == (0.0, -limit, limit)
    assert 0.05 < limit < 0.08
    found = difference(ones, ones)
    assert (found.low, found.high) == (0.0, 0.0)


def test_one_cluster_and_nan_have_no_interval() -> None:
    one = difference([1.0, 0.0], [0.0, 0.0], [7, 7])
    assert one.value == -0.5 and math.isnan(one.low) and one.n_clusters == 1
    missing = difference([1.0, math.nan], [0.0, 0.0])
    assert math.isnan(missing.value) and math.isnan(missing.high)


def test_draws_are_seeded_and_leave_the_global_state() -> None:
    x, y = list(np.linspace(0, 1, 30)), list(np.linspace(1, 0, 30) ** 2)
    state = np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    assert difference(x, y) == difference(x, y) != difference(x, y, seed=1)
    assert np.random.get_state()[1].tolist() == state  # type: ignore[union-attr]


def test_unpaired_items_are_refused() -> None:
    with pytest.raises(DataError, match="2 items before and 1 after"):
        paired_difference([1.0, 2.0], [1.0], [1.0, 1.0], [1.0], [0, 1])
    with pytest.raises(DataError, match="cannot be paired"):
        paired_difference([], [], [], [], [])


def test_wilson_has_width_at_the_ends() -> None:
    assert wilson(50, 100) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
    low, high = wilson(0, 100)
    assert low == pytest.approx(0.0, abs=1e-12) and high == pytest.approx(0.0370, abs=1e-4)
    assert all(math.isnan(limit) for limit in wilson(0, 0))


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 2, 3, 4, 5, 6], 2 / 64),
        ([-0.1, -0.2, -0.3, -0.4, -0.5], 2 / 32),
        ([0.1, 0.2], 0.5),
        ([1.0, -1.0], 1.0),
        ([0.3] * 6, 2 / 64),
    ],
)
def test_sign_flip_is_exact(differences: list[float], p: float) -> None:
    assert sign_flip_p(differences) == pytest.approx(p)


def test_sign_flip_needs_two_pairs_of_numbers() -> None:
    assert math.isnan(sign_flip_p([0.2])) and math.isnan(sign_flip_p([0.2, math.nan]))


@pytest.mark.parametrize("seed", [7, np.random.SeedSequence(7)])
def test_as_many_clusters_are_drawn_as_there_are(seed: int | np.random.SeedSequence, monkeypatch) -> None:
    """In one piece and in several; every one as likely as any other."""
    for chunk in (2_000_000, 1000):
        monkeypatch.setattr(interval, "CHUNK", chunk)
        counts = np.concatenate(list(draw_clusters(30, 2000, seed)))
        assert counts.shape == (2000, 30) and (counts.sum(axis=1) == 30).all()
        np.testing.assert_allclose(counts.mean(axis=0), 1.0, atol=0.12)
        assert counts.var() == pytest.approx(1 - 1 / 30, rel=0.03)
