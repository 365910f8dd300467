"""Where forgetting happens: what one run lost, taken apart by the conditions under which it was scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nlft.measure.matrix import Column
from nlft.types import Item


def where_of(row: Mapping[str, Any], items: Sequence[Item], columns: Sequence[Column]) -> dict[str, Any]:
    """The account of one run; empty if it was scored under no further condition."""
    return {}
