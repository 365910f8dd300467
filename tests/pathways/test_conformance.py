"""What every pathway must do as a PEFT tuner, on models of many families."""

from __future__ import annotations

import copy

import pytest
import torch
from pathway_models import (
    BACKGROUND,
    TASKS,
    adapt,
    begin,
    both,
    build,
    every_family,
    logits,
    loss,
    settings,
    train,
    trained,
)
from peft import PeftModel, inject_adapter_in_model

from nlft.base import fingerprint
from nlft.errors import NlftError
from nlft.pathways.sparse_memory.layer import SparseMemoryLayer
from nlft.pathways.sparse_memory.model import end_task, memories, memory_layers


@both
@every_family
def test_identity_gradients_and_frozen_base(family, addressing):
    base = build(family)
    before, rows = fingerprint(base), TASKS["first task"][0]
    names = frozenset(name for name, _ in [*base.named_parameters(), *base.named_buffers()])
    expected, background = logits(base), logits(base, BACKGROUND[0])
    adapted = adapt(base, addressing)
    assert torch.equal(logits(adapted), expected)
    begin(adapted, "first task")
    assert torch.equal(logits(adapted), expected)

    loss(adapted, rows).backward()
    gradients = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(gradients) == 2 and all(name.endswith("tasks.0.values") for name in gradients)
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients.values())
    assert all(p.grad is None for p in adapted.parameters() if not p.requires_grad)

    train(adapted, "first task")
    assert float((logits(adapted) - expected).abs().max()) > 1e-2
    assert float(loss(adapted, rows).detach()) < float(loss(build(family), rows))
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), expected)
    assert fingerprint(adapted, names) == before
    if addressing == "prototype":  # silent on everything that set its thresholds
        attended = BACKGROUND[0].attention_mask == 1
        assert torch.equal(logits(adapted, BACKGROUND[0])[attended], background[attended])
    assert torch.equal(logits(adapted.unload()), expected)


@both
@every_family
def test_generation_with_a_cache_equals_generation_without(family, addressing):
    adapted = trained(family, addressing)
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(60, 97, (3, 8), generator=generator)
    mask = torch.ones_like(ids)
    for row, pads in enumerate((0, 2, 5)):
        ids[row, :pads], mask[row, :pads] = 0, 0
    options = dict(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    with adapted.disable_adapter():
        silent = adapted.generate(**options)
    for beams in (1, 3):
        cached = adapted.generate(**options, num_beams=beams, use_cache=True)
        assert torch.equal(cached, adapted.generate(**options, num_beams=beams, use_cache=False))
        assert beams > 1 or not torch.equal(cached, silent)


@both
def test_unload_gives_back_the_very_blocks(addressing):
    base = build("llama")
    blocks = [layer.mlp for layer in base.model.layers]
    adapted = adapt(base, addressing)
    assert [isinstance(layer.mlp, SparseMemoryLayer) for layer in base.model.layers] == [
        False,
        True,
        True,
        False,
    ]
    assert base.model.layers[1].mlp.gate_proj is blocks[1].gate_proj
    plain = adapted.unload()
    assert all(layer.mlp is block for layer, block in zip(plain.model.layers, blocks, strict=True))


@both
def test_merging_is_refused_and_harms_nothing(addressing):
    adapted = trained("llama", addressing)
    expected = logits(adapted)
    for merge in (adapted.merge_and_unload, adapted.merge_adapter):
        with pytest.raises(NotImplementedError, match="cannot be merged into the base's weights"):
            merge()
    assert torch.equal(logits(adapted), expected)


@both
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(addressing, reentrant):
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        adapted = adapt(build("llama"), addressing)
        begin(adapted, "first task")
        train(adapted, "first task", steps=1)
        adapted.zero_grad()
        if checkpointing:
            adapted.enable_input_require_grads()
            adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        adapted.train()
        loss(adapted, TASKS["first task"][0]).backward()
        return [p.grad for p in adapted.parameters() if p.requires_grad]

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        assert float(plain.abs().max()) > 0
        assert torch.equal(plain, recomputed)


@both
def test_half_precision_base_keeps_a_float32_memory(addressing, tmp_path):
    base = build("llama", torch.bfloat16)
    expected = logits(base)
    adapted = adapt(base, addressing)
    begin(adapted, "first task")
    assert torch.equal(logits(adapted), expected)
    train(adapted, "first task")
    assert not torch.equal(logits(adapted), expected)
    assert logits(adapted).dtype == torch.bfloat16
    for core in memories(adapted).values():
        assert {t.dtype for t in core.state_dict().values()} <= {torch.float32, torch.int64}
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build("llama", torch.bfloat16), str(tmp_path))
    assert torch.equal(logits(again), logits(adapted))


@both
def test_autocast_does_not_touch_the_memory(addressing):
    core = memories(trained("llama", addressing))["model.layers.1.mlp"]
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = core(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(core(x), plain)


@both
def test_finished_tasks_are_frozen_bit_exactly(addressing):
    adapted = trained("llama", addressing)
    values = {name: core.task_slots[0].values.clone() for name, core in memories(adapted).items()}
    first, background = logits(adapted), logits(adapted, BACKGROUND[0])
    begin(adapted, "second.task", earlier=("first task",))
    assert torch.equal(logits(adapted), first)
    adapted.set_adapter("default")  # PEFT turns every parameter's gradient on
    train(adapted, "second.task", steps=3)
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 and all(name.endswith("tasks.1.values") for name in trainable)
    for name, core in memories(adapted).items():
        assert torch.equal(core.task_slots[0].values, values[name])
        assert not core.task_slots[0].values.requires_grad
        assert float(core.task_slots[1].values.detach().abs().max()) > 0
    if addressing == "prototype":  # thresholds keep the second task silent on the first
        for rows, expected in ((TASKS["first task"][0], first), (BACKGROUND[0], background)):
            attended = rows.attention_mask == 1
            assert torch.equal(logits(adapted, rows)[attended], expected[attended])


@both
def test_end_task_is_bit_exact_and_leaves_nothing_to_train(addressing):
    adapted = adapt(build("llama"), addressing)
    begin(adapted, "first task")
    train(adapted, "first task")
    expected = logits(adapted)
    assert adapted.active_peft_config.active_task == "first task"
    end_task(adapted)
    assert torch.equal(logits(adapted), expected)
    assert adapted.active_peft_config.active_task is None
    assert not any(p.requires_grad for p in adapted.parameters())


@both
def test_deepcopy_is_independent(addressing):
    adapted = adapt(build("llama"), addressing)
    begin(adapted, "first task")
    twin = copy.deepcopy(adapted)
    expected = logits(adapted)
    train(twin, "first task")
    assert torch.equal(logits(adapted), expected)
    assert not torch.equal(logits(twin), expected)


@both
def test_injection_without_a_peft_model(addressing):
    model = build("llama")
    expected = logits(model)
    assert torch.equal(logits(inject_adapter_in_model(settings(addressing), model)), expected)
    assert list(memory_layers(model)) == ["model.layers.1.mlp", "model.layers.2.mlp"]


def test_an_adapter_for_each_row_is_refused():
    adapted = trained("llama", "prototype")
    rows = TASKS["first task"][0]
    with pytest.raises(NlftError, match="`adapter_names`"):
        adapted(input_ids=rows.input_ids, adapter_names=["default"] * 5)
