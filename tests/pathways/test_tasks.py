"""Tasks of sparse memory: what is finished stays as it is."""

from __future__ import annotations

import torch
from pathway_models import BACKGROUND, TASKS, adapt, begin, both, build, logits, train, trained

from nlft.pathways.sparse_memory.model import end_task, memories


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
