"""Scoring a model on every column of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from peft import PeftModel

from nlft.base import FrozenBase, load_base
from nlft.config import BaseConfig, Recipe
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
    """Scores every evaluation of a recipe at one stage, as the method wants it if one is given."""

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
        )

    items = []
    for evaluation in prepared.domains.evaluations:
        items += learner.score(model, evaluation, condition, ask) if learner else ask(model, evaluation)
    return items


def _untouched(config: BaseConfig) -> Any:
    return load_base(config).model
