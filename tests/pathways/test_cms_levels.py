"""Levels against their definition, token by token, with all gradients."""

from __future__ import annotations

import math

import pytest
import torch

from nlft.pathways.cms.levels import RMS_EPSILON, Delta, Levels, rms
from nlft.pathways.cms.online import OnlineLevels

VARIANTS = ("headwise", "sequential", "nested")


def naive_levels(n: torch.Tensor, levels: Levels) -> torch.Tensor:
    """Twin of `Levels`: one token, one level and one hidden unit at a time, from the printed equations."""
    flat, found = n.reshape(-1, levels.width), []
    for token in flat:
        u = token
        total = torch.zeros_like(token)
        for level in range(levels.count):
            A, B = getattr(levels, f"A{level}"), getattr(levels, f"B{level}")
            x = token if levels.variant == "headwise" else u / torch.sqrt((u * u).sum() / len(u) + RMS_EPSILON)
            step = torch.zeros_like(token)
            for unit in range(len(A)):
                z = (A[unit] * x).sum()
                step = step + B[:, unit] * (z / (1 + torch.exp(-z)))
            u, total = u + step, total + step
        found.append(levels.scale * (total if levels.variant == "headwise" else u - token))
    return torch.stack(found).view(n.shape)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("shape", "r", "count"), [((7,), 1, 1), ((2, 3, 5), 4, 3), ((0, 6), 2, 2), ((1, 9, 17), 13, 4)]
)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_levels_equal_their_definition(variant, shape, r, count, dtype, close):
    generator = torch.Generator().manual_seed(3)
    levels = Levels(shape[-1], r, count, variant, 0.7, generator=generator, zero=False).to(dtype)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    weights = torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    def run(function) -> list[torch.Tensor]:
        given = x.clone().requires_grad_()
        output = function(given) if math.prod(shape) else given * 0
        gradients = torch.autograd.grad((output * weights).sum(), [given, *levels.parameters()], allow_unused=True)
        return [output.detach(), *(g for g in gradients if g is not None)]

    ours, theirs = run(levels), run(lambda given: naive_levels(given, levels))
    assert ours[0].dtype == dtype and len(ours) == (2 + 2 * count if math.prod(shape) else len(theirs))
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=close, atol=close)
    assert levels(x[:0] if x.ndim > 1 else x[None][:0]).numel() == 0


def test_variants_differ_and_nested_computes_what_sequential_does():
    found = {}
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    for variant in VARIANTS:
        generator = torch.Generator().manual_seed(1)
        found[variant] = Levels(6, 3, 2, variant, generator=generator, zero=False)(x).detach()
    assert torch.equal(found["nested"], found["sequential"])
    assert not torch.allclose(found["headwise"], found["sequential"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_factor_is_zero(variant):
    levels = Levels(6, 3, 2, variant)
    x = torch.randn(4, 6)
    assert torch.equal(levels(x), torch.zeros(4, 6))
    bound = 1 / math.sqrt(6)
    for level in range(2):
        A = getattr(levels, f"A{level}").detach()
        assert 0 < float(A.abs().max()) <= bound and not getattr(levels, f"B{level}").detach().any()


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_deltas_equal_their_definition(dtype, close):
    generator = torch.Generator().manual_seed(3)
    delta = Delta(5, 7, 3, level=1, scale=0.7, generator=generator, zero=False).to(dtype)
    x = torch.randn(2, 3, 5, generator=generator).to(dtype)

    def naive(given: torch.Tensor) -> torch.Tensor:
        change = torch.stack([0.7 * torch.outer(delta.B[:, unit], delta.A[unit]) for unit in range(3)]).sum(dim=0)
        return torch.stack([torch.stack([change @ token for token in row]) for row in given])

    def run(function) -> list[torch.Tensor]:
        given = x.clone().requires_grad_()
        output = function(given)
        return [output, *torch.autograd.grad(output.square().sum(), [given, delta.A, delta.B])]

    for one, two in zip(run(delta), run(naive), strict=True):
        torch.testing.assert_close(one, two, rtol=close, atol=close)
    assert delta.by_level() == {1: ["A", "B"]}
    assert not Delta(5, 7, 3, level=0)(x).any()


@pytest.mark.parametrize("module", [Levels(6, 3, 2, zero=False), Delta(6, 6, 3, level=0, zero=False)])
def test_half_precision_inputs_are_computed_in_float32(module):
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert module(x).dtype == torch.float32 and torch.equal(module(x), module(x.float()))


@pytest.mark.parametrize("module", [Levels(6, 3, 2), Delta(6, 6, 3, level=0), OnlineLevels(6, 3, 2, chunk=4)])
def test_freezing_keeps_names_and_values(module):
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.freeze()
    assert not list(module.parameters()) and {name for name, _ in module.named_buffers()} == set(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_rms_of_a_row():
    assert torch.allclose(rms(torch.tensor([[3.0, -4.0]])), torch.tensor([[3.0, -4.0]]) / math.sqrt(12.5))
    assert torch.equal(rms(torch.zeros(1, 4)), torch.zeros(1, 4))


def test_levels_draw_from_their_generator():
    one, two, other = (Levels(6, 3, 2, generator=torch.Generator().manual_seed(seed)).A1 for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)  # pyright: ignore
