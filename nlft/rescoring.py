"""Scores taken again, beside those that were measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nlft.types import Item

NEAR, FAR = 1e-4, 1e-3
"""Difference of a mean that rounding makes on the same machine and on another one; relative for values above 1."""
LOSSY = 0.01
"""What a shorter dtype may cost: one point of a score, or 1 % of a likelihood."""
FEW = 0.01
"""Share of rows whose answer may flip on another machine."""


@dataclass(frozen=True)
class Check:
    """One line of a verification."""

    name: str
    found: str
    wanted: str
    ok: bool | None
    """None: not checked, and why is in `found`."""


def compare_items(before: Sequence[Item], after: Sequence[Item], exact: bool, lossy: bool) -> list[Check]:
    """Compares the means of every column and metric.

    Args:
        before: what was measured.
        after: what another process scored.
        exact: both ran where the same model gives the same bits: no answer may differ, and no mean by more than 1e-4;
            and the rows are those that were measured.
        lossy: learned rows were stored in a shorter dtype than they were trained in: a mean may differ by one point,
            or by one row where there are fewer than 100, and a likelihood by 1 %.

    Returns:
        One line a column and metric.
    """
    return [
        compare_column(column, metric, chosen(before, column, metric), chosen(after, column, metric), exact, lossy)
        for column, metric in dict.fromkeys((item.column, item.metric) for item in before)
    ]


def compare_column(column: str, metric: str, before: list[Item], after: list[Item], exact: bool, lossy: bool) -> Check:
    """One column and metric."""
    name = f"score {column} ({metric})"
    if [item.item_id for item in before] != [item.item_id for item in after]:
        others = f"{len(after)} rows, which are others than those measured"
        return Check(name, others, f"{len(before)} rows", False if exact else None)
    wanted, found = mean(before), mean(after)
    if math.isnan(wanted) or math.isnan(found):
        return Check(name, f"{found:.4f}", f"{wanted:.4f}", math.isnan(wanted) == math.isnan(found))
    whole = all(item.value in (0.0, 1.0) for item in (*before, *after))
    flipped = sum(one.value != two.value for one, two in zip(before, after, strict=True))
    scale = max(1.0, abs(wanted))
    if whole and not lossy:
        most = 0 if exact else max(1, round(FEW * len(before)))
        shown = f"{found:.4f}, {flipped} of {len(before)} answers changed"
        return Check(name, shown, f"{wanted:.4f}, at most {most} changed", flipped <= most)
    tolerance = LOSSY * scale if lossy else (NEAR if exact else FAR) * scale
    if whole:
        tolerance = max(LOSSY, 1 / len(before))
    within = abs(found - wanted) <= tolerance + 1e-9
    return Check(name, f"{found:.4f} ({found - wanted:+.4f})", f"{wanted:.4f} ± {tolerance:.2g}", within)


def chosen(items: Sequence[Item], column: str, metric: str) -> list[Item]:
    """The items of one column and metric."""
    return [item for item in items if (item.column, item.metric) == (column, metric)]


def mean(items: Sequence[Item]) -> float:
    """The column's value; NaN where an item was not measured."""
    return sum(item.value * item.weight for item in items) / (sum(item.weight for item in items) or math.nan)
