"""Many envelopes at once: the frontiers of every draw of a bootstrap, row by row.

The same definitions as in `frontier.py`, over the rows of arrays; the functions there are their plain twins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
NEAR = 1e-9
"""A level this near to the end of a curve is on it."""


@dataclass(frozen=True, slots=True)
class Curves:
    """Monotone lower envelopes, a row a draw: `learning` [D, P] rises along a row and `lost` [D, P] does not fall.

    Points that a draw does not have stand at the end of its row with learning +inf and lost +inf.
    """

    learning: Array
    lost: Array

    @property
    def least(self) -> Array:
        """Smallest learning of every curve, [D]; NaN without a point."""
        first = self.learning[:, 0]
        return np.where(np.isfinite(first), first, np.nan)

    @property
    def most(self) -> Array:
        """Largest learning of every curve, [D]; NaN without a point."""
        largest = np.max(np.where(np.isfinite(self.learning), self.learning, -np.inf), axis=1)
        return np.where(np.isfinite(largest), largest, np.nan)


def envelopes_of(learning: Array, lost: Array) -> Curves:
    """The envelope of every row of points, `frontier.lower_envelope` row by row.

    Args:
        learning, lost: [D, P], P at least 1; a point with a NaN is left out.
    """
    known = np.isfinite(learning) & np.isfinite(lost)
    x, y = np.where(known, learning, np.inf), np.where(known, lost, np.inf)
    order = np.lexsort((-y, x), axis=-1)  # of equal learning, the point that lost least comes last
    x, y = np.take_along_axis(x, order, 1), np.take_along_axis(y, order, 1)
    return Curves(x, np.minimum.accumulate(y[:, ::-1], axis=1)[:, ::-1])


def read_curves(curves: Curves, level: ArrayLike) -> Array:
    """Forgetting at a level, `frontier.read_envelope` row by row: [D], NaN where a curve does not reach.

    Args:
        level: one level, or one for each row [D]; NaN reads NaN.
    """
    x, y = curves.learning, curves.lost
    least, most = curves.least, curves.most
    wanted = np.broadcast_to(np.asarray(level, dtype=np.float64), least.shape)
    with np.errstate(invalid="ignore"):
        reached = (wanted >= least - NEAR) & (wanted <= most + NEAR)
        at = np.where(reached, np.clip(wanted, least, most), 0.0)
    rows = np.arange(len(x))
    left = np.maximum((x <= at[:, None]).sum(axis=1) - 1, 0)
    right = np.minimum(left + 1, x.shape[1] - 1)
    right = np.where(np.isfinite(x[rows, right]), right, left)
    start = x[rows, left]
    with np.errstate(invalid="ignore", divide="ignore"):
        width = x[rows, right] - start
        share = np.where(width > 0, (at - start) / width, 0.0)
        found = y[rows, left] + share * (y[rows, right] - y[rows, left])
    return np.where(reached, found, np.nan)


def mean_of_curves(curves: Curves, low: ArrayLike, high: ArrayLike) -> Array:
    """Mean forgetting between two levels, `frontier.mean_between` row by row: [D], NaN where a curve does not span."""
    first, last = read_curves(curves, low), read_curves(curves, high)
    low, high = (np.broadcast_to(np.asarray(end, dtype=np.float64), first.shape) for end in (low, high))
    # Straight between its points: the area is the sum of the trapezia between all points that lie within.
    inside = np.isfinite(curves.learning) & (curves.learning > low[:, None]) & (curves.learning < high[:, None])
    x = np.where(inside, curves.learning, np.inf)
    order = np.argsort(x, axis=1, kind="stable")
    x = np.take_along_axis(x, order, 1)
    y = np.take_along_axis(curves.lost, order, 1)
    missing = ~np.isfinite(x)
    x, y = np.where(missing, high[:, None], x), np.where(missing, last[:, None], y)
    x = np.concatenate([low[:, None], x, high[:, None]], axis=1)
    y = np.concatenate([first[:, None], y, last[:, None]], axis=1)
    area = ((x[:, 1:] - x[:, :-1]) * (y[:, 1:] + y[:, :-1]) / 2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        width = high - low
        return np.where(width > NEAR, area / width, np.nan)


def learned_within(curves: Curves, budget: float) -> Array:
    """Largest learning at which no more than the budget was lost, `frontier.most_within` row by row: [D]."""
    x, y = curves.learning, curves.lost
    rows = np.arange(len(x))
    kept = np.isfinite(x) & (y <= budget + NEAR)
    left = np.maximum(kept.sum(axis=1) - 1, 0)  # lost does not fall along a row: what is kept comes first
    right = np.minimum(left + 1, x.shape[1] - 1)
    more = np.isfinite(x[rows, right]) & (y[rows, right] > budget)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.clip((budget - y[rows, left]) / (y[rows, right] - y[rows, left]), 0, 1)
        found = x[rows, left] + np.where(more, share, 0.0) * np.where(more, x[rows, right] - x[rows, left], 0.0)
    return np.where(kept.any(axis=1), found, np.nan)
