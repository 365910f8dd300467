"""What scoring gives back, what it refuses, and that it leaves no trace."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nlft.errors import DataError
from nlft.measure.isolation import evaluating
from nlft.measure.score import item_ids, score
from nlft.types import Evaluation, Row

QUIZ = Row(
    "Where was Bo born?", "Köln", choices=("Rome", "Köln", "by the sea"), gold=1, join=" ", source="quiz.jsonl:3"
)


@pytest.mark.parametrize("metric", ["nll", "exact_match", "accuracy"])
def test_batch_size_does_not_matter(hand: SimpleNamespace, llama: Any, tiny_tokenizer: Any, metric: str) -> None:
    rows = [Row(row.prompt, row.completion, choices=("Rome", "Köln", "the sea"), gold=0, join=" ") for row in hand.rows]
    one, eight, many = (hand.run(llama, tiny_tokenizer, rows, metric, batch_size=size) for size in (1, 8, 64))
    for other in (eight, many):
        assert [item.prediction for item in one] == [item.prediction for item in other]
        assert [item.item_id for item in one] == [item.item_id for item in other]
        assert [item.value for item in one] == pytest.approx([item.value for item in other], abs=1e-5)


@pytest.mark.parametrize(
    ("row", "metric", "message", "hint"),
    [
        (replace(QUIZ, choices=()), "accuracy", "quiz.jsonl:3 has 0 choices", "`choices`"),
        (
            replace(QUIZ, gold=None),
            "accuracy",
            "quiz.jsonl:3 has 3 choices and None as the index",
            "from 0 to 2",
        ),
        (replace(QUIZ, gold=3), "accuracy", "quiz.jsonl:3 has 3 choices and 3 as the index", "from 0 to 2"),
        (Row("", "plain", source="text.txt:1"), "exact_match", "text.txt:1 is plain text", "`nll`"),
        (Row("x " * 99, "y", source="f:1"), "nll", "f:1 has", "too_long"),
    ],
)
def test_rows_that_cannot_be_scored(
    hand: SimpleNamespace, llama: Any, tiny_tokenizer: Any, row: Row, metric: str, message: str, hint: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        hand.run(llama, tiny_tokenizer, [row], metric, max_length=64)
    assert hint in caught.value.hint


def test_choices_are_not_split(hand: SimpleNamespace, llama: Any, tiny_tokenizer: Any) -> None:
    row = replace(QUIZ, prompt="", choices=("the sea", "by the sea " * 20))
    with pytest.raises(DataError, match=r"quiz.jsonl:3 has \d+ tokens, more than the limit of 16"):
        hand.run(llama, tiny_tokenizer, [row], "accuracy", max_length=16, too_long="split")


def test_no_rows(hand: SimpleNamespace, llama: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="'facts' has no rows to score"):
        hand.run(llama, tiny_tokenizer, [], "nll")


def test_item_fields_and_ids(hand: SimpleNamespace, llama: Any, tiny_tokenizer: Any) -> None:
    rows = (hand.rows[0], Row("Where?", "Here", cluster="places"), hand.rows[0])
    evaluation = Evaluation("facts", "probe", "seen", rows, "nll")
    items = score(llama, tiny_tokenizer, evaluation, stage=3, condition="off", batch_size=2, max_length=64)
    first, same = items[0], items[4]
    assert (first.stage, first.condition, first.column) == (3, "off", "facts/seen")
    assert (first.role, first.split, first.metric, first.prediction) == ("probe", "seen", "nll", "")
    assert same.item_id == f"{first.item_id}-1" and same.value == pytest.approx(first.value, abs=1e-6)
    assert first.cluster == first.item_id
    assert items[2].cluster == "places"
    assert len(first.item_id) == 16
    # The id of a row is the same wherever the row stands.
    assert item_ids(hand.rows[::-1]) == item_ids(hand.rows)[::-1]
    assert len(set(item_ids(hand.rows))) == len(hand.rows)
    moved = Row(hand.rows[0].prompt + "R", "ome")
    assert item_ids([moved]) != item_ids([Row(hand.rows[0].prompt, "Rome")])


def states() -> list[Any]:
    numpy = [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()]
    return [random.getstate(), numpy, torch.get_rng_state().tolist()]


@pytest.mark.parametrize("metric", ["nll", "exact_match", "accuracy"])
def test_training_is_left_as_it_was(hand: SimpleNamespace, make_llama: Any, tiny_tokenizer: Any, metric: str) -> None:
    model = make_llama(attention_dropout=0.5)
    rows = [QUIZ, replace(QUIZ, choices=("Oslo", "Rome"))]
    expected = hand.run(model, tiny_tokenizer, rows, metric)
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    before = states()
    assert hand.run(model, tiny_tokenizer, rows, metric) == expected, "dropout is off while scoring"
    assert states() == before
    assert [module.training for module in model.modules()] == modes
    assert tiny_tokenizer.padding_side == "left"
    ids = torch.tensor([[0, 5, 6]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


def test_random_draws_while_scoring_leave_no_trace(llama: Any) -> None:
    before = states()
    with evaluating(llama):
        _ = random.random(), np.random.rand(), torch.rand(1)
        inside = states()
    assert all(one != other for one, other in zip(inside, before, strict=True))
    assert states() == before


def test_modes_come_back_after_an_error(hand: SimpleNamespace, llama: Any, tiny_tokenizer: Any) -> None:
    llama.train()
    with pytest.raises(DataError):
        hand.run(llama, tiny_tokenizer, [replace(QUIZ, gold=None)], "accuracy")
    assert all(module.training for module in llama.modules())
    assert torch.is_grad_enabled()


def test_an_answer_ends_at_its_stop_text(hand: SimpleNamespace, llama: Any, tiny_tokenizer: Any) -> None:
    def answers(stop: str) -> list[str]:
        evaluation = Evaluation("facts", "task", "test", hand.rows, "exact_match", stop)
        options: dict[str, Any] = {"stage": 1, "condition": "on", "batch_size": 8, "max_length": 256}
        items = score(llama, tiny_tokenizer, evaluation, max_new_tokens=12, **options)
        return [item.prediction for item in hand.of(items, "exact_match")]

    whole = answers("")
    stop = max((text[len(text) // 2] for text in whole if text.strip()), key="".join(whole).count)
    assert answers(stop) == [text.split(stop)[0].strip() for text in whole] != whole
