"""Learning against forgetting: how much each method forgets where it has learned as much as the others.

One method at one learning rate is a point; a smaller rate forgets less and learns less, so points of
two methods cannot be compared. Each method's sweep gives a curve, and curves are compared at the same learning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nlft.measure.matrix import Column, Matrix, orient
from nlft.measure.unit import change_unit, is_bounded, pick_unit, show_level

LEVELS = (0.5, 0.7, 0.9)
"""Levels of normalised learning at which methods are compared."""

Point = tuple[float, float]
"""(learning, forgetting) of a run, or the mean over runs."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read off the curve of one method, or why nothing was; a value with a reason is a limit."""

    value: float
    why: str = ""


def ceilings(matrices: Sequence[Matrix], columns: Sequence[Column]) -> Matrix:
    """The most that can be learned in each column, oriented: [J].

    1 where values are bounded by 1; else the best value that any run of the comparison had at any stage.
    """
    found = [orient(R, columns) for R in matrices]
    stacked = np.concatenate(found) if found else np.empty((0, len(columns)))
    best = np.max(np.where(np.isfinite(stacked), stacked, -np.inf), axis=0, initial=-np.inf)
    bounded = np.array([column.bounded for column in columns], dtype=bool)
    return np.where(bounded, 1.0, np.where(np.isfinite(best), best, np.nan))


def normalised_learning(R: Matrix, ceiling: Matrix) -> tuple[float, float]:
    """How much of what could be learned was: right after each task's own training, and at the end.

    mean_j (R[j,j] - b_j) / (s_j - b_j) and mean_j (R[T,j] - b_j) / (s_j - b_j): 0 is the base, 1 the ceiling. A task
    whose base is at its ceiling has nothing to learn and is left out.

    Args:
        R: [T+1, T], oriented, columns in the order of training, row 0 the base.
        ceiling: s [T], oriented.
    """
    tasks = np.arange(R.shape[1])
    room = ceiling - R[0]
    with np.errstate(invalid="ignore"):
        kept = ~(room <= 1e-12)
    if not kept.any():
        return math.nan, math.nan
    now = (R[tasks + 1, tasks] - R[0])[kept] / room[kept]
    end = (R[-1] - R[0])[kept] / room[kept]
    return float(now.mean()), float(end.mean())


def base_forgetting(G: Matrix, columns: Sequence[Column]) -> tuple[float, str | None]:
    """What the probes lost from the base to the end, mean over the probes of one unit, and that unit.

    Bounded units first where probes mix several (accuracies before likelihoods); (NaN, None) without probes.

    Args:
        G: [S+1, J] oriented, the columns of the probes.
        columns: the probes.
    """
    unit = pick_unit([column.unit for column in columns])
    chosen = [j for j, column in enumerate(columns) if column.unit == unit]
    return (float(np.mean(G[0, chosen] - G[-1, chosen])) if chosen else math.nan), unit


def lower_envelope(points: Sequence[Point]) -> list[Point]:
    """The monotone lower envelope of a sweep: at every point's learning, the least forgetting of all points that
    learned at least as much. Sorted by learning; points with a NaN are left out."""
    finite = [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
    best: dict[float, float] = {}
    for learning, lost in finite:
        best[learning] = min(lost, best.get(learning, math.inf))
    levels = sorted(best)
    least = np.minimum.accumulate([best[level] for level in reversed(levels)])[::-1] if levels else []
    return [(level, float(lost)) for level, lost in zip(levels, least, strict=True)]


def read_envelope(envelope: Sequence[Point], level: float) -> Reading:
    """Forgetting at a level of learning, between two points by a straight line; never beyond the last point."""
    if not envelope:
        return Reading(math.nan, "no finished run")
    least, most = envelope[0][0], envelope[-1][0]
    if level > most + 1e-9:
        return Reading(math.nan, f"learned at most {show_level(most)}")
    if level < least - 1e-9:
        return Reading(math.nan, f"learned at least {show_level(least)}; add a smaller learning rate")
    return Reading(float(np.interp(level, [p[0] for p in envelope], [p[1] for p in envelope])))


def common_range(envelopes: Mapping[str, Sequence[Point]]) -> tuple[float, float]:
    """Learning that every method spans, from the largest least to the smallest most; (NaN, NaN) if their ranges do not
    meet, or with fewer than two methods."""
    if len(envelopes) < 2 or not all(envelopes.values()):
        return math.nan, math.nan
    most = min(envelope[-1][0] for envelope in envelopes.values())
    least = max(envelope[0][0] for envelope in envelopes.values())
    return (least, most) if most >= least else (math.nan, math.nan)


def common_level(envelopes: Mapping[str, Sequence[Point]]) -> float:
    """The largest learning that every method reached; NaN if their ranges do not meet, or with one method."""
    return common_range(envelopes)[1]


def mean_between(envelope: Sequence[Point], low: float, high: float) -> float:
    """Mean forgetting over a range of learning: the area under the curve by the range's width (its hypervolume).

    NaN where the curve does not span the range, or the range has no width.
    """
    ends = read_envelope(envelope, low).value, read_envelope(envelope, high).value
    if any(map(math.isnan, ends)) or not high - low > 1e-9:
        return math.nan
    inner = [point for point in envelope if low < point[0] < high]
    points = [(low, ends[0]), *inner, (high, ends[1])]
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))
    return area / (high - low)


def most_within(envelope: Sequence[Point], budget: float, unit: str) -> Reading:
    """The largest learning at which no more than the budget was lost; `why` where there is none, or where the sweep
    ended before the budget was spent, so that the value is a lower limit. `unit` is that of the probes."""
    if not envelope:
        return Reading(math.nan, "no finished run")
    if envelope[0][1] > budget + 1e-9:
        # Three digits, not the one behind the point of tables: 1.04 points are more than a budget of 1.0.
        least = envelope[0][1] * (100 if is_bounded(unit) else 1)
        return Reading(math.nan, f"lost at least {least:.3g} {change_unit(unit)}; add a smaller learning rate")
    if envelope[-1][1] <= budget + 1e-9:
        return Reading(envelope[-1][0], "the sweep ends within the budget: it may be more")
    right = next(i for i, point in enumerate(envelope) if point[1] > budget + 1e-9)
    (x, y), (x_next, y_next) = envelope[right - 1 : right + 1]
    return Reading(x + (x_next - x) * min(max((budget - y) / (y_next - y), 0.0), 1.0))


def reference_of(readings: Mapping[str, Reading], plain: Sequence[str]) -> str | None:
    """The best of the plain methods (full finetuning and LoRA without replay) at a level, if any reached it."""
    reached = [name for name in plain if not math.isnan(readings[name].value)]
    return min(reached, key=lambda name: readings[name].value, default=None)


def ratio_to(value: float, reference: float) -> float:
    """Forgetting as a multiple of the reference's; NaN where one of the two forgot nothing or gained."""
    return value / reference if reference > 0 and value >= 0 else math.nan
