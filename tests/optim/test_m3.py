"""M3 and Muon: steps by hand, and against torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nlft.ops.orthogonal import orthogonalised
from nlft.optim.m3 import M3
from nlft.optim.muon import Muon


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_m3_by_hand() -> None:
    """Frequency 2, gradients diag(1, 2) and diag(3, 2), all betas 0.5, a 0.5, two dimensions: 0.2 sqrt(2) per unit.

    fast: diag(0.5, 1), then diag(1.75, 1.5). slow, at step 2: 0.5 * mean = diag(1, 1). Second moments, corrected:
    0.5 g^2 / 0.5, then (0.25 g1^2 + 0.5 g2^2) / 0.75 = diag(4.75, 3) / 0.75, elsewhere 0.
    """
    p = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    eps = 1e-3
    optimizer = M3([p], 0.1, betas=(0.5, 0.5, 0.5), slow_weight=0.5, frequency=2, eps=eps)
    unit = 0.1 * 0.2 * 2**0.5

    def ns(a: float, b: float) -> torch.Tensor:
        return orthogonalised(torch.diag(torch.tensor([a, b], dtype=torch.float64)))

    def over(a: float, b: float) -> torch.Tensor:
        second = torch.diag(torch.tensor([a, b], dtype=torch.float64))
        return (second / second.mean()).sqrt() + eps

    p.grad = torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer.step()
    want = -unit * ns(0.5, 1) / over(1, 4)
    torch.testing.assert_close(p.detach(), want, atol=1e-12, rtol=0)
    p.grad = torch.diag(torch.tensor([3.0, 2.0], dtype=torch.float64))
    optimizer.step()
    want = want - unit * (ns(1.75, 1.5) + 0.5 * ns(1, 1)) / over(4.75 / 0.75, 3 / 0.75)
    torch.testing.assert_close(p.detach(), want, atol=1e-12, rtol=0)
    assert float(optimizer.state[p]["sum"].abs().max()) == 0


def test_literal_m3_by_hand() -> None:
    """Nothing decays: after gradients G and G, M1 = 2 b1 G, V = 2 b2 G^2, M2 = b3 2 G; NS forgets the factors."""
    g = draw(3, 2)
    p = nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))
    optimizer = M3([p], 0.1, betas=(0.9, 0.5, 0.7), slow_weight=0.5, frequency=2, decay=False, relative=False)
    want = torch.zeros(3, 2, dtype=torch.float64)
    for step in (1, 2):
        p.grad = g.clone()
        optimizer.step()
        slow = 0.5 * orthogonalised(g) if step == 2 else 0
        want = want - 0.1 * (orthogonalised(g) + slow) / ((step * 0.5 * g.square()).sqrt() + 1e-8)
    torch.testing.assert_close(p.detach(), want, atol=1e-10, rtol=0)
    torch.testing.assert_close(optimizer.state[p]["slow"], 1.4 * g, atol=1e-14, rtol=0)


def test_m3_of_a_vector_is_adam_until_the_slow_momentum_comes() -> None:
    first, second = (nn.Parameter(draw(5)) for _ in range(2))
    optimizer, adam = M3([first], 0.1, frequency=8), torch.optim.Adam([second], lr=0.1)
    for step in range(8):
        assert torch.allclose(first, second, atol=1e-10, rtol=0)
        first.grad, second.grad = (draw(5, seed=step + 1) for _ in range(2))
        optimizer.step()
        adam.step()
    assert not torch.allclose(first, second, atol=1e-3, rtol=0)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch's Muon came with 2.9")
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_torchs_up_to_its_bfloat16(nesterov: bool) -> None:
    first, second = ([nn.Parameter(draw(*s, dtype=torch.float32)) for s in ((4, 9), (9, 4), (4, 9))] for _ in range(2))
    mine = Muon(first, 0.1, weight_decay=0.1, nesterov=nesterov)
    options: dict[str, Any] = {"weight_decay": 0.1, "nesterov": nesterov, "adjust_lr_fn": "match_rms_adamw"}
    torchs = torch.optim.Muon(second, lr=0.1, **options)
    for step in range(4):
        for params, optimizer in ((first, mine), (second, torchs)):
            for i, p in enumerate(params):
                p.grad = 0.1 * draw(*p.shape, seed=10 * step + i, dtype=p.dtype)
            optimizer.step()
    for p, q in zip(first, second, strict=True):
        torch.testing.assert_close(p, q, atol=4e-3, rtol=0)
        assert float((p - draw(*p.shape, dtype=torch.float32)).detach().abs().max()) > 0.1
