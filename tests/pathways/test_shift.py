"""Thresholds turned after training: silence is the base, and one task can be turned alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gated_models import trained_gated
from pathway_models import TASKS, begin, build, logits, train, trained
from peft import LoraConfig, get_peft_model

from nlft.errors import NlftError
from nlft.pathways.shift import SILENT, keys_by_task, set_shift, shifts, shifts_restored
from nlft.pathways.sparse_memory.model import end_task, memories

FIRST, SECOND = TASKS


def adapted(kind: str) -> Any:
    """One finished task, open on its own rows."""
    return trained("llama", "prototype") if kind == "slots" else trained_gated(kind.removeprefix("gated "))


def two_tasks() -> Any:
    model = trained("llama", "prototype")
    begin(model, SECOND, earlier=(FIRST,))
    train(model, SECOND)
    end_task(model)
    return model


@pytest.mark.parametrize("kind", ["slots", "gated prototype", "gated product_key", "gated_lora"])
def test_silence_is_the_base(kind: str) -> None:
    model = adapted(kind)
    if kind != "slots":
        set_shift(model, -1e3)  # open everywhere, whatever the calibration found
    on = logits(model)
    with model.disable_adapter():
        base = logits(model)
    assert not torch.equal(on, base)
    set_shift(model, SILENT)
    assert torch.equal(logits(model), base)
    set_shift(model, 0.0 if kind == "slots" else -1e3)
    assert torch.equal(logits(model), on)


def test_one_task_alone() -> None:
    model = two_tasks()
    before = logits(model, TASKS[SECOND][0])
    set_shift(model, 0.25, [FIRST])
    assert shifts(model) == {FIRST: 0.25, SECOND: 0.0}
    set_shift(model, SILENT, [SECOND])
    silent = logits(model, TASKS[SECOND][0])
    assert not torch.equal(silent, before)
    set_shift(model, SILENT, [FIRST])
    both = logits(model, TASKS[SECOND][0])
    with model.disable_adapter():
        assert torch.equal(both, logits(model, TASKS[SECOND][0]))
    set_shift(model, 0.0)
    assert torch.equal(logits(model, TASKS[SECOND][0]), before)


def test_shifts_come_back_after_an_error() -> None:
    model = two_tasks()
    set_shift(model, 0.5, [SECOND])
    with pytest.raises(KeyError), shifts_restored(model):
        set_shift(model, SILENT)
        raise KeyError
    assert shifts(model) == {FIRST: 0.0, SECOND: 0.5}


def test_a_gate_is_turned_and_what_stands_behind_it_is_not() -> None:
    model = trained_gated("prototype")
    set_shift(model, 0.5)
    assert {float(slots.shift) for core in memories(model).values() for slots in core.task_slots} == {0.0}
    [[gate]] = keys_by_task(model).values()
    assert float(gate.shift) == 0.5


def test_what_cannot_be_turned_is_a_sentence() -> None:
    with pytest.raises(NlftError, match="found by product keys"):
        set_shift(trained("llama", "product_key"), 0.1)
    lora = get_peft_model(build("llama"), LoraConfig(target_modules=["o_proj"]))
    with pytest.raises(NlftError, match="is no adapter of nlft"):
        set_shift(lora, 0.1)
    model = two_tasks()
    with pytest.raises(NlftError, match="no task 'third'") as caught:
        set_shift(model, 0.1, [FIRST, "third"])
    assert "'first task', 'second.task'" in caught.value.hint
    assert shifts(model) == {FIRST: 0.0, SECOND: 0.0}
    with pytest.raises(NlftError, match="NaN"):
        set_shift(model, float("nan"))
