"""nlft's metrics as `evaluate.Metric` classes; they need neither download nor network.

Each `compute(predictions=…, references=…)` gives the mean under the metric's name and the value of every
item under `per_item`. Importing this module imports `evaluate`, which takes seconds: do it inside functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import evaluate
from datasets import Features, Value
from datasets import Sequence as Several

from nlft.measure import metric


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _describe(description: str, inputs: str, *layouts: Features) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(description=description, citation="", inputs_description=inputs, features=list(layouts))


_TEXT = Features({"predictions": Value("string"), "references": Value("string")})
_TEXTS = Features({"predictions": Value("string"), "references": Several(Value("string"))})
_TEXT_INPUTS = "predictions: texts. references: a text, or a list of accepted texts, for each."
_COSTS = Features({"predictions": Value("float64"), "references": Value("int64")})


class _TextMetric(evaluate.Metric):
    key: str
    description_: str

    def _info(self) -> evaluate.MetricInfo:
        return _describe(self.description_, _TEXT_INPUTS, _TEXTS, _TEXT)

    def _compute(self, predictions: list[str], references: list[Any]) -> dict[str, Any]:
        scorer = metric.text_scorer(self.key)
        accepted = [[entry] if isinstance(entry, str) else list(entry) for entry in references]
        values = [scorer(text, answers) for text, answers in zip(predictions, accepted, strict=True)]
        return {self.key: _mean(values), "per_item": values}


class ExactMatch(_TextMetric):
    """Fraction of predictions that are one of their references; white space is collapsed, case counts."""

    key = "exact_match"
    description_ = "Fraction of predictions that are one of their references."


class AnswerF1(_TextMetric):
    """Mean word F1 at the best reference, without case, punctuation and articles (SQuAD)."""

    key = "f1"
    description_ = "Mean word F1 at the best reference, normalised as in SQuAD."


class Accuracy(evaluate.Metric):
    """Fraction of predicted choice indices that are the right ones."""

    def _info(self) -> evaluate.MetricInfo:
        layout = Features({"predictions": Value("int64"), "references": Value("int64")})
        return _describe("Fraction of choices that are right.", "Indices of choices.", layout)

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, Any]:
        values = [float(chosen == gold) for chosen, gold in zip(predictions, references, strict=True)]
        return {"accuracy": _mean(values), "per_item": values}


class NegativeLogLikelihood(evaluate.Metric):
    """Sum of the negative log-likelihoods (nats) over the sum of the tokens."""

    def _info(self) -> evaluate.MetricInfo:
        inputs = "predictions: nats of each text. references: target tokens of each text."
        return _describe("Nats per target token, over all texts.", inputs, _COSTS)

    def _compute(self, predictions: list[float], references: list[int]) -> dict[str, Any]:
        values = [metric.nats_per_token(*pair) for pair in zip(predictions, references, strict=True)]
        return {"nll": metric.nats_per_token(sum(predictions), sum(references)), "per_item": values}


class BitsPerByte(evaluate.Metric):
    """Sum of the negative log-likelihoods, in bits, over the sum of the UTF-8 bytes."""

    def _info(self) -> evaluate.MetricInfo:
        inputs = "predictions: nats of each text. references: UTF-8 bytes of each text."
        return _describe("Bits per byte, over all texts.", inputs, _COSTS)

    def _compute(self, predictions: list[float], references: list[int]) -> dict[str, Any]:
        values = [metric.bits_per_byte(*pair) for pair in zip(predictions, references, strict=True)]
        return {"bits_per_byte": metric.bits_per_byte(sum(predictions), sum(references)), "per_item": values}


CLASSES: dict[str, type[evaluate.Metric]] = {
    "exact_match": ExactMatch,
    "f1": AnswerF1,
    "accuracy": Accuracy,
    "accuracy_norm": Accuracy,
    "nll": NegativeLogLikelihood,
    "bits_per_byte": BitsPerByte,
}
"""The classes by the names that a recipe uses."""
