"""Removing, joining and pruning tasks of a stored adapter, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lifecycle_models import FIRST, SECOND, WHOLE, empty, every_kind, learn, learned, remove_task
from pathway_models import BACKGROUND, TASKS, build, logits
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model

from nlft.errors import NlftError
from nlft.pathways.lifecycle import (
    Adapter,
    attach,
    has_thresholds,
    shared_rows,
    stored,
    task_bytes,
    with_slots,
    with_tasks,
    without_tasks,
)
from nlft.pathways.provenance import backgrounds
from nlft.pathways.reads import count_reads, gate_changes

ROWS = [*BACKGROUND, *TASKS[FIRST], *TASKS[SECOND]]


def every_logit(model: Any) -> torch.Tensor:
    return torch.cat([logits(model, rows).flatten() for rows in ROWS])


def facts(config: Any) -> dict[str, Any]:
    """A config without what PEFT may set anew when it puts an adapter in place."""
    return {
        key: value for key, value in config.to_dict().items() if key not in ("layers_to_transform", "inference_mode")
    }


def on_its_own(adapter: Adapter) -> torch.Tensor:
    """What a fresh model with the adapter computes."""
    model = get_peft_model(build("llama"), adapter.config.__class__(**adapter.config.to_dict()), adapter_name="x")
    model.eval()
    attach(model, adapter, "default")
    model.set_adapter("default")
    return every_logit(model)


@every_kind
def test_removal_equals_never_having_learned_it(kind):
    both, alone = learned(kind, FIRST, SECOND), learned(kind, SECOND)
    reads = count_reads(both, TASKS[SECOND])
    assert reads.tokens[FIRST] == 0 < reads.tokens[SECOND]
    before = every_logit(both)
    attach(both, without_tasks(stored(both), [FIRST]), "rest")
    assert gate_changes(both, TASKS[SECOND], SECOND, "default", "rest") == 0
    both.delete_adapter("rest")
    remove_task(both, FIRST)
    assert list(both.peft_config["default"].tasks) == [SECOND]
    assert not torch.equal(every_logit(both), before)
    assert torch.equal(every_logit(both), every_logit(alone))
    ours, theirs = stored(both), stored(alone)
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(tensor, theirs.tensors[key]) for key, tensor in ours.tensors.items())
    assert facts(ours.config) == facts(theirs.config)


@every_kind
def test_removal_where_tasks_overlap_leaves_another_adapter(kind):
    both, alone = learned(kind, FIRST, SECOND, apart=False), learned(kind, SECOND, apart=False)
    assert count_reads(both, TASKS[SECOND]).share(FIRST) > 0.05
    remove_task(both, FIRST)
    assert not torch.equal(every_logit(both), every_logit(alone))


@every_kind
def test_the_last_task_leaves_the_rest_as_it_was(kind):
    adapted = learned(kind, FIRST)
    before = every_logit(adapted)
    learn(adapted, kind, SECOND)
    remove_task(adapted, SECOND)
    assert torch.equal(every_logit(adapted), before)
    remove_task(adapted, FIRST)
    assert torch.equal(every_logit(adapted), every_logit(build("llama")))


@every_kind
def test_adding_and_removing_restores_bits(kind):
    one, other = learned(kind, FIRST), learned(kind, SECOND)
    first, second = stored(one), stored(other)
    joined = with_tasks(first, second)
    assert list(joined.config.tasks) == [FIRST, SECOND]
    assert sum(task_bytes(joined).values()) == sum(task_bytes(first).values()) + sum(task_bytes(second).values())
    assert torch.equal(on_its_own(without_tasks(joined, [SECOND])), every_logit(one))
    assert torch.equal(on_its_own(without_tasks(joined, [FIRST])), every_logit(other))
    # Both were trained silent on each other's rows, so the join equals learning one after the other.
    assert torch.equal(on_its_own(joined), every_logit(learned(kind, FIRST, SECOND)))


def changed(adapter: Adapter, key: str) -> Adapter:
    tensors = dict(adapter.tensors)
    name = next(name for name in tensors if name.endswith(key))
    tensors[name] = tensors[name] + 1e-6
    return Adapter(adapter.config, tensors)


def test_what_cannot_be_joined():
    first, second = stored(learned("prototype", FIRST)), stored(learned("prototype", SECOND))
    for other, said in (
        (first, f"Both adapters hold a task '{FIRST}'"),
        (changed(second, "layers.2.mlp.nlft_sparse_memory_core.whitener"), "layers.2.mlp.*whitener is not the same"),
        (stored(learned("product_key", SECOND)), "differ in addressing"),
        (stored(learned("gated_memory", SECOND)), "differ in gate_layer"),
        (stored(learned("gated_lora", SECOND)), "of two kinds"),
    ):
        with pytest.raises(NlftError, match=said):
            with_tasks(first, other)
    second.config.base_fingerprint = "other"
    with pytest.raises(NlftError, match="unknown whether the adapters were made for one base"):
        with_tasks(first, second)
    first.config.base_fingerprint = "one"
    with pytest.raises(NlftError, match="bases with other weights"):
        with_tasks(first, second)
    first.config.base_fingerprint = second.config.base_fingerprint = None
    with pytest.raises(NlftError, match="without tasks"):
        with_tasks(first, without_tasks(second, [SECOND]))
    second.config.active_task = SECOND
    with pytest.raises(NlftError, match="still being trained"):
        with_tasks(first, second)


def test_what_has_thresholds_and_which_background_set_them():
    kinds = ("prototype", "gated_memory", "gated_lora", "product_key")
    first, second = ({kind: stored(learned(kind, name)) for kind in kinds} for name in (FIRST, SECOND))
    assert [kind for kind in kinds if has_thresholds(first[kind].config)] == ["prototype", "gated_memory", "gated_lora"]
    assert not has_thresholds(empty("prototype").peft_config["default"])
    first["prototype"].config.calibration = {"background_sha256": ["a", "b"]}
    second["prototype"].config.calibration = {"background_sha256": ["b", "c"]}
    joined = with_tasks(first["prototype"], second["prototype"])
    assert backgrounds(joined.config) == ["a", "b", "c"]


def test_rows_that_two_tasks_own():
    one, other = (stored(learned("product_key", name, apart=False)) for name in (FIRST, SECOND))
    rows = [
        {key: set(tensor.tolist()) for key, tensor in adapter.tensors.items() if key.endswith(".rows")}
        for adapter in (one, other)
    ]
    both = sum(len(rows[0][key] & rows[1][key]) for key in rows[0])
    assert both and shared_rows(with_tasks(one, other)) == {(FIRST, SECOND): both}
    assert shared_rows(stored(learned("product_key", FIRST, SECOND))) == {}


@every_kind
def test_unknown_and_open_tasks(kind):
    adapter = stored(learned(kind, FIRST))
    with pytest.raises(NlftError, match="no task 'law'") as caught:
        without_tasks(adapter, ["law"])
    assert repr(FIRST) in caught.value.hint
    adapter.config.active_task = FIRST
    with pytest.raises(NlftError, match="still being trained"):
        without_tasks(adapter, [FIRST])
    model = get_peft_model(build("llama"), LoraConfig(target_modules=["o_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(NlftError, match="is no adapter of nlft's"):
        stored(model)


@every_kind
@pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": True}, {"adapter_name": "tasks"}])
def test_pruned_adapters_survive_saving(kind, options, tmp_path):
    """Other numbers of slots at each block; gates keep their own numbers."""
    model = learned(kind, FIRST, SECOND)
    full = stored(model)
    blocks = ["model.layers.1.mlp", "model.layers.2.mlp"]
    slots = {}
    if kind not in WHOLE:
        size = full.config.tasks[SECOND]
        slots = {(SECOND, blocks[0]): torch.arange(size) > 1, (SECOND, blocks[1]): torch.arange(size) == 2}
    gates = {SECOND: torch.arange(full.config.gates[SECOND]) % 3 == 0} if full.config.gates else {}
    pruned = with_slots(full, slots, gates)
    assert pruned.config.tasks[FIRST] == full.config.tasks[FIRST]
    if slots:
        assert pruned.config.tasks[SECOND] == size - 2
        assert pruned.config.sizes == {SECOND: {blocks[1]: 1}}
    if gates:
        before = full.config.gates
        assert pruned.config.gates == {FIRST: before[FIRST], SECOND: (before[SECOND] + 2) // 3}
    assert sum(task_bytes(pruned).values()) < sum(task_bytes(full).values())
    attach(model, pruned, "pruned")
    model.set_adapter("pruned")
    expected = every_logit(model)
    model.save_pretrained(tmp_path, selected_adapters=["pruned"])
    again = PeftModel.from_pretrained(build("llama"), str(tmp_path / "pruned"), **options)
    assert torch.equal(every_logit(again), expected)
    kept = PeftConfig.from_pretrained(str(tmp_path / "pruned"))
    assert facts(kept) == facts(pruned.config)
    # And the other task can still be taken out.
    assert torch.equal(on_its_own(without_tasks(pruned, [SECOND])), on_its_own(without_tasks(full, [SECOND])))


def test_gates_keep_their_order_on_disk(tmp_path):
    config = empty("gated_lora").peft_config["default"]
    config.gates = {"b": 3, "a": 2}
    config.save_pretrained(str(tmp_path))
    again: Any = PeftConfig.from_pretrained(str(tmp_path))
    assert list(again.gates.items()) == [("b", 3), ("a", 2)]


@pytest.mark.parametrize("kind", ["gated_memory", *WHOLE])
@pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": True}, {"adapter_name": "0"}])
def test_gates_are_loaded(kind, options, tmp_path):
    model = learned(kind, FIRST)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build("llama"), str(tmp_path), **options)
    assert not torch.equal(every_logit(model), every_logit(build("llama")))
    assert torch.equal(every_logit(again), every_logit(model))
