"""Counting what is read."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from lifecycle_models import FIRST, SECOND, WHOLE, every_kind, learned, queries
from pathway_models import BACKGROUND, TASKS, build, logits
from peft import get_peft_model

from nlft.data.batch import Batch
from nlft.data.template import Encoded
from nlft.errors import NlftError
from nlft.pathways.gate import PrototypeGate, gates_of
from nlft.pathways.gated_lora.config import GatedLoraPeftConfig
from nlft.pathways.lifecycle import attach, stored, without_tasks
from nlft.pathways.provenance import STAGED, backgrounds, digest, note_background, note_task
from nlft.pathways.reads import count_reads, gate_changes, naive_slots_read, slots_read
from nlft.pathways.sparse_memory.model import memories

ROWS = [*TASKS[FIRST], *TASKS[SECOND], *BACKGROUND]


def wider(rows: Batch) -> Batch:
    """The same rows with three more columns of padding, and in another order."""
    pad = torch.zeros(len(rows.input_ids), 3, dtype=torch.int64)
    parts = [torch.cat([one, pad], dim=1).flip(0) for one in (rows.input_ids, rows.attention_mask)]
    return Batch(parts[0], parts[1], parts[0])


@every_kind
@pytest.mark.parametrize("apart", [True, False])
def test_counts_do_not_depend_on_padding_and_order(kind, apart):
    model = learned(kind, FIRST, SECOND, apart=apart)
    before = logits(model)
    ours, theirs = count_reads(model, ROWS), count_reads(model, [wider(rows) for rows in reversed(ROWS)])
    assert ours.total == theirs.total == sum(int(rows.attention_mask.sum()) for rows in ROWS)
    assert ours.tokens == theirs.tokens and all(ours.tokens.values())
    pairs: list[tuple[dict[Any, torch.Tensor], ...]] = [(ours.slots, theirs.slots), (ours.gates, theirs.gates)]
    for one, two in pairs:
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert torch.equal(logits(model), before)
    assert bool(ours.gates) == kind.startswith("gated") and bool(ours.slots) != (kind in WHOLE)


@pytest.mark.parametrize("kind", ["prototype", "product_key"])
def test_counts_equal_a_naive_count(kind):
    model = learned(kind, FIRST, SECOND, apart=False)
    rows, cores = TASKS[SECOND], memories(model)
    reads = count_reads(model, rows)
    any_read = []
    found = queries(model, cores, rows, base=False)
    for block, core in cores.items():
        routed = found[block] if kind == "prototype" else route(core, found[block])
        twins = [naive_slots_read(core, task, routed) for task in core.task_slots]
        for name, task, twin in zip((FIRST, SECOND), core.task_slots, twins, strict=True):
            assert torch.equal(slots_read(core, task, routed), twin)
            assert torch.equal(reads.slots[name, block], twin.sum(dim=0))
        any_read.append(torch.stack([twin.any(dim=1) for twin in twins], dim=1))
    assert list(reads.tokens.values()) == torch.stack(any_read).any(dim=0).sum(dim=0).tolist()


def route(core, found):
    from nlft.ops.slots import half_scores, naive_product_topk

    return naive_product_topk(half_scores(found, core.rotations, core.half_keys), core.topk)[1].flatten(1)


def test_gate_keys_are_counted_where_they_are_nearest():
    model = learned("gated_lora", FIRST, SECOND, apart=False)
    gate = cast(PrototypeGate, gates_of(model)["default"])
    [found] = queries(model, {"model.layers.1": gate}, TASKS[SECOND]).values()
    reads = count_reads(model, TASKS[SECOND])
    for name, task in zip((FIRST, SECOND), gate.task_keys, strict=True):
        closest = [max(range(len(task.keys)), key=lambda m, q=q: float(q @ task.keys[m])) for q in found]
        assert reads.gates[name].tolist() == [closest.count(m) for m in range(len(task.keys))]
        assert 0 < reads.tokens[name] <= len(found)


def test_gates_weigh_a_task_against_earlier_ones():
    model = learned("gated_lora", FIRST, SECOND, apart=False)
    attach(model, without_tasks(stored(model), [FIRST]), "rest")
    rows = [*TASKS[FIRST], *TASKS[SECOND]]
    share = gate_changes(model, rows, SECOND, "default", "rest")
    opened = []
    for adapter, place in (("default", 1), ("rest", 0)):
        for one in rows:
            logits(model, one)
            opened.append(cast(torch.Tensor, gates_of(model)[adapter].open)[..., place][one.attention_mask != 0])
    before, after = torch.cat(opened[:2]), torch.cat(opened[2:])
    assert share == float((before != after).double().mean()) > 0
    assert gate_changes(learned("prototype", FIRST), rows, FIRST, "default", "default") == 0


def test_an_adapter_without_tasks_reads_nothing():
    config = GatedLoraPeftConfig(task_type="CAUSAL_LM")
    reads = count_reads(get_peft_model(build("llama"), config).eval(), BACKGROUND)
    assert (reads.tokens, reads.slots, reads.gates) == ({}, {}, {}) and reads.total


def test_provenance():
    rows = [Encoded([1, 2, 3], [-100, 2, 3], 2), Encoded([4], [-100], 0)]
    config = GatedLoraPeftConfig()
    note_task(config, "law", rows)
    noted = config.provenance["law"]
    assert (noted["status"], noted["rows"], noted["tokens"], noted["replay"]) == (STAGED, 2, 4, False)
    assert noted["created"].endswith("+00:00")
    others = [rows[::-1], [Encoded([1, 2, 3], [-100, -100, 3], 2), rows[1]], rows[:1]]
    assert len({noted["rows_sha256"], *map(digest, others)}) == 4
    config.open_task("law", 8)
    note_task(config, "law", rows[:1])  # gated LoRA opens a task before its rows are noted
    config.close_task()
    before = dict(config.provenance["law"])
    with pytest.raises(NlftError, match="'law' has been learned already"):
        note_task(config, "law", rows)
    assert config.provenance["law"] == before and before["rows"] == 1


def test_backgrounds_are_told_apart_by_ids_and_groups():
    rows = [Encoded([1, 2], [-100, 2], 2, "a"), Encoded([3, 4], [-100, 4], 2, "b")]
    config = GatedLoraPeftConfig()
    assert backgrounds(config) == []
    note_background(config, rows)
    note_background(config, list(rows))
    assert len(backgrounds(config)) == 1
    for other in (rows[::-1], rows[:1], [rows[0], Encoded([3, 4], [-100, 4], 2, "a")]):
        note_background(config, other)
    assert len(set(backgrounds(config))) == 4
    config.calibration["background_sha256"].append("x")
    assert GatedLoraPeftConfig().calibration == {}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tasks": {"a\x1b[2J": 3}}, "is no name of a task"),
        ({"tasks": [["", 3]]}, "is no name of a task"),
        ({"gates": {"a": 0}}, "gates.a: 0 is no size"),
        ({"sizes": {"a": {"block": "9"}}}, "sizes.a.block: '9' is no size"),
        ({"provenance": {"a": {"status": "staged\n"}}}, "provenance.a: 'status'"),
        ({"provenance": {"a": {"rows": "many"}}}, "provenance.a: 'rows' is 'many'"),
        ({"provenance": {"a": {"reads": {"tokens": 1}}}}, "provenance.a.reads counts no tokens"),
        ({"provenance": {"a": []}}, "provenance.a must be an object"),
        ({"calibration": {"background_sha256": "x"}}, "must be a list of digests"),
    ],
)
def test_a_config_from_elsewhere_is_checked(fields, said):
    with pytest.raises(NlftError, match=said):
        GatedLoraPeftConfig(**fields)
