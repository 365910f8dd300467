"""Which runs a comparison makes."""

from __future__ import annotations

from pydantic import Field

from nlft.config.section import Section


class CompareConfig(Section):
    """Which runs a comparison makes: methods × learning rates × seeds × orders."""

    seeds: list[int] = Field(default=[0], min_length=1)
    """Each is added to `train.seeds`."""
    orders: list[list[str]] | None = None
    """Task orders by name; the recipe's order when empty."""
