"""The gate: silence, causality, caches and generation, behind which any pathway stands."""

from __future__ import annotations

import copy

import pytest
import torch
from gated_models import (
    FIRST,
    KINDS,
    SECOND,
    TRAINED,
    begin_gated,
    calibrate_gated,
    end_gated,
    every_kind,
    gate_of,
    gated,
    gated_config,
    mixed,
    open_of,
    train_gated,
    trained_gated,
)
from pathway_models import BACKGROUND, TASKS, build, every_shape, logits, loss
from transformers import DynamicCache

from nlft.base import fingerprint
from nlft.data.batch import Batch
from nlft.errors import NlftError
from nlft.ops.gate import naive_accumulate, naive_sticky
from nlft.pathways.forward_pass import RecallPass, attended_tokens
from nlft.pathways.gate import GATES

ROWS = TASKS[FIRST][0]
# What stands behind the gate matters little to it: one kind for each family here, each kind somewhere.
kind_by_family = pytest.mark.parametrize(
    ("family", "kind"),
    [(family, KINDS[number % len(KINDS)]) for number, family in enumerate(every_shape.mark.args[1])],
)


def hook_count(model) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def left_padded(lengths: list[int], width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of rows that end like the first task."""
    ids = mixed(len(lengths), width - 6).input_ids.clone()
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        mask[row, : width - length] = 0
    return ids * mask, mask


@every_kind
@every_shape
def test_identity_gradients_silence_and_causality(family, kind):
    base = build(family)
    before, hooks = fingerprint(base), hook_count(base)
    names = frozenset(name for name, _ in [*base.named_parameters(), *base.named_buffers()])
    rows = {"task": ROWS, "background": BACKGROUND[0], "mixed": mixed()}
    expected = {name: logits(base, one) for name, one in rows.items()}
    adapted = gated(base, kind)
    assert torch.equal(logits(adapted), expected["task"])
    begin_gated(adapted, FIRST)
    assert torch.equal(logits(adapted), expected["task"])

    loss(adapted, ROWS).backward()
    gradients = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in gradients} == set(TRAINED[kind])
    for name, gradient in gradients.items():  # A gets its first gradient when B has moved
        assert float(gradient.abs().max()) > 0 or ".A" in name, name
    assert all(p.grad is None for p in adapted.parameters() if not p.requires_grad)

    train_gated(adapted, FIRST)
    assert float((logits(adapted) - expected["task"]).abs().max()) > 1e-2
    assert torch.equal(logits(adapted, BACKGROUND[0]), expected["background"])
    assert float(open_of(adapted).max()) == 0
    after = logits(adapted, mixed())
    opened = open_of(adapted)[..., 0] > 0
    assert torch.equal(opened, opened.long().cummax(dim=1).values.bool())  # sticky
    assert 0 < int(opened.sum()) < opened.numel() and not opened[:, 0].any()
    assert torch.equal(after[~opened], expected["mixed"][~opened])
    assert not torch.equal(after[opened], expected["mixed"][opened])
    with adapted.disable_adapter():
        assert all(torch.equal(logits(adapted, one), expected[name]) for name, one in rows.items())
    assert fingerprint(adapted, names) == before

    plain = adapted.unload()
    assert torch.equal(logits(plain), expected["task"])
    assert hook_count(plain) == hooks and not hasattr(plain.get_decoder(), GATES)
    assert fingerprint(plain) == before


@kind_by_family
def test_prefill_and_decoding_equal_one_forward(family, kind):
    adapted = trained_gated(kind, family)
    ids, mask = left_padded([12, 11, 7])
    real, places = mask == 1, (mask.cumsum(dim=1) - 1).clamp_min(0)

    @torch.no_grad()
    def outputs(start: int, stop: int, **options) -> tuple[torch.Tensor, torch.Tensor]:
        options["position_ids"] = places[:, start:stop]
        found = adapted(input_ids=ids[:, start:stop], attention_mask=mask[:, :stop], **options).logits
        return found, open_of(adapted)

    whole, opened = outputs(0, 12)
    assert 0 < int(opened[real].count_nonzero()) < int(real.sum())
    for split in range(1, 12):
        past = DynamicCache()
        for start, stop in [(0, split), (split, split + 1), (split + 1, 12)][: 3 if split < 11 else 2]:
            part, seen = outputs(start, stop, past_key_values=past, use_cache=True)
            there = real[:, start:stop]
            assert torch.equal(seen[there], opened[:, start:stop][there]), split
            torch.testing.assert_close(part[there], whole[:, start:stop][there], rtol=0, atol=2e-4)


@kind_by_family
def test_generation(family, kind):
    adapted = trained_gated(kind, family)
    ids, mask = left_padded([12, 9, 7])
    options = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False)
    rows = dict(input_ids=ids, attention_mask=mask)
    found = adapted.generate(**rows, **options)
    with adapted.disable_adapter():
        assert not torch.equal(adapted.generate(**rows, **options), found)
    assert torch.equal(adapted.generate(**rows, **options, use_cache=False), found)
    beams = adapted.generate(**rows, **options, num_beams=3)
    assert torch.equal(adapted.generate(**rows, **options, num_beams=3, use_cache=False), beams)
    for row, length in enumerate((12, 9, 7)):  # no padding
        alone = adapted.generate(input_ids=ids[row : row + 1, -length:], **options)
        assert torch.equal(alone[0, length:], found[row, 12:]), row
    # A draft that is taken back cuts the cache.
    drafted = adapted.generate(input_ids=ids[:1], **options, prompt_lookup_num_tokens=3)
    assert torch.equal(drafted[0], found[0])
    static = adapted.generate(**rows, **options, cache_implementation="static")
    assert torch.equal(static, found)


def test_a_cache_of_a_direct_call_goes_on():
    adapted = trained_gated("gated_lora")
    ids = mixed(3).input_ids
    with torch.no_grad():
        whole = adapted(input_ids=ids).logits
        for returned in (True, False):
            first = adapted(input_ids=ids[:, :9], use_cache=True, return_dict=returned)
            past = first.past_key_values if returned else first[1]
            rest = adapted(input_ids=ids[:, 9:], past_key_values=past).logits
            torch.testing.assert_close(rest, whole[:, 9:], rtol=0, atol=2e-4)
        past.reset()
        again = adapted(input_ids=ids, past_key_values=past).logits
        torch.testing.assert_close(again, whole, rtol=0, atol=2e-4)


def test_a_cache_that_the_gate_did_not_see_is_refused():
    adapted, base = trained_gated("gated_lora"), build("llama")
    ids = mixed(3).input_ids
    with torch.no_grad():
        expected = base(input_ids=ids).logits
        past = base(input_ids=ids[:, :9], use_cache=True).past_key_values
        with adapted.disable_adapter():  # nobody asks the gate
            rest = adapted(input_ids=ids[:, 9:11], past_key_values=past).logits
            torch.testing.assert_close(rest, expected[:, 9:11], rtol=0, atol=1e-5)
        with pytest.raises(NlftError, match="filled without this adapter's gate"):
            adapted(input_ids=ids[:, 11:], past_key_values=past)
        # A cache from before a task was learned.
        past = adapted(input_ids=ids[:, :9], use_cache=True).past_key_values
        begin_gated(adapted, SECOND, earlier=(FIRST,))
        with pytest.raises(NlftError, match="filled without this adapter's gate"):
            adapted(input_ids=ids[:, 9:], past_key_values=past)
        assert torch.isfinite(logits(adapted)).all()


@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_the_gate_equals_its_definition(decay):
    adapted = trained_gated("prototype", gate_decay=decay)
    begin_gated(adapted, SECOND, earlier=(FIRST,))
    gate, states = gate_of(adapted), []
    layer = adapted.get_base_model().model.layers[1]
    handle = layer.register_forward_pre_hook(lambda _m, args: states.append(args[0]))
    there_and_back = torch.cat([mixed().input_ids, mixed(seed=8, before=14, after=0).input_ids], dim=1)
    with torch.no_grad():
        adapted(input_ids=there_and_back)
    handle.remove()
    [x] = states
    queries = torch.nn.functional.normalize((x - gate.mean) @ gate.whitener, dim=-1)
    expected, rival = [], (queries @ gate.others.T).amax(dim=-1)
    for task in gate.task_keys:
        near = (queries @ task.keys.T).amax(dim=-1)
        total = naive_accumulate((near - rival - task.drift)[..., None])
        expected.append(naive_sticky(total > task.height, decay))
        rival = torch.maximum(rival, near)
    expected = torch.cat(expected, dim=-1)
    assert gate.open is not None
    torch.testing.assert_close(gate.open, expected, rtol=0, atol=1e-6)
    assert {0.0, 1.0} <= set(gate.open.unique().tolist())
    assert bool(((gate.open > 0) & (gate.open < 1)).any()) == (0 < decay < 1)
    assert gate.queries(x[0]).dtype == torch.float32


@every_kind
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(kind, reentrant):
    """Two forward passes before one backward pass: layers are recomputed with the gate of their own pass."""
    ids, mask = left_padded([12, 9, 7, 12, 9])
    rows = Batch(ids, mask, ids.masked_fill(mask == 0, -100))

    def gradients(checkpointing: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        adapted = gated(build("llama"), kind)
        begin_gated(adapted, FIRST)
        train_gated(adapted, FIRST, steps=1)
        adapted.zero_grad()
        if checkpointing:
            adapted.enable_input_require_grads()
            adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        adapted.train()
        total = loss(adapted, rows) + loss(adapted, ROWS)
        logits(adapted.eval(), BACKGROUND[0])
        adapted.train()
        total.backward()
        found = [p.grad for p in adapted.parameters() if p.requires_grad]
        layers = adapted.unload().get_decoder().layers
        assert not any(isinstance(getattr(one, "_gradient_checkpointing_func", None), RecallPass) for one in layers)
        return total.detach(), found

    (plain_loss, plain), (same_loss, recomputed) = gradients(False), gradients(True)
    assert torch.equal(plain_loss, same_loss)
    for one, two in zip(plain, recomputed, strict=True):
        assert float(one.abs().max()) > 0
        assert torch.equal(one, two)


@every_kind
def test_copies_and_models_are_independent(kind):
    adapted, other = trained_gated(kind), trained_gated(kind, gate_decay=0.0)
    twin = copy.deepcopy(adapted)
    expected, different = logits(adapted, mixed()), logits(other, mixed())
    assert torch.equal(logits(twin, mixed()), expected)
    gate_of(twin).task_keys[0].shift.fill_(torch.inf)
    base = build("llama")
    assert torch.equal(logits(twin, mixed()), logits(base, mixed()))
    assert torch.equal(logits(adapted, mixed()), expected)
    plain = twin.unload()
    assert hook_count(plain) == hook_count(base)
    assert torch.equal(logits(adapted, mixed()), expected)
    assert torch.equal(logits(other, mixed()), different)


@every_kind
def test_two_adapters_with_gates_of_their_own(kind, tmp_path):
    adapted = trained_gated(kind)
    base = build("llama")
    expected = logits(adapted, mixed())
    adapted.add_adapter("other", gated_config(kind, gate_layer=2, gate_decay=0.0, layers_to_transform=[2, 3]))
    assert torch.equal(logits(adapted, mixed()), expected)
    adapted.set_adapter("other")
    calibrate_gated(adapted, "other")
    assert torch.equal(logits(adapted), logits(base))
    begin_gated(adapted, SECOND, adapter="other")
    train_gated(adapted, SECOND)
    end_gated(adapted, "other")
    second = logits(adapted, TASKS[SECOND][0])
    assert not torch.equal(second, logits(base, TASKS[SECOND][0]))
    adapted.set_adapter("default")
    assert torch.equal(logits(adapted, mixed()), expected)
    hooks = hook_count(adapted)
    adapted.set_adapter("other")
    adapted.delete_adapter("default")
    assert hook_count(adapted) == hooks - 3
    assert torch.equal(logits(adapted, TASKS[SECOND][0]), second)
    assert list(adapted.get_base_model().model.get_submodule(GATES)) == ["other"]
    adapted.delete_adapter("other")
    assert not hasattr(adapted.base_model.model.model, GATES)
    assert torch.equal(logits(adapted.base_model.model), logits(base))


def test_padding_in_every_form_of_a_mask():
    def attended(mask):
        found = attended_tokens(mask, 2, 3)
        assert found is not None
        return found

    expected = torch.tensor([[True, True, True], [False, True, True]])
    flat = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]])
    assert torch.equal(attended(flat), expected)
    assert torch.equal(attended(torch.nn.functional.pad(flat, (0, 4))), expected)  # of a static cache
    assert torch.equal(attended(flat[:, 2:]), expected)  # of these tokens alone
    causal = torch.ones(5, 5).tril().bool() & (flat != 0)[:, None, None, :]
    assert torch.equal(attended(causal[:, :, 2:]), expected)
    added = torch.where(causal, 0.0, torch.finfo(torch.float32).min)
    assert torch.equal(attended({"x": None, "y": added[:, :, 2:]}), expected)
    wide = torch.nn.functional.pad(causal, (0, 4))  # a static cache has room for more
    assert torch.equal(attended(wide[:, :, 2:]), expected)
    window = causal[:, :, 2:, 1:]  # the first key has left the window
    assert torch.equal(attended(window), expected)
    assert attended_tokens(None, 2, 3) is None and attended_tokens({"x": None}, 2, 3) is None
