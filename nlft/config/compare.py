"""Which runs a comparison makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from nlft.config.section import Section


class BoundsConfig(Section):
    """Upper bounds of learning, each for methods by name, at every rate of theirs."""

    single: list[str] = Field(default_factory=list)
    """Methods that learn every task alone as well. The first stage of a sequence counts, so that only what no order
    begins with is run: nothing where `orders` is `latin`."""
    multitask: list[str] = Field(default_factory=list)
    """Methods that learn all tasks at once as well: their rows mixed, in one stage of as many steps as the sequence."""


class CompareConfig(Section):
    """Which runs a comparison makes: methods × learning rates × steps × seeds × orders."""

    seeds: list[int] = Field(default=[0], min_length=1)
    """Each is added to `train.seeds`."""
    orders: Literal["latin"] | list[list[str]] | None = None
    """Task orders by name; `latin` is as many orders as there are tasks, the recipe's order rotated by one each time,
    so that every task stands once in every place; the recipe's order alone when empty."""
    widen: int = Field(default=0, ge=0)
    """Rounds in which a method that learned most at an end of its learning rates gets a rate beyond that end."""
    bounds: BoundsConfig = BoundsConfig()
    """Upper bounds of learning."""

    @field_validator("orders", mode="before")
    @classmethod
    def orders_known(cls, value: Any) -> Any:
        """One word is possible, and lists of lists."""
        if isinstance(value, str) and value != "latin":
            raise ValueError(f"{value!r} is neither `latin` nor lists of task names, as [[a, b], [b, a]]")
        return value

    def orders_of(self, tasks: Sequence[str]) -> list[list[str]]:
        """Every order of the tasks; `latin` is the cyclic Latin square [n, n], not shuffled."""
        names = list(tasks)
        if self.orders == "latin":
            return [names[shift:] + names[:shift] for shift in range(len(names))]
        return [list(order) for order in self.orders] if self.orders else [names]
