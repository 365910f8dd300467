"""Logits of targets, whole and in blocks, against those of a pass that makes all; rows encoded once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import nlft.head
from nlft.data.batch import collate
from nlft.data.template import Encoded
from nlft.head import Head
from nlft.measure import targets
from nlft.measure.encodings import Encodings, Setting
from nlft.measure.kl import divergences
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


@pytest.mark.parametrize("tokens", [1, 5, 1000])
def test_blocks_equal_a_whole_pass(make_model: Any, family: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check(make_model(family).eval(), tokens, monkeypatch, 1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_blocks_in_float64(make_model: Any, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(make_model(family).double().eval(), 2, monkeypatch, 1e-12)


def small(monkeypatch: pytest.MonkeyPatch, tokens: int, part: int = 1) -> None:
    """Makes blocks of so many tokens, and parts of so many."""
    monkeypatch.setattr(nlft.head, "FEWEST", 1)
    monkeypatch.setitem(nlft.head.BLOCK, "cpu", tokens * VOCABULARY)
    monkeypatch.setitem(targets.PART, "cpu", part * VOCABULARY)


def check(model: Any, tokens: int, monkeypatch: pytest.MonkeyPatch, tolerance: float) -> None:
    small(monkeypatch, tokens)
    batch = collate(ROWS, 0)
    with torch.no_grad():
        found = read_targets(model, Head(model), batch)
        blocks = list(found.blocks())
        logits = torch.cat([found.logits(block) for block in blocks])
        whole = model(**batch.inputs()).logits
    assert len(blocks) == (1 if found.made is not None else -(-len(found.row) // tokens))
    expected = [(i, at) for i, one in enumerate(ROWS) for at in range(1, len(one.ids)) if one.labels[at] != -100]
    assert list(zip(found.row.tolist(), found.column.tolist(), strict=True)) == expected
    assert found.wanted.tolist() == [ROWS[i].ids[at] for i, at in expected]
    for one, (i, at) in zip(logits, expected, strict=True):
        torch.testing.assert_close(one, whole[i, at - 1], atol=tolerance, rtol=tolerance)


def test_likelihoods_do_not_depend_on_blocks(make_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    with torch.no_grad():
        whole = likelihoods(model, ROWS, 0, 3)
        for tokens, part in ((1, 1), (3, 2), (1000, 3)):
            small(monkeypatch, tokens, part)
            cut = likelihoods(model, ROWS, 0, 3)
            assert [one.nats for one in cut] == pytest.approx([one.nats for one in whole], abs=1e-4)
            assert [(one.tokens, one.missed, one.instead) for one in cut] == [
                (one.tokens, one.missed, one.instead) for one in whole
            ]
    assert (whole[2].tokens, whole[2].nats) == (0, 0.0)


@pytest.mark.parametrize("ask", ["likelihoods", "divergences"])
def test_the_head_runs_once_a_block_however_small_the_parts(
    make_model: Any, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    model = get_peft_model(make_model("llama"), LoraConfig(target_modules=["q_proj"])).eval()
    batch = collate(ROWS, 0)
    expected = int((batch.labels[:, 1:] != -100).sum())
    small(monkeypatch, 6)
    sizes: list[int] = []
    logits = nlft.head.Head.logits
    monkeypatch.setattr(nlft.head.Head, "logits", lambda self, one: sizes.append(len(one)) or logits(self, one))
    switched: list[int] = []
    off = model.disable_adapter
    monkeypatch.setattr(model, "disable_adapter", lambda: switched.append(1) or off())
    with torch.no_grad():
        if ask == "likelihoods":
            likelihoods(model, ROWS, 0, 4)
        else:
            divergences(model, None, ROWS, 0, 4)
    blocks = -(-expected // 6)
    times = 1 if ask == "likelihoods" else 2
    assert (len(sizes), sum(sizes)) == (times * blocks, times * expected)
    assert len(switched) == (0 if ask == "likelihoods" else 1 + blocks)  # for the pass, and for each block


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
