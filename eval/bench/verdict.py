"""Targets and what was measured for them."""

from __future__ import annotations

from typing import NamedTuple

from rich.table import Table


class Verdict(NamedTuple):
    """A target, and what was measured for it."""

    what: str
    value: float
    bound: float
    at_most: bool = True

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound


def marked(value: float, bound: float | None, at_most: bool = True) -> str:
    """A ratio, green where its target is met and red with a ! where it is missed."""
    if bound is None:
        return f"{value:.2f}"
    return f"[green]{value:.2f}[/]" if Verdict("", value, bound, at_most).met else f"[red]{value:.2f} ![/]"


def verdict_table(verdicts: list[Verdict]) -> Table:
    """Every target with what was measured."""
    table = Table("target", "", "bound", "measured", "", title="Targets")
    for one in verdicts:
        sign, said = ("<=" if one.at_most else ">="), ("[green]met[/]" if one.met else "[red]missed[/]")
        table.add_row(one.what, sign, f"{one.bound:.2f}", f"{one.value:.2f}", said)
    return table
