"""Upper bounds of learning: a task alone, and all tasks at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nlft.measure.matrix import Column, Matrix


def bounds_of(
    rows: Sequence[Mapping[str, Any]], matrices: Mapping[str, Matrix], columns: Sequence[Column]
) -> dict[str, Any]:
    """What each method reached on a task alone and on all tasks at once."""
    return {}
