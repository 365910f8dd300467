"""What every deep optimiser must do; delta and deep momentum by hand and against their twins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from nlft.errors import NlftError
from nlft.optim.deep import DeepOptimizer
from nlft.optim.deep_momentum import DeepMomentum, learn, to_blocks
from nlft.optim.delta_momentum import DeltaMomentum, naive_delta_momentum
from nlft.optim.m3 import M3
from nlft.optim.muon import Muon

KINDS: dict[str, Callable[..., DeepOptimizer]] = {
    "delta_momentum": DeltaMomentum,
    "delta_momentum_literal": lambda params, lr, **o: DeltaMomentum(
        params, lr, normalise=False, preconditioner="identity", **o
    ),
    "deep_momentum": DeepMomentum,
    "muon": Muon,
    "m3": lambda params, lr, **o: M3(params, lr, frequency=3, **o),
    "m3_literal": lambda params, lr, **o: M3(params, lr, frequency=3, decay=False, relative=False, **o),
}
SHAPES = [(3, 5), (5, 3), (4,), (), (1, 6), (2, 3, 2), (3, 5), (40, 33)]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    return [nn.Parameter(draw(*shape, seed=i, dtype=dtype)) for i, shape in enumerate(SHAPES)]


def run(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: range, scale: float = 0.1) -> None:
    for step in steps:
        for i, p in enumerate(params):
            p.grad = scale * draw(*p.shape, seed=100 * step + i, dtype=p.dtype)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_resuming_equals_going_on(kind: str, dtype: torch.dtype, tmp_path: Any) -> None:
    straight, first = parameters(dtype), parameters(dtype)
    run(KINDS[kind](straight, 0.05, weight_decay=0.1), straight, range(9))
    half = KINDS[kind](first, 0.05, weight_decay=0.1)
    run(half, first, range(4))
    torch.save(half.state_dict(), tmp_path / "o.pt")
    second = [nn.Parameter(p.detach().clone()) for p in first]
    run(half, first, range(4, 9))
    resumed = KINDS[kind](second, 0.05, weight_decay=0.1)
    resumed.load_state_dict(torch.load(tmp_path / "o.pt", weights_only=True))
    run(resumed, second, range(4, 9))
    wide = torch.promote_types(dtype, torch.float32)
    for a, b, c, start in zip(straight, first, second, parameters(dtype), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c) and not torch.equal(a, start)
        assert bool(a.isfinite().all())
        tensors = [t for t in resumed.state[c].values() if isinstance(t, torch.Tensor)]
        assert tensors and all(t.dtype == wide for t in tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_without_gradient_rest_and_others_do_not_feel_them(kind: str) -> None:
    alone, together = parameters(), parameters()
    one, many = KINDS[kind](alone[:1], 0.01), KINDS[kind]([{"params": together}], 0.01, weight_decay=0.0)
    for step in range(5):
        alone[0].grad, together[0].grad = (0.1 * draw(3, 5, seed=step) for _ in range(2))
        if step % 2:
            together[6].grad = draw(3, 5, seed=50 + step)  # of equal shape: batched with the first
        one.step()
        many.step()
        many.zero_grad()
    torch.testing.assert_close(alone[0], together[0], atol=1e-13, rtol=0)
    for i, (p, start) in enumerate(zip(together, parameters(), strict=True)):
        assert torch.equal(p, start) == (i not in (0, 6))


@pytest.mark.parametrize("kind", KINDS)
def test_weight_decay_is_decoupled_and_a_schedule_acts_at_once(kind: str) -> None:
    first, second, plain = parameters(), parameters(), parameters()
    decayed, frozen, undecayed = KINDS[kind](first, 0.01, weight_decay=0.5), KINDS[kind](second, 0.01), None
    undecayed = KINDS[kind](plain, 0.01)
    run(decayed, first, range(1))
    run(undecayed, plain, range(1))
    for p, q, start in zip(first, plain, parameters(), strict=True):
        torch.testing.assert_close(p - 0.995 * start, q - start, atol=1e-14, rtol=0)
    run(frozen, second, range(3))
    before = [p.detach().clone() for p in second]
    frozen.param_groups[0]["lr"] = 0.0
    run(frozen, second, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(second, before, strict=True))


@pytest.mark.parametrize("kind", [k for k in KINDS if "literal" not in k])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_steps_do_not_grow_or_vanish_with_the_gradient(kind: str, scale: float) -> None:
    params, unit = parameters(), parameters()
    run(KINDS[kind](params, 0.01), params, range(6), scale)
    run(KINDS[kind](unit, 0.01), unit, range(6), 1.0)
    for p, q in zip(params, unit, strict=True):
        torch.testing.assert_close(p, q, atol=2e-4, rtol=0)


def descend(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], scale: float = 1.0) -> float:
    """Three hundred steps down scale/2 |p|^2; what is left of |p|^2, as a share."""
    start = sum(float(p.detach().square().sum()) for p in params)
    for _ in range(300):
        for p in params:
            p.grad = scale * p.detach()
        optimizer.step()
    return sum(float(p.detach().square().sum()) for p in params) / start


@pytest.mark.parametrize("kind", [k for k in KINDS if "literal" not in k])
def test_a_quadratic_is_descended(kind: str) -> None:
    params = parameters()[:4]
    assert descend(KINDS[kind](params, 0.1 if kind in ("m3", "muon") else 0.02), params) < 0.05


def test_the_literal_delta_rule_needs_small_gradients() -> None:
    """The factor alpha - |g|^2 grows what it should shrink once |g|^2 > 1 + alpha, as in a gradient of length 3."""
    small, large, normal = ([nn.Parameter(torch.tensor([[3.0, 0.0]]))] for _ in range(3))
    literal = {"normalise": False, "preconditioner": "identity"}
    assert descend(DeltaMomentum(small, 0.05, **literal), small, scale=0.1) < 0.1  # type: ignore[arg-type]
    assert not descend(DeltaMomentum(large, 0.05, **literal), large) < 1.0  # type: ignore[arg-type]
    assert descend(DeltaMomentum(normal, 0.05, preconditioner="identity"), normal) < 0.1


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (1, 4), (4, 1)])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_delta_momentum_equals_its_twin(shape: Any, normalise: bool, dtype: torch.dtype, tolerance: float) -> None:
    weight, gradients = draw(*shape, dtype=dtype), [0.3 * draw(*shape, seed=i + 1, dtype=dtype) for i in range(6)]
    p = nn.Parameter(weight.clone())
    optimizer = DeltaMomentum([p], 0.1, momentum=0.8, normalise=normalise, preconditioner="identity")
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
    twin = naive_delta_momentum(weight, gradients, 0.1, 0.8, normalise)
    torch.testing.assert_close(p.detach(), twin, atol=tolerance, rtol=0)


def test_delta_momentum_by_hand() -> None:
    """One row, gradients (3, 4) and (5, 0); momentum 0.5.

    m1 = -(3, 4). Literal: m2 = 0.5 m1 - (m1 . g) g - g = (-1.5, -2) + 15 (5, 0) - (5, 0) = (68.5, -2).
    With the unit gradient: m2 = (-1.5, -2) + 3 (1, 0) - (5, 0) = (-3.5, -2). The step is 0.1 m.
    """
    for normalise, second in ((False, [68.5, -2.0]), (True, [-3.5, -2.0])):
        p = nn.Parameter(torch.zeros(1, 2))
        optimizer = DeltaMomentum([p], 0.1, momentum=0.5, normalise=normalise, preconditioner="identity")
        for g in ([3.0, 4.0], [5.0, 0.0]):
            p.grad = torch.tensor([g])
            optimizer.step()
        torch.testing.assert_close(p.detach(), 0.1 * torch.tensor([[-3.0, -4.0]]) + 0.1 * torch.tensor([second]))


def test_delta_momentum_with_second_moments_by_hand() -> None:
    """g = (3, 4), then again: v is 9 and 16 after correction, so P g = (1, 1); m2 = 0.5 m1 - (m1 . k) k - P g."""
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = DeltaMomentum([p], 0.1, momentum=0.5, eps=0.0)
    for _ in range(2):
        p.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
        optimizer.step()
    key = torch.tensor([0.6, 0.8], dtype=torch.float64)
    second = -0.5 + 1.4 * key - 1.0
    torch.testing.assert_close(p.detach(), 0.1 * (second - 1.0), atol=1e-12, rtol=0)


def naive_learn(write: Any, read: Any, blocks: Any, momentum: float, rate: float) -> Any:
    """The twin of `learn` for one memory: the objective's gradients by autograd."""
    u = blocks.flatten(0, -2)

    def memory(write: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        f = torch.nn.functional.silu(u @ read.T)
        return u + (f / f.norm(dim=1, keepdim=True)) @ write.T

    write, read = write.clone().requires_grad_(), read.clone().requires_grad_()
    objective = (memory(write, read) * u).sum(1).mean()
    dwrite, dread = torch.autograd.grad(objective, [write, read])
    write, read = momentum * write + dwrite, read + rate * dread
    read = read / read.norm(dim=1, keepdim=True)
    return write.detach(), read.detach(), memory(write, read).detach().view_as(blocks)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_memory_learns_by_its_objective(dtype: torch.dtype, tolerance: float) -> None:
    blocks, write, read = draw(2, 3, 2, 5, dtype=dtype), draw(2, 5, 4, seed=1, dtype=dtype), draw(2, 4, 5, seed=2)
    read = (read / read.norm(dim=-1, keepdim=True)).to(dtype)
    got = learn(write, read, blocks, 0.9, 0.3)
    for i in range(2):
        for mine, twin in zip(got, naive_learn(write[i], read[i], blocks[i], 0.9, 0.3), strict=True):
            torch.testing.assert_close(mine[i], twin, atol=tolerance, rtol=0)


def test_deep_momentum_by_hand() -> None:
    """A constant gradient (2, 0) in one block of two, one feature: its h is -1 or 1, so W1 h = u (1 + 0.9 + ...)."""
    p = nn.Parameter(torch.zeros(1, 2, dtype=torch.float64))
    optimizer = DeepMomentum([p], 0.1, hidden=1, inner_rate=0.0, eps=0.0)
    u = torch.tensor([[2.0, 0.0]], dtype=torch.float64) / 2**0.5  # over the root mean square
    kept, want = 0.0, torch.zeros(1, 2, dtype=torch.float64)
    for _ in range(4):
        p.grad = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
        optimizer.step()
        kept = 0.9 * kept + 1
        want = want - 0.1 * (1 + kept) * u
        torch.testing.assert_close(p.detach(), want, atol=1e-12, rtol=0)


def test_blocks_and_the_size_of_a_memory() -> None:
    rows = draw(1, 3, 7)
    blocks = to_blocks(rows, 4)
    assert blocks.shape == (1, 3, 2, 4) and float(blocks[0, 0, 1, 3]) == 0
    assert torch.equal(blocks.flatten(2)[..., :7], rows)
    p = nn.Parameter(draw(200, 100))
    optimizer = DeepMomentum([p], 0.1)
    run(optimizer, [p], range(1))
    assert sum(t.numel() for t in optimizer.state[p].values() if isinstance(t, torch.Tensor)) == 1025


def test_mistakes_are_sentences() -> None:
    (p,) = parameters()[:1]
    with pytest.raises(NlftError, match="no preconditioner 'adam'"):
        DeltaMomentum([p], 0.1, preconditioner="adam")  # type: ignore[arg-type]
    with pytest.raises(NlftError, match="m3 has frequency 0"):
        M3([p], 0.1, frequency=0)
    with pytest.raises(NlftError, match="width 0 and hidden 16"):
        DeepMomentum([p], 0.1, width=0)
