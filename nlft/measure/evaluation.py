"""What a metric needs of its rows; checked before a model is loaded, so nothing here imports torch."""

from __future__ import annotations

from nlft.errors import DataError
from nlft.measure.metric import metric_spec, text_scorer
from nlft.types import Evaluation


def check_evaluation(evaluation: Evaluation) -> None:
    """Refuses an evaluation that its metric cannot score, before a model is asked.

    Raises:
        DataError: no rows, plain text where an answer is wanted, or rows without choices.
        RecipeError: a metric that cannot be loaded.
    """
    if evaluation.harness is not None:
        return
    if not evaluation.rows:
        raise DataError(
            f"{evaluation.column!r} has no rows to score.", "Check the path, `limit` and `skip` of its data."
        )
    scoring = metric_spec(evaluation.metric).scoring
    if scoring == "generation":
        text_scorer(evaluation.metric)
    for row in evaluation.rows:
        where = row.source or "A row"
        if scoring == "generation" and not row.prompt and not row.messages:
            raise DataError(
                f"{where} is plain text without a prompt; {evaluation.metric!r} scores answers.",
                "Score plain text with the metric `nll`.",
            )
        if scoring != "choice":
            continue
        if len(row.choices) < 2:
            raise DataError(
                f"{where} has {len(row.choices)} choices; the metric 'accuracy' chooses between two or more.",
                "Give the row `choices` and the index of the right one, or take the metric `exact_match`.",
            )
        if row.gold is None or not 0 <= row.gold < len(row.choices):
            raise DataError(
                f"{where} has {len(row.choices)} choices and {row.gold} as the index of the right one.",
                f"It is a whole number from 0 to {len(row.choices) - 1}.",
            )
