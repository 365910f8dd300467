"""Calibrating a gate: budgets that hold on what vouches for them, earlier tasks, and batches that do not matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gated_models import FIRST, SECOND, gate_of, gated, mixed, open_of, silent_rows
from pathway_models import BACKGROUND, TASKS, batch, build, logits
from test_prototype import encoded

import nlft.calibrate
from nlft.data.batch import Batch, collate
from nlft.data.template import Encoded
from nlft.distributed import in_turn
from nlft.errors import NlftError
from nlft.pathways.evidence import begin_gate
from nlft.pathways.gate import gate_module
from nlft.pathways.prototype import HeldOut, held_out_batches


def begin(adapted: Any, name: str, held: HeldOut, earlier: HeldOut | None = None) -> None:
    module = gate_module(adapted, "default")
    begin_gate(adapted, module, "default", name, TASKS[name], BACKGROUND, earlier, held, slots=16)


def opened(adapted: Any, rows: Batch, task: int = 0) -> torch.Tensor:
    """At which tokens a task's gate is open in a forward pass, [B, T] bool; never at padding."""
    logits(adapted, rows)
    return (open_of(adapted)[..., task] > 0) & (rows.attention_mask == 1)


def realised(adapted: Any, rows: list[Encoded], unit: str) -> float:
    shares: dict[str, list[float]] = {}
    for row in rows:
        at = opened(adapted, collate([row], 0))[0]
        shares.setdefault(row.cluster, []).extend([float(at.any())] if unit == "rows" else at.double().tolist())
    return sum(sum(share) / len(share) for share in shares.values()) / len(shares)


@pytest.mark.parametrize("unit", ["rows", "tokens"])
@pytest.mark.parametrize("budget", [0.05, 0.3])
def test_a_budget_is_kept_on_what_vouches_for_it_and_nearly_used(unit, budget):
    adapted = gated(build("llama"), "gated_lora")
    held = encoded(60, seed=1)
    begin(adapted, FIRST, held_out_batches(held, budget, unit, 0, 7))
    assert budget - 2.1 / 61 <= realised(adapted, held, unit) <= budget
    assert float(opened(adapted, TASKS[FIRST][0]).double().mean()) > 0.25


def test_heights_do_not_depend_on_batches(monkeypatch):
    heights, streams = [], []
    monkeypatch.setattr(nlft.calibrate, "in_turn", lambda *of: streams.append(of) or in_turn(*of))
    for size in (1, 5, 100):
        adapted = gated(build("llama"), "gated_lora")
        begin(adapted, FIRST, held_out_batches(encoded(25, seed=3), 0.1, "rows", 0, size))
        heights.append(float(gate_of(adapted).task_keys[0].height))
        # Processes share the batches of a stream, so all held-out batches are one, whatever their number.
        assert len(streams) == 5 * len(heights)
    assert max(heights) - min(heights) <= 256 / 65536 * 1.01 + 1e-5


def test_earlier_rows_too_few_to_vouch_stay_shut():
    """The rows of a finished task may look just like the new one's."""
    free, kept = (gated(build("llama"), "gated_lora") for _ in range(2))
    held = held_out_batches(encoded(40, seed=1), 0.2, "rows", 0, 16)
    begin(free, FIRST, held)
    begin(kept, FIRST, held, silent_rows(TASKS[FIRST]))
    assert opened(free, TASKS[FIRST][0]).any()
    assert not opened(kept, TASKS[FIRST][0]).any()
    # With enough of them the budget is theirs too: one of nineteen groups may open the gate.
    several = held_out_batches(encoded(19, low=60, high=80, seed=2), 0.1, "rows", 0, 16)
    some = gated(build("llama"), "gated_lora")
    begin(some, FIRST, held, several)
    assert gate_of(free).task_keys[0].height < gate_of(some).task_keys[0].height


def test_a_later_task_leaves_earlier_gates_as_they_are():
    adapted = gated(build("llama"), "gated_lora")
    begin(adapted, FIRST, silent_rows(BACKGROUND))
    before = opened(adapted, mixed())
    begin(adapted, SECOND, silent_rows(BACKGROUND))
    assert torch.equal(opened(adapted, mixed()), before)


def test_too_few_groups_for_a_budget():
    adapted = gated(build("llama"), "gated_lora")
    with pytest.raises(NlftError, match="needs at least 9 held-out background groups, and there are 8"):
        begin(adapted, FIRST, held_out_batches(encoded(8, seed=1), 0.1, "rows", 0, 16))
    assert not len(gate_of(adapted).tasks) and not adapted.peft_config["default"].gates


def test_new_text_opens_the_gate_within_the_budget():
    """Means over calibrations on several backgrounds, each put to text of its own kind that it never saw."""
    rates = []
    for seed in range(6):
        adapted = gated(build("llama"), "gated_lora")
        begin(adapted, FIRST, held_out_batches(encoded(40, seed=seed), 0.2, "rows", 0, 64))
        fresh = batch(200, 8, 100 + seed, high=60)
        rates.append(float(opened(adapted, fresh).any(dim=1).double().mean()))
    rates = torch.tensor(rates)
    assert float(rates.mean()) <= 0.2 + 3 * float(rates.std()) / 6**0.5
    assert float(rates.mean()) > 0.05
