"""Rows chosen at every step: what is counted, what moves, and what is kept."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from pathway_models import BACKGROUND, TASKS, adapt, batch, build, logits, loss

from nlft.calibrate import block_inputs
from nlft.data.batch import Batch
from nlft.loss import target_loss
from nlft.ops.choice import choose
from nlft.pathways.sparse_memory.model import begin_task, end_task, memories
from nlft.pathways.sparse_memory.product_key import background_reads, keep_moved, open_tables, product_key_rows
from nlft.pathways.sparse_memory.tally import RowSGD, Tally
from nlft.types import IGNORE

NAMES = ("model.layers.1.mlp", "model.layers.2.mlp")
ROWS = batch(8, 10, 3, low=60, high=90)


def opened(**options):
    adapted = adapt(build("llama"), "product_key", half_keys=10, **options)
    background = background_reads(adapted, BACKGROUND).blocks
    return adapted, open_tables(adapted, "t", background)


def backward(adapted, rows: Batch) -> None:
    (target_loss(adapted, rows) / 50).backward()


def counts(adapted) -> list[torch.Tensor]:
    found = [cast(Tally, core.newest.tally).counts.clone() for core in memories(adapted).values()]
    assert all(int(one.sum()) for one in found)
    return found


def widened(rows: Batch, left: int, right: int) -> Batch:
    def pad(tensor, value):
        return torch.nn.functional.pad(tensor, (left, right), value=value)

    labels = rows.labels.clone()
    labels[:, 0] = IGNORE  # as in encoded rows: the padding before it predicts nothing
    return Batch(pad(rows.input_ids, 7), pad(rows.attention_mask, 0), pad(labels, IGNORE))


def test_tokens_count_that_get_a_gradient():
    adapted, _ = opened()
    backward(adapted, ROWS)
    found = counts(adapted)
    # The last block's output at a token reaches the loss through the attention of the block behind it, or at itself;
    # the last token of a row reaches nothing. The first tokens of rows read too, so they are put back.
    lengths = ROWS.attention_mask.sum(dim=1)
    assert [int(one.sum()) for one in found] == [int((lengths - 1).sum()) * 2 * 3] * 2
    expected = torch.zeros(100, dtype=torch.int64)
    for inputs in block_inputs(adapted, [NAMES[0]], [ROWS], first=True, last=False):
        slots = memories(adapted)[NAMES[0]].route(inputs.states[NAMES[0]])[0]
        expected += torch.bincount(slots.flatten(), minlength=100)
    assert torch.equal(found[0], expected)


@pytest.mark.parametrize(("left", "right"), [(0, 3), (4, 0), (2, 2)])
def test_counts_do_not_depend_on_padding(left, right):
    adapted, _ = opened()
    backward(adapted, ROWS)
    other, _ = opened()
    rows = widened(ROWS, left, right)
    positions = (rows.attention_mask.cumsum(dim=1) - 1).clamp_min(0)
    out = other(input_ids=rows.input_ids, attention_mask=rows.attention_mask, position_ids=positions).logits
    torch.nn.functional.cross_entropy(
        out[:, :-1].flatten(0, 1), rows.labels[:, 1:].flatten(), ignore_index=IGNORE
    ).backward()
    assert all(torch.equal(a, b) for a, b in zip(counts(adapted), counts(other), strict=True))


def test_one_batch_of_eight_counts_as_eight_of_one_and_moves_the_same_rows():
    results = []
    for size in (8, 1):
        adapted, tables = opened()
        for part in zip(*(t.split(size) for t in (ROWS.input_ids, ROWS.attention_mask, ROWS.labels)), strict=True):
            backward(adapted, Batch(*part))
        before = counts(adapted)
        RowSGD(tables, lr=3.0, choice="tfidf", slots=7).step()
        results.append((before, [tally.moved for tally in tables.values()], [v.detach() for v in tables]))
        assert all(int(tally.counts.sum()) == 0 for tally in tables.values())
    (first, moved, values), (second, same, others) = results
    assert all(torch.equal(a, b) for a, b in zip(first + moved, second + same, strict=True))
    for a, b in zip(values, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert float(a.abs().max()) > 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_counts_once(reentrant):
    plain, _ = opened()
    loss(plain.train(), ROWS).backward()
    adapted, _ = opened()
    adapted.get_base_model().gradient_checkpointing_enable({"use_reentrant": reentrant})
    adapted.enable_input_require_grads()
    loss(adapted.train(), ROWS).backward()
    assert all(torch.equal(a, b) for a, b in zip(counts(plain), counts(adapted), strict=True))


def test_scoring_counts_nothing():
    adapted, tables = opened()
    logits(adapted)
    assert all(int(tally.counts.sum()) == 0 for tally in tables.values())


def test_the_gradient_of_a_whole_table_is_that_of_compact_rows():
    adapted, tables = opened()
    backward(adapted, ROWS)
    background = background_reads(adapted, BACKGROUND).blocks
    compact = adapt(build("llama"), "product_key", half_keys=10)
    rows = product_key_rows(compact, TASKS["first task"], background, 20)
    begin_task(compact, "t", rows)
    backward(compact, ROWS)
    for name, table in zip(NAMES, tables, strict=True):
        gradient = memories(compact)[name].newest.values.grad
        assert gradient is not None and table.grad is not None
        assert gradient.shape == (20, 32) and float(gradient.abs().max()) > 0
        torch.testing.assert_close(table.grad[rows[name]], gradient, rtol=0, atol=1e-7)


def test_only_the_chosen_rows_move_and_they_are_all_that_is_kept():
    adapted, tables = opened(init_weights=False)  # values that are not zero, so that any change shows
    start = [values.detach().clone() for values in tables]
    optimizer = RowSGD(tables, lr=2.0, choice="tfidf", slots=4)
    union = [torch.zeros(100, dtype=torch.bool) for _ in tables]
    for seed in (3, 5, 8):
        backward(adapted, batch(4, 9, seed, low=60, high=97))
        before = [values.detach().clone() for values in tables]
        gradients = [values.grad.clone() for values in tables if values.grad is not None]
        chosen = [choose("tfidf", t.counts, t.background, 4, torch.Generator()) for t in tables.values()]
        optimizer.step()
        optimizer.zero_grad()
        for values, old, gradient, rows, seen in zip(tables, before, gradients, chosen, union, strict=True):
            expected = old.clone()
            expected[rows] -= 2.0 * gradient[rows]
            torch.testing.assert_close(values.detach(), expected, rtol=0, atol=1e-6)
            moved = (values != old).any(dim=1)
            assert moved.nonzero().squeeze(1).tolist() == rows.tolist()
            seen[rows] = True
    for values, first, seen in zip(tables, start, union, strict=True):
        assert torch.equal(values[~seen], first[~seen])  # bit-equal
        assert 4 < int(seen.sum()) < 13
    kept = keep_moved(adapted)
    assert list(kept.values()) == [int(seen.sum()) for seen in union]
    for name, values, seen in zip(NAMES, tables, union, strict=True):
        part = memories(adapted)[name].newest
        assert torch.equal(part.rows, seen.nonzero().squeeze(1)) and torch.equal(part.values, values[seen])


def test_a_finished_table_computes_what_it_did(tmp_path):
    from peft import PeftModel

    adapted, tables = opened()
    optimizer = RowSGD(tables, lr=3.0, choice="kl", slots=6)
    for _ in range(2):
        optimizer.zero_grad()
        backward(adapted, ROWS)
        optimizer.step()
    before = logits(adapted, ROWS)
    assert not torch.equal(before, logits(build("llama"), ROWS))
    keep_moved(adapted)
    end_task(adapted)
    assert torch.equal(logits(adapted, ROWS), before)
    assert not any(p.requires_grad for p in adapted.parameters())
    adapted.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(build("llama"), str(tmp_path)), ROWS), before)


def test_a_task_without_a_step_keeps_one_row():
    adapted, _ = opened()
    assert set(keep_moved(adapted).values()) == {1}
    end_task(adapted)
    assert torch.equal(logits(adapted), logits(build("llama")))
