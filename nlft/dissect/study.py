"""What every analysis looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from nlft.base import FrozenBase, in_dtype, load_base
from nlft.config import Recipe
from nlft.methods.protocol import Method
from nlft.prepare import Prepared
from nlft.scoring import measure
from nlft.types import Condition, Evaluation, Item, Row

ROWS = 64
"""Rows of a column that are scored at most in every repetition, spread evenly over the column."""


@dataclass(frozen=True)
class Study:
    """A model that has learned all tasks; every analysis leaves it as it is, bit for bit."""

    learner: Method
    model: Any
    base: FrozenBase
    recipe: Recipe
    """With one method and one learning rate."""
    prepared: Prepared
    stage: int
    """Of the last task."""

    @cached_property
    def untouched(self) -> FrozenBase:
        """The base as it was: a second copy where the method has trained the first, in its dtype."""
        if not self.learner.changes_base:
            return self.base
        fresh = load_base(self.recipe.base)
        in_dtype(fresh.model, next(self.model.parameters()).dtype)  # in place, as all of torch's casts of modules
        return fresh

    def score(self, prepared: Prepared, called: Condition, under: Condition = "on") -> list[Item]:
        """Scores rows under a condition of the method, noted under another name."""
        items = measure(self.model, self.base, self.recipe, prepared, self.stage, under, self.learner)
        return [replace(item, condition=called) for item in items]

    def few(self, keep: Callable[[Evaluation], bool] = lambda _: True, most: int = ROWS) -> Prepared:
        """The columns that are kept, with few rows each."""

        def cut(evaluations: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
            return tuple(fewer(one, most) for one in evaluations if keep(one))

        return self.with_columns(cut)

    def with_columns(self, change: Callable[[Sequence[Evaluation]], tuple[Evaluation, ...]]) -> Prepared:
        """The rows of the recipe with other evaluations."""
        domains = self.prepared.domains
        tasks = tuple(replace(task, evaluations=change(task.evaluations)) for task in domains.tasks)
        return replace(self.prepared, domains=replace(domains, tasks=tasks, probes=change(domains.probes)))


def fewer(evaluation: Evaluation, most: int) -> Evaluation:
    """The column with at most so many rows; of a task of lm-eval the first documents."""
    harness = evaluation.harness
    if harness is not None:
        harness = replace(harness, limit=min(most, harness.limit or most))
    return replace(evaluation, rows=tuple(spread(evaluation.rows, most)), harness=harness)


def spread(rows: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the rows, evenly over all."""
    return list(rows) if len(rows) <= most else [rows[i * len(rows) // most] for i in range(most)]


def whole_text(row: Row) -> str:
    """A row as one text, its completion included; empty for a conversation."""
    return "" if row.messages else row.prompt + row.join + row.completion
