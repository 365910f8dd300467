"""Metrics on cases worked out by hand; nlft's own and those that `evaluate` loads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nlft.errors import RecipeError
from nlft.measure.metric import (
    METRICS,
    answer_f1,
    answer_words,
    bits_per_byte,
    choice_margin,
    choose,
    exact_match,
    load_metric,
    metric_spec,
    text_scorer,
)

LOCAL = """
import datasets
import evaluate


class Overlap(evaluate.Metric):
    def _info(self):
        features = datasets.Features({{"predictions": datasets.Value("string"), "references": {references}}})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        {body}
"""


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`evaluate` writes into folders of this test run; a process imports loaded metrics from one of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path_factory.mktemp("metrics")))
        patch.setattr("evaluate.config.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture
def write_metric(tmp_path: Path) -> Callable[..., str]:
    """`write_metric(name, body, references)` writes an `evaluate` metric and returns its folder."""

    def write(name: str, body: str, references: str = 'datasets.Value("string")') -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.py").write_text(LOCAL.format(body=body, references=references))
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("Rome", ["Rome"], 1.0),
        (" in \n Rome ", ["in Rome"], 1.0),
        ("rome", ["Rome"], 0.0),
        ("Rome.", ["Rome"], 0.0),
        ("Roma", ["Rome", "Roma"], 1.0),
        ("", ["Rome"], 0.0),
        ("A", ["B"], 0.0),
    ],
)
def test_exact_match(prediction: str, references: list[str], expected: float) -> None:
    assert exact_match(prediction, references) == expected


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("the Rome!", ["rome"], 1.0),
        ("in Rome", ["Rome"], 2 / 3),  # precision 1/2, recall 1
        ("Rome Rome", ["Rome"], 2 / 3),  # a word counts as often as it is there
        ("red old book", ["the red book on sale"], 4 / 7),  # precision 2/3, recall 2/4
        ("Bo", ["Ada", "Bo Li", "Cy"], 2 / 3),  # best reference
        ("north", ["south"], 0.0),
        ("", ["Rome"], 0.0),
        ("...", [""], 1.0),
        ("", ["A"], 0.0),  # an article that is the whole answer stays
        ("a", ["A"], 1.0),
        ("the", ["A"], 0.0),
        ("Köln", ["köln"], 1.0),
    ],
)
def test_answer_f1(prediction: str, references: list[str], expected: float) -> None:
    assert answer_f1(prediction, references) == pytest.approx(expected, abs=1e-12)


def test_articles_go_only_as_words() -> None:
    assert answer_words("An athlete, the an-d A B") == ["athlete", "and", "b"]


def test_bits_per_byte_counts_utf8() -> None:
    assert bits_per_byte(5 * math.log(2), len("Köln".encode())) == pytest.approx(1.0, abs=1e-12)


def test_choose_takes_the_first_of_equals() -> None:
    assert choose([-2.0, -1.0, -1.0]) == 1


def test_specs_state_scoring_and_direction() -> None:
    assert {name: (spec.scoring, spec.higher_is_better) for name, spec in METRICS.items()} == {
        "exact_match": ("generation", True),
        "answer_match": ("generation", True),
        "f1": ("generation", True),
        "contains": ("generation", True),
        "accuracy": ("choice", True),
        "accuracy_norm": ("choice", True),
        "margin": ("choice", True),
        "nll": ("likelihood", False),
        "bits_per_byte": ("likelihood", False),
        "kl": ("divergence", False),
    }
    assert metric_spec("metrics/rouge#rougeL").scoring == "generation"
    assert metric_spec("metrics/rouge#rougeL").higher_is_better


def test_evaluate_classes_agree_with_functions() -> None:
    texts, answers = ["in Rome", "Oslo"], [["Rome", "Roma"], ["Oslo"]]
    assert load_metric("exact_match").compute(predictions=texts, references=answers) == {
        "exact_match": 0.5,
        "per_item": [0.0, 1.0],
    }
    found = load_metric("f1").compute(predictions=texts, references=answers)
    assert found is not None
    assert found["per_item"] == pytest.approx([2 / 3, 1.0])
    assert found["f1"] == pytest.approx(5 / 6)
    single = load_metric("f1").compute(predictions=texts, references=["Rome", "Oslo"])
    assert single is not None and single["per_item"] == found["per_item"]
    assert load_metric("accuracy").compute(predictions=[0, 2, 1], references=[0, 1, 1]) == {
        "accuracy": pytest.approx(2 / 3),
        "per_item": [1.0, 0.0, 1.0],
    }
    # The mean is over tokens (bytes), not over rows: 3 nats in 4 tokens, not (2 + 1/3) / 2.
    assert load_metric("nll").compute(predictions=[2.0, 1.0], references=[1, 3]) == {
        "nll": 0.75,
        "per_item": pytest.approx([2.0, 1 / 3]),
    }
    assert load_metric("bits_per_byte").compute(predictions=[math.log(2)] * 2, references=[1, 3]) == {
        "bits_per_byte": pytest.approx(0.5),
        "per_item": pytest.approx([1.0, 1 / 3]),
    }


def test_local_metric_takes_the_best_reference(write_metric: Callable[..., str]) -> None:
    path = write_metric("overlap", 'return {"overlap": len(set(predictions[0]) & set(references[0]))}')
    assert text_scorer(path)("abc", ["ab", "abcd", "x"]) == 3.0


def test_local_metric_with_several_references_gets_them_all(write_metric: Callable[..., str]) -> None:
    body = 'return {"overlap_all": len(references[0])}'
    path = write_metric("overlap_all", body, 'datasets.Sequence(datasets.Value("string"))')
    assert text_scorer(path)("abc", ["ab", "abcd", "x"]) == 3.0


def test_local_metric_with_several_numbers_needs_a_key(write_metric: Callable[..., str]) -> None:
    path = write_metric("two", 'return {"low": 0.25, "high": 0.75, "words": ["x"]}')
    assert text_scorer(f"{path}#high")("a", ["a"]) == 0.75
    with pytest.raises(RecipeError, match="gives low, high; nlft needs one number") as caught:
        text_scorer(path)("a", ["a"])
    assert f"{path}#low" in caught.value.hint
    with pytest.raises(RecipeError, match="#middle' gives low, high"):
        text_scorer(f"{path}#middle")("a", ["a"])


def test_metric_that_cannot_take_text_says_so(write_metric: Callable[..., str]) -> None:
    path = write_metric("broken", 'raise TypeError("no text please")')
    with pytest.raises(RecipeError, match=r"fails on a text \(TypeError: no text please\)"):
        text_scorer(path)("a", ["a"])


def test_unknown_metric_names_the_three_ways(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"metric: '.*nowhere' cannot be loaded") as caught:
        text_scorer(str(tmp_path / "nowhere"))
    for way in ("exact_match", "local directory", "Hub id"):
        assert way in caught.value.hint


@pytest.mark.parametrize(
    ("prediction", "matches", "holds"),
    [
        ("The Eiffel Tower!", 1.0, 1.0),
        ("eiffel tower", 1.0, 1.0),
        ("It is the Eiffel Tower, in Paris.", 0.0, 1.0),
        ("Tower of Eiffel", 0.0, 0.0),
        ("La Tour Eiffel", 1.0, 1.0),
        ("", 0.0, 0.0),
    ],
)
def test_answers_with_aliases(prediction: str, matches: float, holds: float) -> None:
    references = ("Eiffel Tower", "la tour Eiffel")
    assert text_scorer("answer_match")(prediction, references) == matches
    assert text_scorer("contains")(prediction, references) == holds


def test_margin_by_hand() -> None:
    assert choice_margin([-3.0, -1.5, -2.0], 1) == 0.5
    assert choice_margin([-3.0, -1.5, -2.0], 0) == -1.5
    assert math.isnan(choice_margin([-3.0, math.nan], 0))
