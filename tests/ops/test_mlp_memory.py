"""The MLP memory: its read, one step by autograd, and what it comes to return."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from memory_models import memory_state, tokens

from nlft.ops.chunk_grid import unit
from nlft.ops.delta_memory import Objective
from nlft.ops.mlp_memory import mlp_read, new_mlp_memory, run_mlp_memory, silu_slope

OBJECTIVES: tuple[Objective, ...] = ("dot", "l2")


def test_a_read_by_hand():
    w1, w2 = torch.tensor([[2.0], [0.0]]), torch.tensor([[1.0, -1.0]])
    x = torch.tensor([[3.0, 1.0]])
    hidden = 2 / (1 + torch.tensor(-2.0).exp())
    torch.testing.assert_close(mlp_read((w1, w2), x), torch.stack([3 + 2 * hidden, torch.tensor(1.0)])[None])


def test_the_slope_of_silu():
    x = torch.linspace(-20, 20, 81, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(F.silu(x).sum(), x)
    torch.testing.assert_close(silu_slope(x), slope, rtol=0, atol=1e-14)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_first_token_moves_the_layers_down_their_gradients(objective):
    """With rate eta and no decay: W1 by its gradient, W2 by its gradient and the delta factor."""
    state, inputs = memory_state("mlp", [0]), tokens("mlp", 1, 1)
    inputs["log_decays"].zero_()
    _, after, surprise = run_mlp_memory(state, **inputs, chunk=4, objective=objective)
    for head in range(2):
        w1, w2 = (state[f"running_{n}"][0, head].clone().requires_grad_() for n in ("w1", "w2"))
        key, value = inputs["keys"][0, head, 0], inputs["values"][0, head, 0]
        rate, out = inputs["rates"][0, head, 0], mlp_read((w1, w2), key[None])[0]
        loss = -(out * value).sum() if objective == "dot" else (out - value).square().sum() / 2
        g1, g2, error = torch.autograd.grad(loss, (w1, w2, out))
        torch.testing.assert_close(after["running_w1"][0, head], w1 - rate * g1, rtol=0, atol=1e-12)
        moved = w2 - rate * (w2 @ key)[:, None] * key - rate * g2
        torch.testing.assert_close(after["running_w2"][0, head], moved, rtol=0, atol=1e-12)
        torch.testing.assert_close(surprise[0, head, 0], error.norm(), rtol=0, atol=1e-12)


def test_l2_learns_what_is_written_again_and_again():
    draw = torch.Generator().manual_seed(0)
    initial = (torch.randn(1, 8, 16, generator=draw) / 4, torch.randn(1, 16, 8, generator=draw))
    keys = unit(torch.randn(1, 1, 3, 8, generator=draw)).repeat(1, 1, 200, 1)
    values = torch.randn(1, 1, 3, 8, generator=draw).repeat(1, 1, 200, 1)
    rates = torch.full((1, 1, 600), 0.05)
    state = new_mlp_memory(initial, 1)
    reads, _, surprise = run_mlp_memory(state, keys, keys, values, rates, rates * 0, 3, objective="l2")
    assert surprise[..., -3:].mean() < 0.3 * surprise[..., :3].mean()
    errors = (reads - values).norm(dim=-1)
    torch.testing.assert_close(errors, surprise)  # the queries are the keys, and both read the boundary


def test_new_memories_stand_at_the_initial_layers():
    initial = (torch.randn(2, 4, 5, dtype=torch.bfloat16), torch.randn(2, 5, 4, dtype=torch.bfloat16))
    state, inputs = new_mlp_memory(initial, 3), tokens("mlp", 3, 5)
    assert all(x.shape[0] == 3 for x in state.values()) and state["running_w1"].dtype == torch.float32
    reads = run_mlp_memory(state, **inputs, chunk=8)[0]
    wide = (initial[0].float(), initial[1].float())
    torch.testing.assert_close(reads, mlp_read(wide, inputs["queries"].float()))


def test_dot_runs_away_on_a_repeated_token_and_l2_does_not():
    """Each layer's gradient grows with the other layer, and nothing bounds `<M(k), v>`; l2 wanders, but not off."""
    draw = torch.Generator().manual_seed(0)
    initial = (torch.randn(1, 8, 8, generator=draw) / 8, torch.randn(1, 8, 8, generator=draw))
    key, value = (unit(torch.randn(1, 1, 1, 8, generator=draw)).expand(1, 1, 512, 8) for _ in range(2))
    rates = torch.full((1, 1, 512), 0.1)
    answers = {}
    for objective in OBJECTIVES:
        state = new_mlp_memory(initial, 1)
        _, state, _ = run_mlp_memory(state, key, key, value, rates, rates * 0, 16, objective=objective)
        layers = state["running_w1"], state["running_w2"]
        answers[objective] = float((mlp_read(layers, key[:, :, :1]) - value[:, :, :1]).norm())
    assert answers["dot"] > 1e6 and answers["l2"] < 2.5
