"""The linear memory: one chunk against single steps, what it comes to return, and what the chunk length changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from memory_models import TOLERANCE, close, memory_state, tokens

from nlft.ops.chunk_grid import unit
from nlft.ops.delta_memory import Objective, delta_chunk, delta_steps, new_memory, run_memory

OBJECTIVES: tuple[Objective, ...] = ("dot", "l2")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("alpha", [1.0, 0.999, 0.5])
@pytest.mark.parametrize(("shape", "length"), [((), 1), ((2,), 2), ((2, 3), 0), ((2, 3), 33), ((1,), 256)])
def test_a_chunk_equals_its_steps_with_all_gradients(dtype, alpha, shape, length):
    draw = torch.Generator().manual_seed(0)

    def normal(*sizes):
        return torch.randn(*shape, *sizes, generator=draw, dtype=torch.float64)

    given = [normal(3, 5), unit(normal(length, 5)), unit(normal(length, 5)), normal(length, 3)]
    given += [torch.rand(*shape, length, generator=draw).double(), torch.full((*shape, length), alpha).log().double()]
    weights, found = (normal(length, 3), normal(3, 5)), []
    for run in (delta_chunk, delta_steps):
        parts = [x.to(dtype).requires_grad_() for x in given]
        out = run(*parts)
        torch.stack([(x * w.to(dtype)).sum() for x, w in zip(out, weights, strict=True)]).sum().backward()
        found.append([*out, *(torch.zeros_like(x) if x.grad is None else x.grad for x in parts)])
    for a, b in zip(*found, strict=True):
        assert a.shape == b.shape and bool(torch.isfinite(a).all())
        close(a, b, dtype)


def test_a_step_by_hand():
    state = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    query, key, write = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[10.0, 20.0]])
    for run in (delta_chunk, delta_steps):
        reads, after = run(state, query, key, write, torch.tensor([0.5]), torch.tensor([0.25]).log())
        torch.testing.assert_close(reads, torch.tensor([[3.0, 7.0]]))
        # 0.25 S - 0.5 (S k) k^T + U k^T
        expected = torch.tensor([[0.25 - 0.5 + 10, 0.5], [0.75 - 1.5 + 20, 1.0]])
        torch.testing.assert_close(after, expected)


def one_key(objective: Any, chunk: int, rate: float, chunks: int, start: float = 0.0) -> list[float]:
    """What a memory of one number answers after every chunk, when one key is written with value 1 again and again."""
    state = new_memory(torch.full((1, 1, 1), start, dtype=torch.float64), 1)
    ones = torch.ones(1, 1, chunk, 1, dtype=torch.float64)
    rates, answers = torch.full((1, 1, chunk), rate, dtype=torch.float64), []
    for _ in range(chunks):
        _, state, _ = run_memory(state, ones, ones, ones, rates, rates * 0, chunk, objective=objective)
        answers.append(float(state["running"]))
    return answers


@pytest.mark.parametrize(("chunk", "rate"), [(1, 0.1), (1, 0.9), (8, 0.05), (8, 0.5), (8, 0.3), (64, 1.0)])
def test_what_a_repeated_key_comes_to_return(chunk, rate):
    """Dot comes to v, by a = (1 - eta)^C a chunk; l2 to v / 2, by 2 a - 1, so it swings ever more as C eta grows."""
    left = (1 - rate) ** chunk
    for objective, fixed, slope in (("dot", 1.0, left), ("l2", 0.5, 2 * left - 1)):
        assert one_key(objective, chunk, rate, 1, fixed)[-1] == pytest.approx(fixed, abs=1e-12)
        for start in (-1.0, 3.0):
            after = one_key(objective, chunk, rate, 2, start)
            assert after[0] - fixed == pytest.approx(slope * (start - fixed), abs=1e-12)
            assert after[1] - fixed == pytest.approx(slope**2 * (start - fixed), abs=1e-12)
    assert one_key("dot", chunk, rate, 400)[-1] == pytest.approx(1.0, abs=1e-12)
    if 0.02 < left < 0.98:  # |slope|^400 is nothing
        assert one_key("l2", chunk, rate, 400)[-1] == pytest.approx(0.5, abs=1e-6)


def test_l2_flips_between_nothing_and_the_value_in_long_chunks():
    answers = one_key("l2", 64, 1.0, 6)
    assert answers == pytest.approx([1.0, 0.0] * 3, abs=1e-12)


def test_plain_gradient_descent_diverges_where_both_objectives_stay():
    """Without the delta factor a chunk is M - C eta (M - v), which runs away at C eta > 2; table of C = 8."""
    for rate, stays in ((0.2, True), (0.249, True), (0.26, False), (0.5, False)):
        answer = 0.0
        for _ in range(200):
            answer -= 8 * rate * (answer - 1.0)
        assert (abs(answer) < 2) == stays
        for objective in OBJECTIVES:
            assert abs(one_key(objective, 8, rate, 200)[-1]) < 1.01


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dot_does_not_depend_on_the_chunk_length_and_l2_does(dtype):
    state, inputs = memory_state("linear", [0, 0], dtype), tokens("linear", 2, 50, dtype)
    for objective in OBJECTIVES:
        found = [run_memory(state, **inputs, chunk=c, objective=objective)[0] for c in (1, 2, 7, 16, 50, 64)]
        gaps = [float((x - found[0]).abs().max()) for x in found[1:]]
        if objective == "dot":
            assert max(gaps) < TOLERANCE[dtype] * float(found[0].abs().max())
        else:
            assert min(gaps) > 0.1


def test_reads_at_the_boundary_lag_behind_reads_by_token():
    inputs = tokens("linear", 1, 12)
    state = new_memory(torch.zeros(2, 3, 4, dtype=torch.float64), 1)
    late = run_memory(state, **inputs, chunk=4, reads="boundary")[0]
    early = run_memory(state, **inputs, chunk=4)[0]
    assert not late[:, :, :4].any() and early[:, :, 1:4].any()  # nothing is known in the first chunk
    for start in (0, 4, 8):  # the first token of a chunk reads the boundary either way
        torch.testing.assert_close(late[:, :, start], early[:, :, start], rtol=0, atol=1e-12)


def test_surprise_is_the_length_of_the_local_gradient():
    """Of `-<M k, v>` and of `|M k - v|^2 / 2` with respect to M at the boundary, by autograd."""
    state, inputs = memory_state("linear", [3], chunk=8), tokens("linear", 1, 4)
    memory = state["boundary"][0, 0].clone().requires_grad_()
    for objective in OBJECTIVES:
        surprise = run_memory(state, **inputs, chunk=8, objective=objective)[2]
        for t in range(4):
            key, value = inputs["keys"][0, 0, t], inputs["values"][0, 0, t]
            loss = -(memory @ key * value).sum() if objective == "dot" else (memory @ key - value).square().sum() / 2
            (gradient,) = torch.autograd.grad(loss, memory)
            torch.testing.assert_close(surprise[0, 0, t], gradient.norm(), rtol=0, atol=1e-12)


def test_one_closed_form_step_is_the_proximal_step():
    """`argmin |W k - u|^2 / 2 + |W - S|^2 / (2 e)` is the delta step of rate e / (1 + e) (equation 57)."""
    draw = torch.Generator().manual_seed(0)
    state, target = torch.randn(3, 5, generator=draw).double(), torch.randn(3, generator=draw).double()
    key, e = unit(torch.randn(5, generator=draw).double()), 0.7
    best = (target[:, None] * key + state / e) @ torch.linalg.inv(key[:, None] * key + torch.eye(5).double() / e)
    rate = torch.tensor([e / (1 + e)], dtype=torch.float64)
    _, found = delta_chunk(state, key[None], key[None], rate * target[None], rate, rate * 0)
    torch.testing.assert_close(found, best, rtol=0, atol=1e-12)
