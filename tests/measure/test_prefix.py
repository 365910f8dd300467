"""Shared prompts against separate passes, and decoding with rows that leave against the model's own `generate`."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from families import USUAL, common_first
from peft import LoraConfig, get_peft_model
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from nlft.anatomy import decoder_layers
from nlft.config import PrefixConfig
from nlft.data.template import Encoded
from nlft.frozen_prefix import install_prefix
from nlft.measure import generation
from nlft.measure.generation import generate
from nlft.measure.isolation import evaluating
from nlft.measure.likelihood import likelihoods
from nlft.measure.prefix import shared_prompts
from nlft.pathways.hope.config import HopePeftConfig
from nlft.prefix_store import PrefixStore

VOCABULARY = 97


def sequences(seed: int = 0) -> list[Encoded]:
    """Prompts of several lengths with one to five continuations each, shuffled."""
    draw = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [draw.randrange(5, VOCABULARY) for _ in range(count)]

    found = []
    for length, count in ((20, 4), (13, 3), (26, 1), (9, 5), (3, 4), (20, 2)):
        prompt = ids(length)
        for _ in range(count):
            answer = ids(draw.randint(1, 5))
            found.append(Encoded([*prompt, *answer], [-100] * length + answer, 0))
        # The same but for the last token, which nothing reads.
        found.append(Encoded([*prompt, *answer[:-1], 6], [-100] * length + [*answer[:-1], 6], 0))
    draw.shuffle(found)
    return found


def alone(model: Any, encoded: list[Encoded]) -> list[tuple[float, int, bool]]:
    """Each sequence by itself, without cache or padding."""
    results = []
    for one in encoded:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([one.ids])).logits[0].double().log_softmax(-1)
        targets = [at for at, label in enumerate(one.labels) if label != -100]
        nats = -sum(float(logits[at - 1, one.ids[at]]) for at in targets)
        results.append((nats, len(targets), all(int(logits[at - 1].argmax()) == one.ids[at] for at in targets)))
    return results


def adapted(base: Any, kind: str) -> Any:
    torch.manual_seed(1)
    layers: dict[str, Any] = {"layers_to_transform": [1, 3], "task_type": "CAUSAL_LM"}
    if kind == "lora":
        model = get_peft_model(base, LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM"))
    else:
        model = get_peft_model(base, HopePeftConfig(heads=2, head_width=8, chunk=4, read="boundary", **layers))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape), alpha=0.3)
    return model.eval()


@pytest.mark.parametrize("family", common_first(USUAL))
@pytest.mark.parametrize("batch_size", [2, 64])
def test_shared_prompts_equal_separate_passes(make_model: Any, family: str, batch_size: int) -> None:
    check(make_model(family), batch_size)


@pytest.mark.parametrize("kind", ["lora", "hope"])
def test_shared_prompts_of_adapters(make_model: Any, kind: str) -> None:
    check(adapted(make_model("llama"), kind), 8)


@pytest.mark.parametrize("family", common_first(USUAL))
@pytest.mark.parametrize("batch_size", [2, 64])
def test_shared_prompts_begin_at_the_frozen_prefix(make_model: Any, family: str, batch_size: int) -> None:
    model, _ = halved(make_model(family))
    check(model, batch_size)


@pytest.mark.parametrize(("family", "options"), [("mistral", {"sliding_window": 6}), ("gemma3", {"sliding_window": 6})])
def test_shared_prompts_of_a_sliding_window(make_model: Any, family: str, options: dict[str, Any]) -> None:
    check(make_model(family, **options), 8)
    check(halved(make_model(family, **options))[0], 8)


def test_the_frozen_prefix_spares_the_lower_layers(make_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once its states are kept, no lower layer runs; sequences read with one whose states are not kept are whole."""
    model, prefix = halved(make_model("llama"))
    passes: list[int] = []
    plain = LlamaDecoderLayer.forward

    def counted(layer: Any, *args: Any, **kwargs: Any) -> Any:
        passes.append(layer.self_attn.layer_idx)
        return plain(layer, *args, **kwargs)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", counted)
    encoded = sequences()
    with evaluating(model):
        first = likelihoods(model, encoded, 0, 8)
        assert 0 in passes
        passes.clear()
        assert likelihoods(model, encoded, 0, 8) == first
        assert set(passes) == set(range(prefix.depth, len(model.model.layers)))
        prefix.known.pop(tuple(encoded[0].ids))
        monkeypatch.setattr(prefix, "keep", lambda rows, pad_id: None)
        again = likelihoods(model, encoded, 0, 8)
        assert 0 in passes
    assert [one.nats for one in again] == pytest.approx([one.nats for one in first], abs=2e-4)


def test_a_pass_asks_for_the_states_of_its_own_rows(make_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prefix = halved(make_model("llama"))
    lines: list[int] = []
    states = prefix.states

    def counted(batch: Any, width: int | None = None) -> Any:
        found = states(batch, width)
        lines.append(0 if found is None or not found.shape[1] else len(found))
        return found

    monkeypatch.setattr(prefix, "states", counted)
    encoded = sequences()
    with evaluating(model):
        likelihoods(model, encoded, 0, 2)
    assert set(lines) <= {0, 1, 2} and sum(lines) >= len(encoded)


def halved(model: Any) -> tuple[Any, Any]:
    """A model whose upper half is trained, and its frozen prefix, which ends there."""
    model.requires_grad_(False)
    layers = decoder_layers(model)[1]
    layers[len(layers) // 2 :].requires_grad_(True)
    config = PrefixConfig()
    prefix = install_prefix(model, "base", config, PrefixStore(None, config))
    assert prefix is not None
    return model, prefix


def check(model: Any, batch_size: int) -> None:
    encoded = sequences()
    assert shared_prompts(encoded), "the test must test sharing"
    with evaluating(model):
        found = likelihoods(model, encoded, 0, batch_size)
    for one, (nats, tokens, greedy) in zip(found, alone(model, encoded), strict=True):
        assert one.nats == pytest.approx(nats, abs=2e-4)
        assert (one.tokens, one.greedy) == (tokens, greedy)


def test_what_is_shared() -> None:
    """All prompts but that of 3 tokens have several continuations; the last token of each is read again."""
    encoded = sequences()
    groups = shared_prompts(encoded)
    sizes = sorted(((group.length, len(group.members)) for group in groups), reverse=True)
    assert sizes == [(25, 2), (19, 5), (19, 3), (12, 4), (8, 6)]
    for group in groups:
        assert len({tuple(encoded[index].ids[: group.length]) for index in group.members}) == 1


@pytest.mark.parametrize("kind", ["base", "hope"])
def test_rows_leave_when_they_end(make_model: Any, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    model = make_model("llama", initializer_range=0.3)
    model = model if kind == "base" else adapted(model, kind)
    draw = random.Random(1)
    prompts = [[draw.randrange(5, VOCABULARY) for _ in range(draw.randint(2, 20))] for _ in range(9)]
    budgets = [draw.randint(1, 12) for _ in prompts]
    stops = set(range(0, 30, 2))
    with evaluating(model):
        found = generate(model, prompts, budgets, stops, 0, 4)
        monkeypatch.setattr(generation, "can_share", lambda _: False)
        assert found == generate(model, prompts, budgets, stops, 0, 4)
    assert len({len(ids) for ids in found}) > 2, "they must end at different times"


def test_a_text_ends_where_it_is_told(make_model: Any) -> None:
    model = make_model("llama", initializer_range=0.3)
    with evaluating(model):
        whole = generate(model, [[5, 6, 7]], [10], set(), 0, 1)[0]
        cut = generate(model, [[5, 6, 7]], [10], set(), 0, 1, lambda ids: len(ids) >= 4)[0]
        assert generate(model, [[5, 6, 7]], [0], set(), 0, 1) == [[]]
    assert (len(whole), cut) == (10, whole[:4])
