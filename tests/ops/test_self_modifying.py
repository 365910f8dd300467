"""The self-modifying memory: what it generates, how it relates to the linear memory, and that it stays bounded."""

from __future__ import annotations

import pytest
import torch
from memory_models import assert_same, memory_state, tokens

from nlft.ops.chunk_grid import unit
from nlft.ops.delta_memory import new_memory, run_memory
from nlft.ops.self_modifying import generate, join_memories, run_self_modifying


def test_what_a_token_generates():
    state, inputs = memory_state("self-modifying", [0, 0]), tokens("self-modifying", 2, 6)
    memory = state["boundary"]
    keys, values, rates, log_decays = generate(memory, inputs["features"], inputs["offsets"], 0.5)
    x = inputs["features"][1, 0, 3]
    made = memory[1, 0] @ x
    torch.testing.assert_close(keys[1, 0, 3], made[4:8] / made[4:8].norm())
    torch.testing.assert_close(values[1, 0, 3], made[8:12] / made[8:12].norm())
    torch.testing.assert_close(rates[1, 0, 3], 0.5 / (1 + torch.exp(-made[12] - inputs["offsets"][0, 0])))
    # exp(-softplus(x)) is 1 / (1 + e^x)
    torch.testing.assert_close(log_decays[1, 0, 3].exp(), 1 / (1 + torch.exp(made[13] + inputs["offsets"][0, 1])))


@pytest.mark.parametrize("objective", ["dot", "l2"])
@pytest.mark.parametrize("reads", ["token", "boundary"])
def test_inside_the_first_chunk_it_is_a_linear_memory_of_what_it_generates(objective, reads):
    state, inputs = memory_state("self-modifying", [0, 0]), tokens("self-modifying", 2, 9)
    start = state["running"]
    keys, values, rates, log_decays = generate(start, inputs["features"], inputs["offsets"], 1.0)
    plain = {"running": start, "boundary": start, "count": state["count"]}
    given = inputs["queries"], keys, values @ start.mT, rates, log_decays
    expected = run_memory(plain, *given, 9, objective=objective, reads=reads)
    found = run_self_modifying(state, **inputs, chunk=9, objective=objective, reads=reads)
    assert_same((found[0], found[1], 0 * found[2]), (expected[0][..., :4], expected[1], 0 * found[2]), torch.float64)


def test_the_keys_themselves_change():
    """A later chunk generates other keys than the first for the same feature."""
    state, inputs = memory_state("self-modifying", [0]), tokens("self-modifying", 1, 8)
    after = run_self_modifying(state, **inputs, chunk=8)[1]
    for part in range(5):
        place = slice(4 * part, 4 * part + 4) if part < 3 else slice(9 + part, 10 + part)
        assert (after["boundary"] - state["boundary"])[:, :, place].abs().max() > 1e-3
    old, new = (generate(s["boundary"], inputs["features"], inputs["offsets"], 1.0)[0] for s in (state, after))
    assert (old - new).abs().max() > 1e-2


@pytest.mark.parametrize("objective", ["dot", "l2"])
def test_unit_values_keep_it_bounded_without_any_decay(objective):
    """2048 tokens at rates near 0.95; with values of free length the same run overflows within a few chunks."""
    draw = torch.Generator().manual_seed(0)
    size, length = 16, 2048
    memory, key, value = torch.randn(3, 2, size, size, generator=draw) / 10
    rate, decay = torch.randn(2, 2, size, generator=draw) / 50
    state = new_memory(join_memories(memory, key + torch.eye(size), value + torch.eye(size), rate, decay), 1)
    queries, features = unit(torch.randn(2, 1, 2, length, size, generator=draw))
    offsets = torch.tensor([[3.0, -20.0]] * 2)
    reads, after, _ = run_self_modifying(state, queries, features, offsets, 64, objective=objective)
    assert bool(torch.isfinite(reads).all()) and after["running"].norm() < 40 * state["running"].norm()
    assert reads[:, :, -64:].norm(dim=-1).mean() < 40 * reads[:, :, :64].norm(dim=-1).mean()


def test_joined_memories_lie_in_their_order():
    memory, key, value = (torch.full((2, 3, 3), float(n)) for n in range(3))
    joined = join_memories(memory, key, value, torch.full((2, 3), 3.0), torch.full((2, 3), 4.0))
    assert joined.shape == (2, 11, 3) and joined[0, :, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 4]
