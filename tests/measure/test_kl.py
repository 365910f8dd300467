"""KL to the base against sums written out by hand in float64."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from nlft.data.template import encode
from nlft.errors import NlftError
from nlft.measure.items import read_items
from nlft.measure.kl import divergence
from nlft.measure.score import score
from nlft.run import run_method
from nlft.types import Evaluation, Row

TEXTS = tuple(Row("", text) for text in ("Nobody knows Köln.", "the sea", "Where was Ada born? In Rome, by the sea."))


def moved(model: Any) -> Any:
    torch.manual_seed(3)
    return get_peft_model(model, LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM")).eval()


def by_hand(base: Any, adapted: Any, row: Row, tokenizer: Any) -> tuple[float, int]:
    one = encode(row, tokenizer, 256)[0]
    ids = torch.tensor([one.ids])
    with torch.no_grad():
        p, q = (model(input_ids=ids).logits[0].double().log_softmax(-1) for model in (base, adapted))
    targets = [at for at, label in enumerate(one.labels) if label != -100]
    total = sum(float((p[at - 1].exp() * (p[at - 1] - q[at - 1])).sum()) for at in targets)
    return total / len(targets), len(targets)


def test_a_known_divergence() -> None:
    """KL((3/4, 1/4) || (1/2, 1/2)) = ln 2 - H(1/4) = 0.1308; a token that the base rules out adds nothing."""
    base = torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.5, 0.0]]).log()
    adapted = torch.tensor([[0.4, 0.4, 0.2], [0.4, 0.4, 0.2]]).log()
    expected = torch.tensor([0.130812 - torch.tensor(0.8).log(), -torch.tensor(0.8).log()], dtype=torch.float64)
    torch.testing.assert_close(divergence(base, adapted), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_kl_of_an_adapter(hand: SimpleNamespace, make_llama: Any, tiny_tokenizer: Any, batch_size: int) -> None:
    rows = (*hand.rows, *TEXTS)
    base, model = make_llama(), moved(make_llama())
    items = hand.run(model, tiny_tokenizer, rows, "kl", batch_size=batch_size)
    assert {item.metric for item in items} == {"kl"}
    for row, item in zip(rows, items, strict=True):
        value, tokens = by_hand(base, model, row, tiny_tokenizer)
        assert (item.value, item.weight) == (pytest.approx(value, rel=1e-4), tokens)
        assert item.value > 0.01
    with model.disable_adapter():
        off = hand.run(model, tiny_tokenizer, rows, "kl")
    assert [item.value for item in off] == pytest.approx([0.0] * len(rows), abs=1e-9)
    on = hand.run(model, tiny_tokenizer, rows, "kl")
    assert [item.value for item in on] == pytest.approx([item.value for item in items], rel=1e-4), "it is on again"


def test_kl_of_other_weights_needs_the_base(make_llama: Any, tiny_tokenizer: Any) -> None:
    model = make_llama(1)
    evaluation = Evaluation("text", "probe", "test", TEXTS, "kl")
    settings: dict[str, Any] = {"stage": 1, "condition": "on", "batch_size": 2, "max_length": 256}
    with pytest.raises(NlftError, match="does not hold it"):
        score(model, tiny_tokenizer, evaluation, **settings)
    items = score(model, tiny_tokenizer, evaluation, reference=make_llama, **settings)
    for row, item in zip(TEXTS, items, strict=True):
        assert item.value == pytest.approx(by_hand(make_llama(), model, row, tiny_tokenizer)[0], rel=1e-4)
    low = [make_llama(1), make_llama()]
    for one in low:
        for parameter in one.parameters():  # buffers stay, as `from_pretrained` leaves them
            parameter.data = parameter.data.bfloat16()
    frequencies = low[1].model.rotary_emb.inv_freq.clone()
    score(low[0], tiny_tokenizer, evaluation, reference=lambda: low[1], **settings)
    assert torch.equal(low[1].model.rotary_emb.inv_freq, frequencies)


def test_a_method_that_trains_nothing_is_the_base(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not loaded again, and a quantised one could not be cast."""
    monkeypatch.setattr("nlft.scoring._untouched", lambda _: pytest.fail("loaded again"))
    probes = [{"name": "drift", "metric": "kl", "data": {"path": "builtin:world/text/test", "limit": 4}}]
    made = recipe(probes=probes, methods={"shots": {"kind": "few_shot"}}, measure={"conditions": ["off"]})
    items = read_items(run_method(made, None, tmp_path / "run", report=False) / "items.parquet")
    off = [item.value for item in items if item.column == "drift" and item.condition == "off"]
    assert off == [0.0] * 4


def test_the_parts_of_a_long_text_are_one_row(hand: SimpleNamespace, make_llama: Any, tiny_tokenizer: Any) -> None:
    text = Row("", " ".join(row.completion for row in TEXTS) * 3)
    model = moved(make_llama())
    [item] = hand.run(model, tiny_tokenizer, [text], "kl", max_length=20, too_long="split")
    parts = encode(text, tiny_tokenizer, 20, "split")
    assert len(parts) > 3
    assert item.weight == sum(label != -100 for part in parts for label in part.labels)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_begins_at_zero(recipe: Any, tmp_path: Path, method: str) -> None:
    probes = [{"name": "drift", "metric": "kl", "data": {"path": "builtin:world/text/test", "limit": 6}}]
    probes += [{"name": "text", "metric": "nll", "data": {"path": "builtin:world/text/test", "limit": 6}}]
    items = read_items(run_method(recipe(probes=probes), method, tmp_path / "run") / "items.parquet")
    drift = {stage: [i.value for i in items if i.column == "drift" and i.stage == stage] for stage in (0, 1, 2)}
    assert drift[0] == [0.0] * 6
    assert all(value > 1e-7 for stage in (1, 2) for value in drift[stage])
    weights = [[i.weight for i in items if (i.column, i.metric, i.stage) == key] for key in
               (("drift", "kl", 2), ("text", "nll", 2))]  # fmt: skip
    assert weights[0] == weights[1], "a text's targets are the same for both"
