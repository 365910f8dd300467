"""Likelihoods against passes written out by hand, one row at a time and without padding."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model

from nlft.data.batch import collate
from nlft.data.template import Encoded, encode, encode_rows, prompt_ids
from nlft.measure.likelihood import likelihoods
from nlft.types import Row

TEXTS = tuple(Row("", text) for text in ("Nobody knows Köln.", "the sea", "Where was Ada born? In Rome, by the sea."))


class Successor(torch.nn.Module):
    """Gives token i + 1 after token i a probability of 1/2, and the other tokens equal shares of the rest."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = torch.nn.Parameter(torch.tensor(float(vocabulary)))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> Any:
        v = int(self.vocabulary)
        share = torch.full((*input_ids.shape, v), 0.5 / (v - 1))
        share.scatter_(-1, ((input_ids + 1) % v)[..., None], 0.5)
        return type("Output", (), {"logits": share.log()})


def test_labels_are_shifted_by_one() -> None:
    """5 6 7 follow each other, 9 does not: two targets at 1/2 and one at 1/18, whatever the padding."""
    rows = [Encoded([0, 5, 6, 7, 9], [-100, -100, 6, 7, 9], 3), Encoded([3, 4], [-100, 4], 1)]
    found = likelihoods(Successor(10), rows, pad_id=8, batch_size=2)
    assert [each.tokens for each in found] == [3, 1]
    assert found[0].nats == pytest.approx(2 * math.log(2) + math.log(18), abs=1e-6)
    assert found[1].nats == pytest.approx(math.log(2), abs=1e-6)
    assert [each.greedy for each in found] == [False, True]


def test_greedy_is_about_the_last_run_of_targets() -> None:
    """Only successors are greedy: an earlier run may miss, no token of the last run may."""
    sequences = {(2, 4, 5, 6, 7): True, (2, 3, 5, 7, 8): False, (2, 3, 5, 6, 8): False}
    rows = [Encoded([0, *ids], [-100, -100, ids[1], -100, *ids[3:]], 3) for ids in sequences]
    found = likelihoods(Successor(10), rows, pad_id=8, batch_size=2)
    assert [each.tokens for each in found] == [3, 3, 3]
    assert [each.greedy for each in found] == list(sequences.values())


def test_nll_and_bits_per_byte_by_hand(hand: SimpleNamespace, llama: Any, tiny_tokenizer: Any) -> None:
    rows = (*hand.rows, *TEXTS)
    items = hand.run(llama, tiny_tokenizer, rows, "nll")
    assert [item.metric for item in items] == ["nll", "bits_per_byte"] * len(rows)
    for row, nll, bits in zip(rows, hand.of(items, "nll"), hand.of(items, "bits_per_byte"), strict=True):
        nats, tokens = hand.nats(llama, encode(row, tiny_tokenizer, 256)[0])
        n_bytes = len((row.join * bool(row.prompt) + row.completion).encode())
        assert nll.value == pytest.approx(nats / tokens, abs=1e-5)
        assert nll.weight == tokens
        assert bits.value == pytest.approx(nats / math.log(2) / n_bytes, abs=1e-5)
        assert bits.weight == n_bytes
    assert hand.of(items, "bits_per_byte")[1].weight == 6, "' Köln' is six bytes"


def test_left_and_right_padding_agree(hand: SimpleNamespace, llama: Any, tiny_tokenizer: Any) -> None:
    encoded = encode_rows(hand.rows, tiny_tokenizer, 256)
    batch = collate(encoded, 2, side="left")
    positions = (batch.attention_mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        logits = llama(batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions).logits
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), batch.labels[:, 1:], reduction="none"
    ).sum(-1)
    found = likelihoods(llama, encoded, 2, 4)
    torch.testing.assert_close(torch.tensor([f.nats for f in found]), losses, atol=1e-4, rtol=0)


def test_virtual_tokens_of_prompt_tuning_are_not_the_text(
    hand: SimpleNamespace, llama: Any, tiny_tokenizer: Any
) -> None:
    torch.manual_seed(0)
    tuned = get_peft_model(llama, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()
    prompt = tuned.get_prompt(batch_size=1)
    items = hand.of(hand.run(tuned, tiny_tokenizer, hand.rows, "nll"), "nll")
    for row, item in zip(hand.rows, items, strict=True):
        one = encode(row, tiny_tokenizer, 256)[0]
        words = llama.get_input_embeddings()(torch.tensor([one.ids]))
        logits = llama(inputs_embeds=torch.cat([prompt, words], 1)).logits[0, 5:]
        start = len(prompt_ids(one))
        nats = torch.nn.functional.cross_entropy(logits[start - 1 : -1], torch.tensor(one.ids[start:])).item()
        assert item.value == pytest.approx(nats, abs=1e-5)


def test_split_text_is_one_item(hand: SimpleNamespace, llama: Any, tiny_tokenizer: Any) -> None:
    row = Row("", "The river runs to the sea. " * 6)
    parts = encode(row, tiny_tokenizer, 16, "split")
    assert len(parts) > 2
    costs = [hand.nats(llama, part) for part in parts]
    nll, bits = hand.run(llama, tiny_tokenizer, [row, *TEXTS], "nll", max_length=16, too_long="split")[:2]
    nats, tokens = sum(each[0] for each in costs), sum(each[1] for each in costs)
    assert nll.weight == tokens == len(tiny_tokenizer(row.completion, add_special_tokens=False).input_ids)
    assert nll.value == pytest.approx(nats / tokens, abs=1e-5)
    assert (bits.weight, bits.value) == (162, pytest.approx(nats / math.log(2) / 162, abs=1e-5))
