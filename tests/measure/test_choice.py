"""Choices by likelihood against sums written out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nlft.data.template import Encoded, encode, prompt_ids
from nlft.types import Row


def choice_row(**changes: Any) -> Row:
    fields = {"choices": ("Rome", "Köln", "by the sea"), "gold": 1, "join": " ", "source": "quiz.jsonl:3"}
    return Row("Where was Bo born?", "Köln", **(fields | changes))


def test_accuracy_by_hand(hand: SimpleNamespace, make_llama: Any, tiny_tokenizer: Any) -> None:
    """Highest summed log-likelihood without the end token; `accuracy_norm` divides by the choice's bytes."""
    rows = [choice_row(), choice_row(choices=("the north", "a", "the river runs to the sea"), gold=2)]
    differ = 0
    for seed in range(6):
        model = make_llama(seed)
        found = hand.run(model, tiny_tokenizer, rows, "accuracy")
        assert [item.metric for item in found] == ["accuracy", "accuracy_norm", "margin"] * 2
        for row, plain, norm in zip(rows, hand.of(found, "accuracy"), hand.of(found, "accuracy_norm"), strict=True):
            sums = []
            for choice in row.choices:
                one = encode(Row(row.prompt, choice, join=" "), tiny_tokenizer, 256)[0]
                assert one.labels[-1] == 1
                sums.append(-hand.nats(model, Encoded(one.ids[:-1], one.labels[:-1], 0))[0])
            by_byte = [total / len(choice.encode()) for total, choice in zip(sums, row.choices, strict=True)]
            chosen, normed = sums.index(max(sums)), by_byte.index(max(by_byte))
            assert (plain.prediction, plain.value) == (row.choices[chosen], float(chosen == row.gold))
            assert (norm.prediction, norm.value) == (row.choices[normed], float(normed == row.gold))
            differ += chosen != normed
            assert row.gold is not None
            best_other = max(total for i, total in enumerate(sums) if i != row.gold)
            margin = hand.of(found, "margin")[rows.index(row)].value
            assert margin == pytest.approx(sums[row.gold] - best_other, abs=1e-4)
            assert (margin > 0) == (plain.value == 1)
    assert differ > 0, "the rows must tell the two apart"


def test_model_that_diverged_is_right_about_nothing(hand: SimpleNamespace, llama: Any, tiny_tokenizer: Any) -> None:
    with torch.no_grad():
        llama.lm_head.weight.fill_(float("nan"))
    items = hand.run(llama, tiny_tokenizer, [choice_row(gold=0)], "accuracy")
    assert [(item.value, item.prediction) for item in items[:2]] == [(0.0, "")] * 2
    assert math.isnan(items[2].value), "a margin was not measured"
    assert math.isnan(hand.run(llama, tiny_tokenizer, hand.rows[:1], "nll")[0].value)


def test_choices_of_a_conversation(hand: SimpleNamespace, llama: Any, chat_tokenizer: Any) -> None:
    row = hand.conversation("Rome", choices=("Rome", "by the sea"), gold=0)
    plain, norm, _ = hand.run(llama, chat_tokenizer, [row], "accuracy")
    sums = []
    for choice in row.choices:
        one = encode(hand.conversation(choice), chat_tokenizer, 256)[0]
        start = len(prompt_ids(one))
        labels = [-100] * start + one.ids[start:-1]
        sums.append(-hand.nats(llama, Encoded(one.ids[:-1], labels, 0))[0])
    assert plain.prediction == row.choices[sums.index(max(sums))]
    by_byte = [sums[0] / 4, sums[1] / 10]
    assert norm.prediction == row.choices[by_byte.index(max(by_byte))]


def test_the_named_metric_comes_first(hand: SimpleNamespace, llama: Any, tiny_tokenizer: Any) -> None:
    items = hand.run(llama, tiny_tokenizer, [choice_row()], "margin")
    assert [item.metric for item in items] == ["margin", "accuracy", "accuracy_norm"]
