"""Envelopes row by row against their plain twins in `frontier.py`."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nlft.measure.curve import envelopes_of, learned_within, mean_of_curves, read_curves
from nlft.measure.frontier import Point, lower_envelope, mean_between, most_within, read_envelope

ROWS = 300


def cloud(points: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[list[Point]]]:
    """Rows of random points on a coarse grid, so that some are equal, and some missing."""
    generator = np.random.default_rng(seed)
    learning = generator.integers(0, 11, (ROWS, points)) / 10
    lost = generator.integers(-2, 8, (ROWS, points)) / 10
    learning[generator.random(learning.shape) < 0.2] = np.nan
    lost[generator.random(lost.shape) < 0.1] = np.nan
    rows = [lower_envelope(list(zip(x, y, strict=True))) for x, y in zip(learning.tolist(), lost.tolist(), strict=True)]
    return learning, lost, rows


@pytest.mark.parametrize("points", [1, 2, 5])
def test_reading_agrees_with_the_twin(points: int) -> None:
    learning, lost, rows = cloud(points, points)
    curves = envelopes_of(learning, lost)
    assert any(not row for row in rows) or points == 5
    for level in (-0.1, 0.0, 0.35, 0.5, 0.55, 1.0, 1.01, math.nan):
        expected = [math.nan if math.isnan(level) else read_envelope(row, level).value for row in rows]
        np.testing.assert_allclose(read_curves(curves, level), expected, atol=1e-12)
    ends = [(row[0][0], row[-1][0]) if row else (math.nan, math.nan) for row in rows]
    np.testing.assert_array_equal(np.stack([curves.least, curves.most], axis=1), np.array(ends))
    levels = np.random.default_rng(9).random(ROWS)
    expected = [read_envelope(row, level).value for row, level in zip(rows, levels.tolist(), strict=True)]
    np.testing.assert_allclose(read_curves(curves, levels), expected, atol=1e-12)


@pytest.mark.parametrize("points", [1, 2, 5])
def test_areas_and_budgets_agree_with_the_twins(points: int) -> None:
    learning, lost, rows = cloud(points, 10 + points)
    curves = envelopes_of(learning, lost)
    generator = np.random.default_rng(3)
    low, width = generator.random(ROWS) * 0.6, generator.random(ROWS) * 0.4 - 0.05
    expected = [mean_between(row, a, b) for row, a, b in zip(rows, low.tolist(), (low + width).tolist(), strict=True)]
    np.testing.assert_allclose(mean_of_curves(curves, low, low + width), expected, atol=1e-12)
    assert points == 1 or np.isfinite(expected).sum() > 20
    for budget in (-0.3, 0.0, 0.05, 0.1, 0.33, 0.9):
        expected = [most_within(row, budget, "fraction").value for row in rows]
        np.testing.assert_allclose(learned_within(curves, budget), expected, atol=1e-12)
