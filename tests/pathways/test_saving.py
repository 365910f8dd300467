"""What is saved comes back, under any name and by every door."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pathway_models import (
    begin,
    both,
    build,
    calibrate,
    logits,
    settings,
    train,
    trained,
)
from peft import PeftModel
from safetensors.torch import load_file

from nlft.pathways.sparse_memory.model import end_task, memories


@both
@pytest.mark.parametrize("adapter", ["default", "core", "0", "tasks", "mean", "nlft_sparse_memory_core"])
@pytest.mark.filterwarnings("ignore:Adapter name")
def test_awkward_adapter_names(addressing, adapter, tmp_path):
    adapted = trained("llama", addressing, adapter=adapter)
    expected = logits(adapted)
    adapted.save_pretrained(tmp_path)
    [file] = tmp_path.rglob("adapter_model.safetensors")
    keys = {key.split("nlft_sparse_memory_core.")[1] for key in load_file(file)}
    own = {"keys", "thresholds", "shift"} if addressing == "prototype" else {"rows"}
    shared = {"mean", "whitener"} | (set() if addressing == "prototype" else {"rotations", "half_keys"})
    assert keys == shared | {f"tasks.0.{name}" for name in own | {"values"}}
    for name in ("default", "0", "mean"):
        again = PeftModel.from_pretrained(build("llama"), str(file.parent), adapter_name=name)
        assert torch.equal(logits(again), expected)


@both
@pytest.mark.parametrize("second", ["0", "tasks"])
def test_two_adapters(addressing, second, tmp_path):
    adapted = trained("llama", addressing)
    first_logits, base_logits = logits(adapted), logits(build("llama"))
    adapted.add_adapter(second, settings(addressing, layers_to_transform=[2, 3]))
    assert torch.equal(logits(adapted), first_logits)
    assert not any(p.requires_grad for p in adapted.parameters())
    adapted.set_adapter(second)
    calibrate(adapted)
    assert torch.equal(logits(adapted), base_logits)
    begin(adapted, "second.task")
    train(adapted, "second.task")
    second_logits = logits(adapted)
    assert not torch.equal(second_logits, base_logits)
    adapted.set_adapter("default")
    assert torch.equal(logits(adapted), first_logits)
    adapted.base_model.set_adapter(["default", second])
    assert not torch.equal(logits(adapted), first_logits)
    adapted.set_adapter("default")

    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build("llama"), str(tmp_path))
    again.load_adapter(str(tmp_path / second), adapter_name="x")
    assert torch.equal(logits(again), first_logits)
    again.set_adapter("x")
    assert torch.equal(logits(again), second_logits)

    adapted.set_adapter(second)
    adapted.delete_adapter("default")
    assert torch.equal(logits(adapted), second_logits)
    assert list(memories(adapted)) == ["model.layers.2.mlp", "model.layers.3.mlp"]


@both
def test_low_cpu_memory_loading(addressing, tmp_path):
    adapted = trained("llama", addressing)
    begin(adapted, "second.task", earlier=("first task",))
    train(adapted, "second.task")
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build("llama"), str(tmp_path), low_cpu_mem_usage=True, is_trainable=True)
    assert torch.equal(logits(again), logits(adapted))
    trainable = [name for name, p in again.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 and all(name.endswith("tasks.1.values") for name in trainable)


@both
def test_a_task_goes_on_after_reloading(addressing, tmp_path):
    """Two tasks whose names sort against their order; the second is saved half trained."""
    adapted = trained("llama", addressing)
    adapted.active_peft_config.tasks = {"z": 12}
    begin(adapted, "second.task", earlier=("first task",))
    train(adapted, "second.task", steps=1)
    adapted.save_pretrained(tmp_path)
    again: Any = PeftModel.from_pretrained(build("llama"), str(tmp_path), is_trainable=True)
    assert list(again.active_peft_config.tasks) == ["z", "second.task"]
    assert again.active_peft_config.active_task == "second.task"
    assert torch.equal(logits(again), logits(adapted))
    for model in (adapted, again):
        train(model, "second.task")
    assert torch.equal(logits(again), logits(adapted))
    end_task(again)
    fixed = PeftModel.from_pretrained(build("llama"), str(tmp_path))
    assert not any(p.requires_grad for p in fixed.parameters())
