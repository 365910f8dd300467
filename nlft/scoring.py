"""Scoring a model on every column of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

from peft import PeftModel

from nlft.base import FrozenBase, load_base
from nlft.config import BaseConfig, Recipe
from nlft.distributed import dealt_out
from nlft.measure.score import score
from nlft.methods.protocol import Method
from nlft.prepare import Prepared
from nlft.types import Condition, Evaluation, Item


def measure(
    model: Any,
    base: FrozenBase,
    recipe: Recipe,
    prepared: Prepared,
    stage: int,
    condition: Condition,
    learner: Method | None = None,
) -> list[Item]:
    """Scores every evaluation of a recipe at one stage, as the method wants it if one is given.

    Several processes share the columns, and each gets all scores.
    """

    keeps_base = learner is None or not learner.changes_base

    def reference_of(network: Any) -> Callable[[], Any] | None:
        if keeps_base and isinstance(network, PeftModel):
            return None
        if learner is not None and keeps_base:
            return lambda: network  # nothing is trained
        return partial(_untouched, recipe.base)

    def ask(network: Any, evaluation: Evaluation) -> list[Item]:
        return score(
            network,
            base.tokenizer,
            evaluation,
            stage=stage,
            condition=condition,
            batch_size=recipe.measure.batch_size,
            max_length=prepared.max_length,
            max_new_tokens=recipe.measure.max_new_tokens,
            too_long=prepared.too_long[evaluation.column],
            reference=reference_of(network),
            encodings=prepared.encodings,
        )

    def of_column(evaluation: Evaluation) -> list[Item]:
        return learner.score(model, evaluation, condition, ask) if learner else ask(model, evaluation)

    columns = prepared.domains.evaluations
    # A column is scored whole by one process, so its batches are those of a process that is alone.
    return list(chain.from_iterable(dealt_out(of_column, columns, [len(one.rows) for one in columns])))


def _untouched(config: BaseConfig) -> Any:
    return load_base(config).model
