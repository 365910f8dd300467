"""Logits of targets, whole and in blocks, against those of a pass that makes all; rows encoded once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nlft.data.batch import collate
from nlft.data.template import Encoded
from nlft.head import BLOCK as HEAD_BLOCK
from nlft.head import Head
from nlft.measure import targets
from nlft.measure.encodings import Encodings, Setting
from nlft.measure.likelihood import likelihoods
from nlft.measure.score import score
from nlft.measure.targets import read_targets
from nlft.types import Evaluation, Row

VOCABULARY = 97


def row(seed: int, tokens: int, prompt: int) -> Encoded:
    ids = torch.randint(3, VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Encoded(ids, [-100] * prompt + ids[prompt:], 0)


ROWS = [row(0, 11, 4), row(1, 7, 6), row(2, 3, 3), row(3, 9, 1)]
"""One of them has no target."""


@pytest.mark.parametrize("block", [1, 5 * VOCABULARY, 1 << 20])
def test_blocks_equal_a_whole_pass(make_model: Any, family: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check(make_model(family).eval(), block, monkeypatch, 1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_blocks_in_float64(make_model: Any, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(make_model(family).double().eval(), 2 * VOCABULARY, monkeypatch, 1e-12)


def check(model: Any, block: int, monkeypatch: pytest.MonkeyPatch, tolerance: float) -> None:
    monkeypatch.setitem(HEAD_BLOCK, "cpu", block)
    monkeypatch.setitem(targets.BLOCK, "cpu", block)
    batch = collate(ROWS, 0)
    with torch.no_grad():
        found = read_targets(model, Head(model), batch)
        parts = list(found.parts())
        logits = torch.cat([found.logits(part) for part in parts])
        whole = model(**batch.inputs()).logits
    assert len(parts) == -(-len(found.row) // max(1, block // VOCABULARY))
    expected = [(i, at) for i, one in enumerate(ROWS) for at in range(1, len(one.ids)) if one.labels[at] != -100]
    assert list(zip(found.row.tolist(), found.column.tolist(), strict=True)) == expected
    assert found.wanted.tolist() == [ROWS[i].ids[at] for i, at in expected]
    for one, (i, at) in zip(logits, expected, strict=True):
        torch.testing.assert_close(one, whole[i, at - 1], atol=tolerance, rtol=tolerance)


def test_likelihoods_do_not_depend_on_blocks(make_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    with torch.no_grad():
        whole = likelihoods(model, ROWS, 0, 3)
        monkeypatch.setitem(HEAD_BLOCK, "cpu", 1)
        monkeypatch.setitem(targets.BLOCK, "cpu", 1)
        parts = likelihoods(model, ROWS, 0, 3)
    assert [one.nats for one in parts] == pytest.approx([one.nats for one in whole], abs=1e-4)
    assert [(one.tokens, one.missed, one.instead) for one in parts] == [
        (one.tokens, one.missed, one.instead) for one in whole
    ]
    assert (whole[2].tokens, whole[2].nats) == (0, 0.0)


def test_rows_are_encoded_once(hand: SimpleNamespace, llama: Any, tiny_tokenizer: Any) -> None:
    """The very same rows: once; rows like them, another tokenizer or another limit: anew."""
    known, made = Encodings(), []
    setting = Setting(8, 256, None, "error")

    def ask(rows: Any, tokenizer: Any = tiny_tokenizer, setting: Setting = setting) -> int:
        return known.of("a", "parts", rows, tokenizer, setting, lambda: made.append(1) or len(made))

    same = tuple(hand.rows)
    assert [ask(same), ask(same), ask(tuple(list(same))), ask(same[:2])] == [1, 1, 2, 3]
    assert [ask(same), ask(same, object()), ask(same, setting=Setting(8, 128, None, "error"))] == [4, 5, 6]
    assert len(known.made) == 1


@pytest.mark.parametrize("metric", ["nll", "exact_match", "accuracy", "kl"])
def test_scores_with_kept_encodings(llama: Any, tiny_tokenizer: Any, metric: str) -> None:
    choices = ("Rome", "the sea")
    rows = tuple(Row(f"Where was {name} born?", "Rome", join=" ", choices=choices, gold=0) for name in ("Ada", "Bo"))
    evaluation = Evaluation("facts", "task", "test", rows, metric)
    known = Encodings()
    settings: dict[str, Any] = {"stage": 0, "condition": "base", "batch_size": 8, "max_length": 256}
    plain = score(llama, tiny_tokenizer, evaluation, **settings)
    for _ in range(2):
        assert score(llama, tiny_tokenizer, evaluation, **settings, encodings=known) == plain
    assert {kind for _, kind in known.made} >= {"ids"}
