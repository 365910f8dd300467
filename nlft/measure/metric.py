"""Metrics: what a score means, and how one prediction is scored.

The functions here are pure and score one item; `evaluate_metric.py` offers the same metrics as
`evaluate.Metric` classes. Both work without network.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import TYPE_CHECKING, Literal

from nlft.errors import RecipeError

if TYPE_CHECKING:  # importing evaluate takes seconds
    import evaluate

Scoring = Literal["generation", "choice", "likelihood", "divergence"]
TextScorer = Callable[[str, Sequence[str]], float]
"""Scores a prediction against the accepted answers; the best answer counts."""


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """What a metric's values mean."""

    name: str
    scoring: Scoring
    """What the model has to do for it: write an answer, choose one, or predict a text token by token, alone or beside
    the base."""
    unit: str
    higher_is_better: bool


METRICS: dict[str, MetricSpec] = {
    spec.name: spec
    for spec in (
        MetricSpec("exact_match", "generation", "fraction", True),
        MetricSpec("answer_match", "generation", "fraction", True),
        MetricSpec("f1", "generation", "fraction", True),
        MetricSpec("contains", "generation", "fraction", True),
        MetricSpec("accuracy", "choice", "fraction", True),
        MetricSpec("accuracy_norm", "choice", "fraction", True),
        MetricSpec("margin", "choice", "nats", True),
        MetricSpec("nll", "likelihood", "nats/token", False),
        MetricSpec("bits_per_byte", "likelihood", "bits/byte", False),
        MetricSpec("kl", "divergence", "nats of KL/token", False),
    )
}
"""nlft's own metrics by name."""

HARNESS_FRACTIONS = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "acc_all", "em", "likelihood", "mrr", "r@2")
"""Metrics of lm-evaluation-harness that lie between 0 and 1; they are computed by its tasks."""


def metric_spec(name: str) -> MetricSpec:
    """What the values of metric `name` mean; loads nothing.

    A name that is not nlft's own belongs to an `evaluate` metric: text is generated and more is better.
    """
    if name in HARNESS_FRACTIONS:
        return MetricSpec(name, "generation", "fraction", True)
    return METRICS.get(name) or MetricSpec(name, "generation", "score", True)


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the prediction is one of the references, else 0.0. White space is collapsed; case counts."""
    return float(" ".join(prediction.split()) in {" ".join(reference.split()) for reference in references})


def answer_words(text: str) -> list[str]:
    """Words of an answer without case, ASCII punctuation and English articles (SQuAD, Rajpurkar et al. 2016).

    An answer that is nothing but an article, such as the label "A", keeps its words.
    """
    words = text.lower().translate(str.maketrans("", "", string.punctuation)).split()
    return [word for word in words if not re.fullmatch("a|an|the", word)] or words


def answer_f1(prediction: str, references: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over words, at the best reference (SQuAD). In [0, 1]."""
    return max(_words_f1(answer_words(prediction), answer_words(reference)) for reference in references)


def _words_f1(predicted: list[str], expected: list[str]) -> float:
    if not predicted or not expected:
        return float(predicted == expected)
    shared = (Counter(predicted) & Counter(expected)).total()
    return 2 * shared / (len(predicted) + len(expected))


def answer_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the words of the prediction are those of a reference, else 0.0 (SQuAD's exact match)."""
    words = answer_words(prediction)
    return float(any(words == answer_words(reference) for reference in references))


def contains(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the words of a reference occur in the prediction one after another, else 0.0."""
    words = answer_words(prediction)

    def occurs(wanted: list[str]) -> bool:
        return any(words[at : at + len(wanted)] == wanted for at in range(len(words) - len(wanted) + 1))

    return float(any(occurs(wanted) for wanted in map(answer_words, references) if wanted))


def choose(log_likelihoods: Sequence[float]) -> int:
    """Index of the likeliest choice; the first one where several are equal."""
    return max(range(len(log_likelihoods)), key=log_likelihoods.__getitem__)


def choice_margin(log_likelihoods: Sequence[float], gold: int) -> float:
    """Log-likelihood of the right choice less that of the best other, in nats: above 0 where it is chosen.

    NaN if one of them is.
    """
    if any(map(math.isnan, log_likelihoods)):
        return math.nan
    return log_likelihoods[gold] - max(each for i, each in enumerate(log_likelihoods) if i != gold)


def nats_per_token(nats: float, tokens: int) -> float:
    """Negative log-likelihood of a text in nats per token."""
    return nats / tokens


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Negative log-likelihood of a text in bits per UTF-8 byte: comparable between tokenizers.

    The cost of the end-of-sequence token, where it is a target, is part of `nats`; it has no byte.
    """
    return nats / math.log(2) / n_bytes


def text_scorer(name: str) -> TextScorer:
    """The function that scores one generated text for the generation metric `name`.

    An `evaluate` metric is called once an item (about 10 ms). One that takes a single reference is called for
    every reference and the best value counts.

    Raises:
        RecipeError: the metric cannot be loaded, takes no text, or gives several numbers.
    """
    own: dict[str, TextScorer] = {
        "exact_match": exact_match,
        "answer_match": answer_match,
        "f1": answer_f1,
        "contains": contains,
    }
    return own[name] if name in own else _foreign_scorer(name)


def load_metric(name: str) -> evaluate.EvaluationModule:
    """An `evaluate` metric: one of nlft's own by name, else a local directory or file, else a Hub id.

    `name` may end in `#key`, the number to take where a metric gives several (`metrics/rouge#rougeL`).
    A metric that is not nlft's own is Python code and runs here: name only what you trust.

    Raises:
        RecipeError: nothing can be loaded under this name.
    """
    from nlft.measure.evaluate_metric import CLASSES

    if name in CLASSES:
        return CLASSES[name]()
    return _load_foreign(name.partition("#")[0])


@lru_cache(maxsize=16)
def _load_foreign(path: str) -> evaluate.EvaluationModule:
    import evaluate

    try:
        return evaluate.load(path, keep_in_memory=True)
    except Exception as error:  # the metric's own code runs here, so anything may come out
        raise RecipeError(
            [f"metric: {path!r} cannot be loaded ({type(error).__name__}: {_first_line(error)})."],
            f"A metric is one of nlft's own ({', '.join(METRICS)}), the path of a local directory or file "
            "with an `evaluate.Metric`, or the Hub id of one (needs network).",
        ) from error


def _foreign_scorer(name: str) -> TextScorer:
    import datasets

    path, _, key = name.partition("#")
    module = _load_foreign(path)
    layouts = module.features if isinstance(module.features, list) else [module.features]
    takes_several = any(not isinstance(layout.get("references"), datasets.Value) for layout in layouts)

    def compute(prediction: str, reference: str | list[str]) -> float:
        try:
            result = module.compute(predictions=[prediction], references=[reference])
        except Exception as error:  # as above
            raise RecipeError(
                [f"metric: {path!r} fails on a text ({type(error).__name__}: {_first_line(error)})."],
                "nlft gives a metric one predicted text and its references; choose one that takes texts.",
            ) from error
        return _number(result or {}, key or module.name, name)

    def scorer(prediction: str, references: Sequence[str]) -> float:
        if takes_several:
            return compute(prediction, list(references))
        return max(compute(prediction, reference) for reference in references)

    return scorer


def _number(result: dict[str, object], key: str, name: str) -> float:
    numbers = {entry: float(value) for entry, value in result.items() if isinstance(value, Real)}
    if key in numbers:
        return numbers[key]
    if len(numbers) == 1 and "#" not in name:
        return next(iter(numbers.values()))
    raise RecipeError(
        [f"metric: {name!r} gives {', '.join(numbers) or 'no number'}; nlft needs one number."],
        f"Name it after a #, as {name.partition('#')[0]}#{next(iter(numbers), 'key')}.",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
