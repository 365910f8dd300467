"""Levels that learn while they read: their definition, causality, caches, and what is trained of them."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from cms_models import ROWS, cms, train
from gated_models import FIRST, begin_gated, calibrate_gated, end_gated, gate_of, mixed, train_gated
from pathway_models import BACKGROUND, batch, build, every_shape, logits, loss
from peft import PeftModel
from transformers import DynamicCache

from nlft.adapter import read_adapter
from nlft.errors import NlftError
from nlft.pathways.cms.model import levels_of
from nlft.pathways.cms.online import OnlineLevels
from nlft.pathways.forward_pass import Pass
from nlft.pathways.state import KEEPERS, StateKeeper

CHUNK = 3
LONG = batch(4, 13, 9)


def naive_recall(n: torch.Tensor, levels: OnlineLevels, mask: torch.Tensor) -> torch.Tensor:
    """Twin of `OnlineLevels.recall` for fresh sequences: one row, one level and one token at a time."""
    rows = []
    for row in range(len(n)):
        tokens = [torch.zeros_like(n[row, 0])] * n.shape[1]
        for level in range(levels.count):
            A, gain = getattr(levels, f"A{level}"), getattr(levels, f"gain{level}")
            rate = 1 / (1 + torch.exp(-getattr(levels, f"rate{level}")))
            running = torch.zeros(levels.width, len(A), dtype=n.dtype)
            boundary, before, count = running, None, 0
            for t in range(n.shape[1]):
                if not mask[row, t]:
                    continue
                z = A @ n[row, t]
                h = z / (1 + torch.exp(-z))
                key = h / torch.sqrt((h * h).sum())
                tokens[t] = tokens[t] + levels.scale * gain * (boundary @ key)
                if before is not None:
                    running = running + rate * torch.outer(n[row, t] - running @ before, before)
                before, count = key, count + 1
                if count % levels.chunk == 0:
                    boundary = running
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


def keeper_of(mask: torch.Tensor | None, states: Any = None) -> StateKeeper:
    keeper = StateKeeper("x")
    keeper.now = Pass(mask=mask, states=states, kept={})
    return keeper


@pytest.mark.parametrize("padding", ["none", "left", "right", "within"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-11), (torch.float32, 2e-4)])
@pytest.mark.parametrize(("tokens", "chunk", "r", "count"), [(11, 3, 4, 2), (7, 1, 1, 1), (6, 20, 3, 3), (1, 1, 2, 1)])
def test_recall_equals_its_definition(padding, dtype, close, tokens, chunk, r, count):
    generator = torch.Generator().manual_seed(1)
    levels = OnlineLevels(5, r, count, chunk, 0.7, generator=generator, zero=False).to(dtype)
    for level in range(count):
        getattr(levels, f"rate{level}").data.fill_(0.4 - level)
        getattr(levels, f"gain{level}").data.fill_(0.5 + level)
    mask = torch.ones(3, tokens, dtype=torch.long)
    for row in range(3):
        pads = min(2 * row, tokens - 1)
        start = {"left": 0, "right": tokens - pads, "within": min(1, tokens - 1)}.get(padding)
        if start is not None:
            mask[row, start : start + pads] = 0
    x = torch.randn(3, tokens, 5, generator=generator, dtype=torch.float64).to(dtype)
    weights = torch.randn(3, tokens, 5, generator=generator, dtype=torch.float64).to(dtype) * mask[..., None]

    def run(function) -> list[torch.Tensor]:
        given = x.clone().requires_grad_()
        output = function(given)
        names = [f"{one}{level}" for level in range(count) for one in ("A", "gain", "rate")]
        inputs = [given, *(getattr(levels, name) for name in names)]
        gradients = torch.autograd.grad((output * weights).sum(), inputs, allow_unused=True)
        gradients = [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, gradients, strict=True)]
        return [output.detach() * mask[..., None], *gradients]

    given_mask = None if padding == "none" else mask
    ours = run(lambda given: levels.recall(given, keeper_of(given_mask), "b"))
    theirs = run(lambda given: naive_recall(given, levels, mask))
    assert ours[0].dtype == dtype
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=close, atol=close)
    if tokens > chunk + 3 and r > 1:  # a key of one unit is 1 or -1, whatever A is
        assert all(float(one.abs().max()) > 1e-3 for one in ours)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_passes_of_any_size_equal_one(dtype):
    generator = torch.Generator().manual_seed(1)
    levels = OnlineLevels(5, 4, 2, 3, generator=generator, zero=False).to(dtype)
    for level in range(2):
        getattr(levels, f"gain{level}").data.fill_(1.0)
    x = torch.randn(2, 10, 5, generator=generator, dtype=torch.float64).to(dtype)
    whole = levels.recall(x, keeper_of(None), "b").detach()
    for cuts in [*([0, at, 10] for at in range(1, 10)), list(range(11))]:
        states, parts = None, []
        for start, stop in pairwise(cuts):
            keeper = keeper_of(None, states)
            parts.append(levels.recall(x[:, start:stop], keeper, "b"))
            states = keeper.now.kept
        torch.testing.assert_close(torch.cat(parts, dim=1).detach(), whole, rtol=0, atol=1e-5)
    keeper = keeper_of(None, states)
    keeper.now.learns = False
    levels.recall(x, keeper, "b")
    assert states and keeper.now.kept and torch.equal(keeper.now.kept["b"]["running"], states["b"]["running"])
    assert float(whole[:, 3:].abs().max()) > 0 == float(whole[:, :3].abs().max())


def awake(model: Any, gain: float = 0.7) -> Any:
    """Opens the gains, so that what was read online counts."""
    with torch.no_grad():
        for level in levels_of(model):
            for name, p in level.items():
                if "gain" in name:
                    p.fill_(gain)
    return model


def online(family: str = "llama", **fields: Any) -> Any:
    return cms(build(family), "headwise", online_chunk=CHUNK, periods=[1, 4], **fields)


@every_shape
def test_identity_and_gradients(family):
    expected = logits(build(family), LONG)
    adapted = online(family)
    assert torch.equal(logits(adapted, LONG), expected)
    trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert {name for level in levels_of(adapted) for name in level} == trainable
    loss(adapted, LONG).backward()
    for level in levels_of(adapted):
        for name, p in level.items():
            first = name.rpartition(".")[2][:4] in ("gain", "B0", "B1")
            assert (float(p.grad.abs().max()) > 0) == first, name  # pyright: ignore
    train(adapted, steps=1, rows=LONG, lr=1e-3)
    adapted.zero_grad()
    loss(adapted, LONG).backward()
    assert all(p.grad is not None and p.grad.any() for level in levels_of(adapted) for p in level.values())
    train(adapted, rows=LONG)
    assert not torch.equal(logits(adapted, LONG), expected)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, LONG), expected)
    plain = adapted.unload()
    assert torch.equal(logits(plain, LONG), expected) and not hasattr(plain.get_decoder(), KEEPERS)


def test_what_was_written_is_read_a_chunk_later_and_never_before():
    adapted, still = awake(online()), online()
    ids = LONG.input_ids[:1, :11].clamp_min(3)
    with torch.no_grad():
        whole = adapted(input_ids=ids).logits
        plain = still(input_ids=ids).logits
        assert torch.equal(whole[:, :CHUNK], plain[:, :CHUNK])
        assert not torch.equal(whole[:, CHUNK], plain[:, CHUNK])
        for t in range(1, 11):
            changed = ids.clone()
            changed[:, t] = (ids[:, t] + 7) % 90 + 3
            assert torch.equal(adapted(input_ids=changed).logits[:, :t], whole[:, :t]), t


@every_shape
def test_prefill_and_decoding_equal_one_forward(family):
    adapted = awake(online(family))
    ids = torch.randint(3, 97, (3, 10), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    for row, pads in enumerate((0, 2, 4)):
        ids[row, :pads], mask[row, :pads] = 0, 0
    real, places = mask == 1, (mask.cumsum(dim=1) - 1).clamp_min(0)

    @torch.no_grad()
    def outputs(start: int, stop: int, **options: Any) -> torch.Tensor:
        given = dict(attention_mask=mask[:, :stop], position_ids=places[:, start:stop], **options)
        return adapted(input_ids=ids[:, start:stop], **given).logits

    whole = outputs(0, 10)
    for split in range(1, 10):
        past = DynamicCache()
        for start, stop in [(0, split), (split, split + 1), (split + 1, 10)][: 3 if split < 9 else 2]:
            part, there = outputs(start, stop, past_key_values=past, use_cache=True), real[:, start:stop]
            torch.testing.assert_close(part[there], whole[:, start:stop][there], rtol=0, atol=5e-4)


@every_shape
def test_generation(family):
    adapted = awake(online(family))
    ids = torch.randint(3, 97, (2, 8), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    ids[1, :3], mask[1, :3] = 0, 0
    options: dict[str, Any] = dict(input_ids=ids, attention_mask=mask, max_new_tokens=6, min_new_tokens=6)
    with adapted.disable_adapter():
        silent = adapted.generate(**options, do_sample=False)
    for beams in (1, 3):
        found = adapted.generate(**options, do_sample=False, num_beams=beams)
        assert torch.equal(found, adapted.generate(**options, do_sample=False, num_beams=beams, use_cache=False))
        assert beams > 1 or not torch.equal(found, silent)


def test_a_cache_that_was_filled_without_it_is_refused():
    adapted = awake(online())
    ids = LONG.input_ids.clamp_min(3)
    past = build("llama")(input_ids=ids[:, :5], use_cache=True).past_key_values
    with pytest.raises(NlftError, match="without this adapter's memory"):
        adapted(input_ids=ids[:, 5:], past_key_values=past)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        adapted = awake(online(init_weights=False))
        if checkpointing:
            adapted.enable_input_require_grads()
            adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        adapted.train()
        total = loss(adapted, LONG)
        loss(adapted, ROWS)  # another pass before the first is recomputed
        total.backward()
        return [p.grad for level in levels_of(adapted) for p in level.values()]  # pyright: ignore

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        assert float(plain.abs().max()) > 0
        assert torch.equal(plain, recomputed)


def test_saving_copies_and_half_precision(tmp_path):
    adapted = awake(online())
    train(adapted, rows=LONG)
    twin = copy.deepcopy(adapted)
    adapted.save_pretrained(tmp_path)
    assert read_adapter(tmp_path, apart=False).config.online_chunk == CHUNK  # pyright: ignore
    again = PeftModel.from_pretrained(build("llama"), str(tmp_path), adapter_name="other")
    assert torch.equal(logits(again, LONG), logits(adapted, LONG))
    assert torch.equal(logits(twin, LONG), logits(adapted, LONG))
    half = build("llama", torch.bfloat16)
    expected = logits(half, LONG)
    adapted = cms(half, "headwise", online_chunk=CHUNK)
    assert torch.equal(logits(adapted, LONG), expected)
    assert not torch.equal(logits(awake(adapted), LONG), expected)
    adapted.delete_adapter("default")
    assert not hasattr(half.get_decoder(), KEEPERS)


def test_behind_a_gate_only_open_rows_hear_it():
    base = build("llama")
    background = logits(base, BACKGROUND[0])
    adapted = cms(base, "headwise", online_chunk=CHUNK, periods=[1, 2], gate_layer=1)
    calibrate_gated(adapted, "default")
    begin_gated(adapted, FIRST)
    awake(adapted)
    train_gated(adapted, FIRST)
    assert torch.equal(logits(adapted, BACKGROUND[0]), background)
    after = logits(adapted, mixed())
    opened = gate_of(adapted).open[..., 0] > 0  # pyright: ignore
    assert 0 < int(opened.sum()) < opened.numel()
    assert torch.equal(after[~opened], logits(build("llama"), mixed())[~opened])
    end_gated(adapted)
    assert torch.equal(logits(adapted, mixed()), after)
    assert not any(p.requires_grad for p in adapted.parameters())
