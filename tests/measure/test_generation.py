"""Generated answers against greedy decoding written out by hand, without cache, padding or shortcut."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from nlft.data.template import Encoded, encode, encode_rows, prompt_ids
from nlft.measure import score as score_module
from nlft.measure.generation import begins
from nlft.measure.likelihood import Likelihood


@pytest.mark.parametrize("steps", [0, 12, 40])
def test_shortcut_equals_plain_generation(
    hand: SimpleNamespace, llama: Any, tiny_tokenizer: Any, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = encode_rows(hand.rows, tiny_tokenizer, 256)
    hand.train(llama, encoded[:6], steps)
    decoded: list[int] = []
    plain = score_module.generate

    def counted(model: Any, prompts: Any, *rest: Any) -> Any:
        decoded.append(len(prompts))
        return plain(model, prompts, *rest)

    monkeypatch.setattr(score_module, "generate", counted)
    items = hand.of(hand.run(llama, tiny_tokenizer, hand.rows, "exact_match"), "exact_match")
    longest = max(len(tiny_tokenizer(row.completion, add_special_tokens=False).input_ids) for row in hand.rows)
    for row, one, item in zip(hand.rows, encoded, items, strict=True):
        ids = hand.written(llama, prompt_ids(one), longest + 4, {1})
        assert item.prediction == tiny_tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert item.value == float(item.prediction == row.completion)
    right = sum(item.value for item in items)
    assert decoded == [len(hand.rows) - right], "the right answers were not decoded, all others were"
    if steps == 0:
        assert right == 0
    if steps == 40:
        assert 6 <= right < len(hand.rows)


@pytest.mark.parametrize(
    ("ids", "missed", "budget", "expected"),
    [
        ([0, 5, 6, 7, 1], None, 2, ([6, 7], True)),  # the end token needs no budget
        ([0, 5, 6, 7, 1], None, 1, ([6], True)),
        ([0, 5, 6, 7, 1], None, 0, ([], True)),
        ([0, 5, 6, 7, 8], None, 9, ([6, 7, 8], False)),  # cut before its end
        ([0, 5, 6, 9, 1], None, 9, ([6], True)),  # decoding stops at 9
        ([0, 5, 1], None, 9, ([], True)),
        ([0, 5, 6, 7, 1], (3, 4), 9, ([6, 4], False)),  # 4 in place of 7
        ([0, 5, 6, 7, 1], (3, 4), 2, ([6, 4], True)),
        ([0, 5, 6, 7, 1], (3, 9), 9, ([6], True)),  # a stop in place of 7
        ([0, 5, 6, 7, 1], (4, 3), 9, ([6, 7, 3], False)),  # it goes on where the answer ends
    ],
)
def test_what_the_teacher_forced_pass_has_written(
    ids: list[int], missed: tuple[int, int] | None, budget: int, expected: tuple[list[int], bool]
) -> None:
    encoded = Encoded(ids, [-100, -100, *ids[2:]], 1)
    likelihood = Likelihood(0.1, len(ids) - 2, *(missed or ()))
    assert begins(encoded, 2, likelihood, budget, {1, 9}) == expected


def test_generation_carries_nll_of_the_same_pass(hand: SimpleNamespace, llama: Any, tiny_tokenizer: Any) -> None:
    written, predicted = (hand.run(llama, tiny_tokenizer, hand.rows, metric) for metric in ("f1", "nll"))
    assert [item.metric for item in written] == ["f1", "nll"] * len(hand.rows)
    assert hand.of(written, "nll") == hand.of(predicted, "nll")


def test_settings_that_come_with_the_model_do_not_apply(hand: SimpleNamespace, llama: Any, tiny_tokenizer: Any) -> None:
    before = hand.run(llama, tiny_tokenizer, hand.rows, "exact_match")
    settings = llama.generation_config
    settings.repetition_penalty, settings.do_sample, settings.temperature = 9.0, True, 3.0
    settings.suppress_tokens = list(range(3, 200))
    assert hand.run(llama, tiny_tokenizer, hand.rows, "exact_match") == before
    adapted = get_peft_model(llama, LoraConfig(target_modules=["q_proj"]))
    assert hand.run(adapted, tiny_tokenizer, hand.rows, "exact_match") == before
    assert llama.generation_config is settings and settings.repetition_penalty == 9.0


def test_every_end_token_of_the_model_stops(hand: SimpleNamespace, llama: Any, tiny_tokenizer: Any) -> None:
    one = encode(hand.rows[0], tiny_tokenizer, 256)[0]
    free = hand.written(llama, prompt_ids(one), 8, set())
    stop = free[3]
    llama.generation_config.eos_token_id = [1, stop]
    item = hand.run(llama, tiny_tokenizer, hand.rows[:1], "exact_match")[0]
    assert item.prediction == tiny_tokenizer.decode(free[: free.index(stop)]).strip()


@pytest.mark.parametrize("budget", [1, 3])
def test_max_new_tokens(hand: SimpleNamespace, llama: Any, tiny_tokenizer: Any, budget: int) -> None:
    encoded = encode_rows(hand.rows, tiny_tokenizer, 256)
    hand.train(llama, encoded[:6], 40)
    items = hand.of(hand.run(llama, tiny_tokenizer, hand.rows, "exact_match", max_new_tokens=budget), "exact_match")
    for one, item in zip(encoded, items, strict=True):
        ids = hand.written(llama, prompt_ids(one), budget, {1})
        assert item.prediction == tiny_tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_learned_positions_to_the_end_of_the_context(hand: SimpleNamespace, tiny_tokenizer: Any) -> None:
    """GPT-2 knows 40 positions: left padding must not move a row, and no answer may pass the end."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "initializer_range": 0.2}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=320, bos_token_id=0, eos_token_id=1, **shape)).eval()
    encoded = encode_rows(hand.rows, tiny_tokenizer, 40)
    items = hand.of(
        hand.run(model, tiny_tokenizer, hand.rows, "exact_match", max_length=40, max_new_tokens=36),
        "exact_match",
    )
    for one, item in zip(encoded, items, strict=True):
        ids = hand.written(model, prompt_ids(one), min(36, 40 - len(prompt_ids(one))), {1})
        assert item.prediction == tiny_tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_families_in_batches_and_by_hand(
    hand: SimpleNamespace, make_model: Any, family: str, tiny_tokenizer: Any
) -> None:
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    model = make_model(family, vocab_size=320, initializer_range=0.2, **ids)
    items = hand.run(model, tiny_tokenizer, hand.rows[:4], "exact_match", max_length=64, max_new_tokens=6)
    written, nll = hand.of(items, "exact_match"), hand.of(items, "nll")
    for one, text, cost in zip(encode_rows(hand.rows[:4], tiny_tokenizer, 64), written, nll, strict=True):
        answer = hand.written(model, prompt_ids(one), 6, {1})
        assert text.prediction == tiny_tokenizer.decode(answer, skip_special_tokens=True).strip()
        assert cost.value == pytest.approx(hand.nats(model, one)[0] / cost.weight, abs=1e-5)


def test_fresh_lora_scores_like_the_base(hand: SimpleNamespace, llama: Any, tiny_tokenizer: Any) -> None:
    base = hand.run(llama, tiny_tokenizer, hand.rows, "exact_match")
    adapted = get_peft_model(llama, LoraConfig(target_modules=["q_proj", "v_proj"]))
    assert hand.run(adapted, tiny_tokenizer, hand.rows, "exact_match") == base


def test_conversation_is_answered_to_its_end_token(hand: SimpleNamespace, llama: Any, chat_tokenizer: Any) -> None:
    rows = [hand.conversation("in Rome"), hand.conversation("Oslo")]
    encoded = encode_rows(rows, chat_tokenizer, 256)
    assert encoded[0].ids[-1] == 2, "the template's end token"
    hand.train(llama, encoded[:1], 40)
    found = hand.run(llama, chat_tokenizer, rows, "exact_match")
    answers = hand.of(found, "exact_match")
    assert [(item.value, item.prediction) for item in answers] == [(1.0, "in Rome"), (0.0, "in Rome")]
    for one, item in zip(encoded, hand.of(found, "nll"), strict=True):
        nats, tokens = hand.nats(llama, one)
        assert item.weight == tokens
        assert item.value == pytest.approx(nats / tokens, abs=1e-5)
