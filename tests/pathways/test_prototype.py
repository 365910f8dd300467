"""Prototype keys and their thresholds, end to end on a tiny model: maxima, budgets, and keys behind a gate."""

from __future__ import annotations

import math
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pathway_models import BACKGROUND, TASKS, adapt, batch, begin, build, train

import nlft.calibrate
from nlft.calibrate import block_inputs
from nlft.config import PrefixConfig
from nlft.data.template import Encoded
from nlft.distributed import in_turn
from nlft.errors import NlftError
from nlft.frozen_prefix import install_prefix
from nlft.ops.slots import prototype_scores
from nlft.pathways import prototype
from nlft.pathways.prototype import (
    ROUNDING,
    HeldOut,
    held_out_batches,
    hold_out,
    needed_margin,
    prototype_addresses,
    read_addresses,
    rounding_of,
    sample_queries,
)
from nlft.pathways.sparse_memory.model import begin_task, end_task, memories
from nlft.prefix_store import PrefixStore

FIRST = TASKS["first task"]
PAD = 0


def encoded(groups: int, low: int = 3, high: int = 60, seed: int = 0) -> list[Encoded]:
    """Rows of random tokens, one to four a group, of 4 to 12 tokens."""
    rng = random.Random(seed)
    rows = []
    for group in range(groups):
        for _ in range(rng.randint(1, 4)):
            ids = [rng.randrange(low, high) for _ in range(rng.randint(4, 12))]
            rows.append(Encoded(ids, ids, 0, cluster=f"{seed}.{group}"))
    return rows


def realised(adapted, addresses, rows: list[Encoded], unit: str) -> float:
    """Mean over groups of the share of their rows, or tokens, at which any key of any block fires."""
    shares: dict[str, list[float]] = {}
    for row in rows:
        held = held_out_batches([row], 0.5, "rows", PAD, 1)
        fires = torch.zeros(len(row.ids), dtype=torch.bool)
        [inputs] = block_inputs(adapted, list(addresses), [held.batches[0][0]], first=True)
        for name, core in memories(adapted).items():
            fires |= (prototype_scores(core.queries(inputs.states[name]), *addresses[name]) > 0).any(dim=1)
        found = [float(fires.any())] if unit == "rows" else fires.double().tolist()
        shares.setdefault(row.cluster, []).extend(found)
    return sum(sum(share) / len(share) for share in shares.values()) / len(shares)


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
    addresses = prototype_addresses(adapted, memories(adapted), FIRST, BACKGROUND, [], slots=12)
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
    keys, thresholds = prototype_addresses(
        adapted, memories(adapted), TASKS["second.task"], BACKGROUND, FIRST, 9, margin=0.25
    )[name]
    assert (keys.shape, thresholds.shape) == ((9, 32), (9,))
    expected = (states @ keys.T).amax(dim=0) + 0.25 + ROUNDING[torch.float32]
    torch.testing.assert_close(thresholds, expected, rtol=0, atol=1e-5)


def test_states_that_are_rounded_raise_thresholds_by_more():
    model = build("llama")
    for config, expected in ((PrefixConfig(), torch.float32), (PrefixConfig(dtype="bfloat16"), torch.bfloat16)):
        install_prefix(model, "base", config, PrefixStore(None, config))
        assert rounding_of(model) == ROUNDING[expected]
    install_prefix(model.half(), "base", config, PrefixStore(None, config))
    assert rounding_of(model) == ROUNDING[torch.bfloat16]
    install_prefix(model, "base", PrefixConfig(enabled=False), PrefixStore(None, config))
    assert rounding_of(model) == ROUNDING[torch.float16]


def test_a_second_task_is_silent_on_the_first():
    adapted = adapt(build("llama"), "prototype")
    begin(adapted, "first task")
    train(adapted, "first task")
    end_task(adapted)
    addresses = prototype_addresses(adapted, memories(adapted), TASKS["second.task"], BACKGROUND, FIRST, slots=12)
    free = prototype_addresses(adapted, memories(adapted), TASKS["second.task"], BACKGROUND, [], slots=12)
    assert max(float(one.max()) for one in scores(adapted, addresses, [*FIRST, *BACKGROUND]).values()) == 0.0
    assert max(float(one.max()) for one in scores(adapted, free, FIRST).values()) > 0.0


def test_fewer_tokens_than_slots_give_fewer_keys():
    adapted = adapt(build("llama"), "prototype")
    n_tokens = int(FIRST[0].attention_mask.sum()) - 2 * len(FIRST[0].input_ids)  # neither first nor last tokens
    addresses = prototype_addresses(adapted, memories(adapted), FIRST, BACKGROUND, [], slots=1000)
    assert {len(keys) for keys, _ in addresses.values()} == {n_tokens}
    begin_task(adapted, "t", addresses)


def test_addresses_follow_the_seed():
    adapted = adapt(build("llama"), "prototype")
    one, same, other = (
        prototype_addresses(adapted, memories(adapted), FIRST, BACKGROUND, [], 6, seed=s) for s in (0, 0, 1)
    )
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
    asked: list[int] = []
    reader = SimpleNamespace(queries=lambda states: asked.append(len(states)) or cores[names[0]].queries(states))
    sample_queries(adapted, {names[0]: reader}, BACKGROUND, 10, 0)  # pyright: ignore[reportArgumentType]
    assert sum(asked) == 10, "only what is kept is whitened"


def test_rows_without_tokens_are_refused():
    adapted = adapt(build("llama"), "prototype")
    empty = [batch(2, 1, 0)]
    with pytest.raises(NlftError, match="no token to make keys of"):
        prototype_addresses(adapted, memories(adapted), empty, BACKGROUND, [], slots=3)
    with pytest.raises(NlftError, match="no token to set thresholds on"):
        prototype_addresses(adapted, memories(adapted), FIRST, [], [], slots=3)


@pytest.mark.parametrize("unit", ["rows", "tokens"])
@pytest.mark.parametrize("budget", [0.05, 0.3])
def test_a_budget_is_kept_on_what_vouches_for_it_and_nearly_used(unit, budget):
    adapted = adapt(build("llama"), "prototype")
    held = encoded(60, seed=1)
    vouched = held_out_batches(held, budget, unit, PAD, 7)
    addresses = prototype_addresses(
        adapted, memories(adapted), FIRST, BACKGROUND[:1], [], slots=12, held_out=vouched, kmeans_steps=2
    )
    rate = realised(adapted, addresses, held, unit)
    # One group may be given away by the theorem, and what one more row weighs.
    assert budget - 2.1 / 61 <= rate <= budget
    unheard = prototype_addresses(adapted, memories(adapted), FIRST, BACKGROUND[:1], [], slots=12, kmeans_steps=2)
    assert all(torch.equal(addresses[name][0], keys) for name, (keys, _) in unheard.items())
    moved = {float((addresses[name][1] - limits).mean()) for name, (_, limits) in unheard.items()}
    assert max(moved) - min(moved) < 1e-5  # one margin for all keys of all blocks


def test_a_margin_below_zero_keeps_earlier_tasks_silent():
    adapted = adapt(build("llama"), "prototype")
    held = held_out_batches(encoded(30, seed=1), 0.5, "tokens", PAD, 16)
    second = TASKS["second.task"]
    options: dict[str, Any] = dict(slots=12, held_out=held, kmeans_steps=2)
    kept = prototype_addresses(adapted, memories(adapted), second, BACKGROUND, FIRST, **options)
    loose = prototype_addresses(adapted, memories(adapted), second, BACKGROUND, [], **options)
    assert max(float(one.max()) for one in scores(adapted, kept, BACKGROUND).values()) > 0.0
    assert max(float(one.max()) for one in scores(adapted, kept, FIRST).values()) == 0.0
    assert max(float(one.max()) for one in scores(adapted, loose, FIRST).values()) > 0.0


def test_the_needed_margin_does_not_depend_on_batches(monkeypatch):
    adapted = adapt(build("llama"), "prototype")
    rows, cores = encoded(25, seed=3), memories(adapted)
    addresses = prototype_addresses(adapted, cores, FIRST, BACKGROUND, [], slots=6)
    keys, thresholds = ({name: pair[i] for name, pair in addresses.items()} for i in (0, 1))
    streams = []
    monkeypatch.setattr(nlft.calibrate, "in_turn", lambda *of: streams.append(of) or in_turn(*of))
    for unit in ("rows", "tokens"):
        margins = [
            needed_margin(adapted, cores, keys, thresholds, held_out_batches(rows, 0.1, unit, PAD, size))
            for size in (1, 5, 100)
        ]
        assert max(margins) - min(margins) <= 4 / 65536 + 1e-5  # a bin
    assert len(streams) == 6, "one for all batches, whose passes processes share"


def test_too_few_groups_for_a_budget_and_keys_that_cannot_fire():
    adapted = adapt(build("llama"), "prototype")
    few = held_out_batches(encoded(8, seed=1), 0.1, "rows", PAD, 16)
    with pytest.raises(NlftError, match="needs at least 9 held-out background groups, and there are 8"):
        prototype_addresses(adapted, memories(adapted), FIRST, BACKGROUND, [], slots=3, held_out=few)
    with pytest.raises(NlftError, match="No key of the task could ever fire"):
        prototype_addresses(adapted, memories(adapted), FIRST, FIRST, [], slots=3, margin=1.9)
    # The very rows of the task as background that must stay silent.
    same = HeldOut([(FIRST[0], torch.ones(5, dtype=torch.float64))], 5, 1 / 6, "rows")
    with pytest.raises(NlftError, match="No key of the task could ever fire"):
        prototype_addresses(adapted, memories(adapted), FIRST, BACKGROUND, [], slots=100, held_out=same)


def test_every_group_weighs_one():
    rows = encoded(20, seed=2)
    for unit in ("rows", "tokens"):
        held = held_out_batches(rows, 0.1, unit, PAD, 6)
        assert (held.groups, held.budget, held.unit) == (20, 0.1, unit)
        assert sum(len(one.input_ids) for one, _ in held.batches) == len(rows)
        by_ids = {tuple(row.ids): row.cluster for row in rows}
        weight: Counter[str] = Counter()
        for one, weights in held.batches:
            for ids, mask, w in zip(one.input_ids, one.attention_mask, weights.tolist(), strict=True):
                n = int(mask.sum())
                weight[by_ids[tuple(ids[:n].tolist())]] += w if unit == "rows" else w * n
        assert set(weight) == {row.cluster for row in rows}
        assert all(total == pytest.approx(1.0) for total in weight.values())


def test_held_out_groups_are_apart_and_always_the_same():
    rows = encoded(21, seed=5)
    one, other = hold_out(rows, seed=3)
    assert len(one) + len(other) == len(rows)
    first, second = ({row.cluster for row in part} for part in (one, other))
    assert not first & second and (len(first), len(second)) == (11, 10)
    again, rest = hold_out(rows[::-1], seed=3)
    assert {row.cluster for row in again} == first and {row.cluster for row in rest} == second
    assert {row.cluster for row in hold_out(rows, seed=4)[0]} != first


@pytest.mark.parametrize("sample", [16_384, 20])
def test_keys_behind_a_gate_are_read_by_their_share(monkeypatch, sample):
    monkeypatch.setattr(prototype, "READ_SAMPLE", sample)
    adapted = adapt(build("llama"), "prototype")
    rows = [batch(8, 12, seed, low=60, high=80) for seed in range(3)]
    found = read_addresses(adapted, memories(adapted), rows, slots=10, reads=3, kmeans_steps=2)
    queries = sample_queries(adapted, memories(adapted), rows, 10**6, 0, last=False)
    for name, (keys, limits) in found.items():
        share = (queries[name] @ keys.T > limits).double().mean(dim=0)
        assert keys.shape == (10, 32) and float(share.mean()) == pytest.approx(0.3, abs=0.02 if sample > 99 else 0.12)
        if sample > 99:
            assert float((share - 0.3).abs().max()) < 0.02
    few = read_addresses(adapted, memories(adapted), FIRST, slots=1000, reads=50)  # more reads than keys
    assert all(torch.isfinite(limits).all() for _, limits in few.values())
