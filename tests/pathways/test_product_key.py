"""Product keys: half keys, background documents, health and the rows of a task, on a tiny model."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from pathway_models import BACKGROUND, TASKS, adapt, begin, build, logits, train

from nlft.calibrate import block_inputs
from nlft.data.batch import Batch
from nlft.errors import NlftError
from nlft.ops.choice import Background
from nlft.ops.health import median_frequency
from nlft.pathways.sparse_memory.model import begin_task, end_task, memories
from nlft.pathways.sparse_memory.product_key import (
    LARGEST_MEDIAN,
    BackgroundReads,
    accesses,
    background_reads,
    check_health,
    document_lengths,
    filled,
    product_key_half_keys,
    product_key_rows,
    random_rotations,
)

FIRST = TASKS["first task"]
NAME = "model.layers.1.mlp"


def test_half_keys_are_unit_vectors_of_every_head():
    adapted = adapt(build("llama"), "product_key")
    found = product_key_half_keys(adapted, BACKGROUND, kmeans_steps=2, seed=3)
    rotations, half_keys = found[NAME]
    assert (rotations.shape, half_keys.shape) == ((2, 32, 32), (2, 2, 6, 16))
    torch.testing.assert_close(half_keys.norm(dim=-1), torch.ones(2, 2, 6))
    torch.testing.assert_close(rotations.mT @ rotations, torch.eye(32).expand(2, 32, 32), rtol=0, atol=1e-5)
    assert float((half_keys[0] - half_keys[1]).abs().max()) > 0.1
    assert torch.equal(product_key_half_keys(adapted, BACKGROUND, 2, seed=3)[NAME][1], half_keys)


@pytest.mark.parametrize(("width", "columns"), [(5, 4), (6, 6)])
def test_rotations_at_odd_widths(width, columns):
    found = random_rotations(3, width, columns, torch.Generator().manual_seed(0))
    assert found.shape == (3, width, columns)


def test_missing_half_keys_are_filled_with_unit_vectors():
    found = filled(torch.eye(2, 4), 5, torch.Generator().manual_seed(0))
    assert torch.equal(found[:2], torch.eye(2, 4))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))


def test_accesses_count_attended_tokens_once_whatever_the_padding():
    adapted = adapt(build("llama"), "product_key")
    core = memories(adapted)[NAME]
    short, whole = (found[NAME] for found in accesses(adapted, BACKGROUND, (4, 99)))
    tokens = sum(int(one.attention_mask.sum()) - len(one.input_ids) for one in BACKGROUND)
    assert int(whole.counts.sum()) == tokens * 2 * 3  # heads times topk
    assert torch.equal(short.counts, whole.counts)
    # Rows of 11, 10 and 9 tokens behind the first.
    assert (whole.n_documents, short.n_documents) == (12, 36)
    expected, pieces = torch.zeros(2, 36, dtype=torch.int64)
    for inputs, row in itertools.product(block_inputs(adapted, [NAME], BACKGROUND), range(6)):
        states = inputs.states[NAME][inputs.rows == row]
        expected[core.route(states)[0].unique()] += 1
        for piece in states.split(4):
            pieces[core.route(piece)[0].unique()] += 1
    assert torch.equal(whole.frequency, expected)
    assert torch.equal(short.frequency, pieces)
    pad = torch.nn.functional.pad
    wide = [Batch(pad(b.input_ids, (0, 4)), pad(b.attention_mask, (0, 4)), pad(b.labels, (0, 4))) for b in BACKGROUND]
    for other in (wide, BACKGROUND[::-1]):
        [again] = accesses(adapted, other, (4,))
        assert torch.equal(again[NAME].counts, short.counts)
        assert torch.equal(again[NAME].frequency, short.frequency)


def test_documents_are_halved_until_their_frequencies_say_something():
    assert document_lengths(100) == [100, 50, 25, 12, 8]
    assert document_lengths(16) == [16, 8]
    assert document_lengths(5) == [5]
    adapted = adapt(build("llama"), "product_key", half_keys=10)
    reads = background_reads(adapted, BACKGROUND)
    medians = [
        max(median_frequency(one.frequency, one.n_documents) for one in found.values())
        for found in accesses(adapted, BACKGROUND, (12, 8))
    ]
    assert medians[0] >= LARGEST_MEDIAN > medians[1]  # so the first length is refused and the second taken
    assert (reads.document_tokens, reads.median) == (8, medians[1])
    full = background_reads(adapt(build("llama"), "product_key", half_keys=3), BACKGROUND)
    assert full.document_tokens == 8 and full.median > 0.5  # nothing helps: the shortest


def reads_of(counts, frequency=1, n_documents=100):
    table = Background(torch.as_tensor(counts), torch.full((len(counts),), frequency), n_documents)
    return BackgroundReads({"even": Background(torch.ones(400), torch.ones(400), 100), "odd": table}, 8)


def test_hopeless_keys_are_refused_with_advice():
    check_health(reads_of([5] * 400), "tfidf")
    unused = torch.ones(400)
    unused[:41] = 0
    with pytest.raises(NlftError, match=r"odd: the background reads 90% of the slots.*Lower `half_keys`"):
        check_health(reads_of(unused), "all")
    hubs = torch.ones(400)
    hubs[:4] = 25  # 100 of 496 reads
    with pytest.raises(NlftError, match=r"odd: 1% of the slots take 20% of all reads"):
        check_health(reads_of(hubs), "kl")
    saturated = reads_of([5] * 400, frequency=30)
    check_health(saturated, "kl")
    with pytest.raises(NlftError, match=r"documents of 8 tokens the median slot is read by 30%.*`choice: kl`"):
        check_health(saturated, "tfidf")
    check_health(replace(saturated, blocks={"odd": saturated.blocks["even"]}), "tfidf")


def test_rows_are_what_the_task_reads_and_the_background_does_not():
    adapted = adapt(build("llama"), "product_key")
    background = background_reads(adapted, BACKGROUND).blocks
    rows = product_key_rows(adapted, FIRST, background, slots=5)
    [task] = accesses(adapted, FIRST)
    for name, chosen in rows.items():
        assert torch.equal(chosen, chosen.sort().values) and len(chosen.unique()) == 5
        table = background[name]
        score = task[name].counts * torch.log((table.n_documents + 1) / (table.frequency + 1.0))
        left = score[~torch.isin(torch.arange(36), chosen)]
        assert float(score[chosen].min()) >= float(left.max()) - 1e-4
        read = task[name].counts.nonzero().squeeze(1)
        assert torch.equal(product_key_rows(adapted, FIRST, background, 99)[name], read)
        assert torch.equal(product_key_rows(adapted, FIRST, background, 2, "all")[name], read)
    one, same, other = (product_key_rows(adapted, FIRST, background, 5, "random", seed)[NAME] for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_blocks_may_own_different_numbers_of_rows(tmp_path):
    from peft import PeftModel

    adapted = adapt(build("llama"), "product_key")
    begin_task(adapted, "first task", {NAME: torch.tensor([1, 5]), "model.layers.2.mlp": torch.arange(36)})
    train(adapted, "first task")
    end_task(adapted)
    config = adapted.peft_config["default"]
    assert (config.tasks, config.sizes) == ({"first task": 36}, {"first task": {NAME: 2}})
    begin(adapted, "second.task", ("first task",))
    end_task(adapted)
    adapted.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(build("llama"), str(tmp_path)).eval()
    assert torch.equal(logits(back), logits(adapted))
    assert not torch.equal(logits(back), logits(build("llama")))
