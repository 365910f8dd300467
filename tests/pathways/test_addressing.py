"""Addresses: prototypes with thresholds, half keys and rows, end to end on a tiny model."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from pathway_models import BACKGROUND, TASKS, adapt, batch, begin, build, train

from nlft.calibrate import block_inputs
from nlft.data.batch import Batch
from nlft.errors import NlftError
from nlft.ops.slots import prototype_scores
from nlft.pathways.sparse_memory.addressing import (
    ROUNDING,
    accesses,
    filled,
    product_key_half_keys,
    product_key_rows,
    prototype_addresses,
    random_rotations,
    sample_queries,
)
from nlft.pathways.sparse_memory.model import begin_task, end_task, memories

FIRST = TASKS["first task"]


def scores(adapted, addresses, rows):
    """[N, M] scores of every block at every token of some rows."""
    cores = memories(adapted)
    return {
        name: prototype_scores(
            torch.cat([cores[name].queries(i.states[name]) for i in block_inputs(adapted, list(cores), rows)]),
            *addresses[name],
        )
        for name in cores
    }


def test_prototypes_are_silent_on_the_background_and_speak_on_their_task():
    adapted = adapt(build("llama"), "prototype")
    addresses = prototype_addresses(adapted, FIRST, BACKGROUND, [], slots=12)
    # The same rows in other company and with more padding.
    mixed = [batch(6, 12, 1, high=60), *BACKGROUND]
    for name, silent in scores(adapted, addresses, mixed).items():
        assert float(silent.max()) == 0.0
        assert float((scores(adapted, addresses, FIRST)[name].amax(dim=1) > 0).float().mean()) > 0.5


def test_thresholds_are_the_largest_cosine_and_a_margin():
    adapted = adapt(build("llama"), "prototype")
    name = "model.layers.2.mlp"
    core = memories(adapted)[name]
    states = torch.cat(
        [core.queries(i.states[name]) for i in block_inputs(adapted, [name], [*BACKGROUND, *FIRST], first=True)]
    )
    keys, thresholds = prototype_addresses(adapted, TASKS["second.task"], BACKGROUND, FIRST, 9, margin=0.25)[name]
    assert (keys.shape, thresholds.shape) == ((9, 32), (9,))
    expected = (states @ keys.T).amax(dim=0) + 0.25 + ROUNDING[torch.float32]
    torch.testing.assert_close(thresholds, expected, rtol=0, atol=1e-5)


def test_a_second_task_is_silent_on_the_first():
    adapted = adapt(build("llama"), "prototype")
    begin(adapted, "first task")
    train(adapted, "first task")
    end_task(adapted)
    addresses = prototype_addresses(adapted, TASKS["second.task"], BACKGROUND, FIRST, slots=12)
    free = prototype_addresses(adapted, TASKS["second.task"], BACKGROUND, [], slots=12)
    assert max(float(one.max()) for one in scores(adapted, addresses, [*FIRST, *BACKGROUND]).values()) == 0.0
    assert max(float(one.max()) for one in scores(adapted, free, FIRST).values()) > 0.0


def test_fewer_tokens_than_slots_give_fewer_keys():
    adapted = adapt(build("llama"), "prototype")
    n_tokens = int(FIRST[0].attention_mask.sum()) - len(FIRST[0].input_ids)
    addresses = prototype_addresses(adapted, FIRST, BACKGROUND, [], slots=1000)
    assert {len(keys) for keys, _ in addresses.values()} == {n_tokens}
    begin_task(adapted, "t", addresses)


def test_addresses_follow_the_seed():
    adapted = adapt(build("llama"), "prototype")
    one, same, other = (prototype_addresses(adapted, FIRST, BACKGROUND, [], 6, seed=s) for s in (0, 0, 1))
    name = "model.layers.1.mlp"
    assert torch.equal(one[name][0], same[name][0])
    assert not torch.equal(one[name][0], other[name][0])


def test_samples_are_uniform_and_the_same_tokens_everywhere():
    adapted = adapt(build("llama"), "prototype")
    cores = memories(adapted)
    names = list(cores)
    every = {
        n: torch.cat([cores[n].queries(i.states[n]) for i in block_inputs(adapted, names, BACKGROUND)]) for n in names
    }
    total = len(every[names[0]])
    whole = sample_queries(adapted, cores, BACKGROUND, total, 0)
    assert torch.equal(whole[names[0]], every[names[0]])
    drawn = torch.zeros(total)
    for seed in range(40):
        part = sample_queries(adapted, cores, BACKGROUND, 10, seed)
        places = [(part[n] @ every[n].T).argmax(dim=1) for n in names]
        assert torch.equal(places[0], places[1]) and len(places[0].unique()) == 10
        drawn[places[0]] += 1
    second = len(every[names[0]]) // 2  # the two batches are of equal size
    spread = math.sqrt(400 * 0.25)
    assert abs(float(drawn[:second].sum()) - 200) < 4 * spread


def test_half_keys_are_unit_vectors_of_every_head():
    adapted = adapt(build("llama"), "product_key")
    found = product_key_half_keys(adapted, BACKGROUND, kmeans_steps=2, seed=3)
    rotations, half_keys = found["model.layers.1.mlp"]
    assert (rotations.shape, half_keys.shape) == ((2, 32, 32), (2, 2, 6, 16))
    torch.testing.assert_close(half_keys.norm(dim=-1), torch.ones(2, 2, 6))
    torch.testing.assert_close(rotations.mT @ rotations, torch.eye(32).expand(2, 32, 32), rtol=0, atol=1e-5)
    assert float((half_keys[0] - half_keys[1]).abs().max()) > 0.1
    assert torch.equal(product_key_half_keys(adapted, BACKGROUND, 2, seed=3)["model.layers.1.mlp"][1], half_keys)


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
    name = "model.layers.1.mlp"
    core = memories(adapted)[name]
    counts, frequency, n_documents = accesses(adapted, BACKGROUND)
    tokens = sum(int(one.attention_mask.sum()) - len(one.input_ids) for one in BACKGROUND)
    assert int(counts[name].sum()) == tokens * 2 * 3  # heads times topk
    assert n_documents == 12
    expected = torch.zeros(36, dtype=torch.int64)
    for inputs, row in itertools.product(block_inputs(adapted, [name], BACKGROUND), range(6)):
        read = core.route(inputs.states[name][inputs.rows == row])[0].unique()
        expected[read] += 1
    assert torch.equal(frequency[name], expected)
    pad = torch.nn.functional.pad
    wide = [Batch(*(pad(t, (0, 4)) for t in (b.input_ids, b.attention_mask, b.labels))) for b in BACKGROUND]
    assert torch.equal(accesses(adapted, wide)[0][name], counts[name])
    assert torch.equal(accesses(adapted, BACKGROUND[::-1])[1][name], frequency[name])


def test_rows_are_what_the_task_reads_and_the_background_does_not():
    adapted = adapt(build("llama"), "product_key")
    rows = product_key_rows(adapted, FIRST, BACKGROUND, slots=5)
    task, background = accesses(adapted, FIRST)[0], accesses(adapted, BACKGROUND)[1]
    for name, chosen in rows.items():
        assert torch.equal(chosen, chosen.sort().values) and len(chosen.unique()) == 5
        score = task[name] / task[name].sum() * torch.log(13 / (background[name] + 1.0))
        left = score[~torch.isin(torch.arange(36), chosen)]
        assert float(score[chosen].min()) >= float(left.max()) - 1e-6
    assert len(product_key_rows(adapted, FIRST, BACKGROUND, slots=99)["model.layers.1.mlp"]) == 36


def test_rows_without_tokens_are_refused():
    adapted = adapt(build("llama"), "prototype")
    empty = [batch(2, 1, 0)]
    with pytest.raises(NlftError, match="no token to make keys of"):
        prototype_addresses(adapted, empty, BACKGROUND, [], slots=3)
    with pytest.raises(NlftError, match="no token to set thresholds on"):
        prototype_addresses(adapted, FIRST, [], [], slots=3)
