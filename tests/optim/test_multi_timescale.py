"""MultiTimescale: bit-equality with what it wraps, clocks, resuming, and transfer between levels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from nlft.errors import NlftError
from nlft.optim.multi_timescale import MultiTimescale

INNER: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.1),
    "fused": lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.1, fused=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.1),
}


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)) for shape in shapes]


def set_gradients(params: list[nn.Parameter], step: int, scale: float = 1.0) -> None:
    g = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = (scale * torch.randn(p.shape, generator=g, dtype=torch.float64)).to(p.dtype)


def run(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: range, peak: float = 0.1) -> None:
    """What `nlft.train` does to an optimiser, with a falling learning rate."""
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = peak * (1 - step / 50)
        set_gradients(params, step)
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def assert_equal(first: list[nn.Parameter], second: list[nn.Parameter]) -> None:
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", INNER)
@pytest.mark.parametrize("marked", [False, True])
def test_period_one_is_the_plain_optimizer(kind: str, marked: bool) -> None:
    plain, wrapped = parameters((3, 5), (7,)), parameters((3, 5), (7,))
    run(INNER[kind]([{"params": plain}]), plain, range(20))
    group: dict[str, Any] = {"params": wrapped, **({"period": 1} if marked else {})}
    run(MultiTimescale(INNER[kind]([group])), wrapped, range(20))
    assert_equal(plain, wrapped)
    assert not torch.equal(plain[0], parameters((3, 5))[0]), "it must have moved"


@pytest.mark.parametrize("kind", INNER)
@pytest.mark.parametrize("period", [3, 8])
def test_a_period_is_accumulation(kind: str, period: int) -> None:
    plain, wrapped = parameters((3, 5), (7,)), parameters((3, 5), (7,))
    optimizer = MultiTimescale(INNER[kind]([{"params": wrapped, "period": period}]))
    twin = INNER[kind]([{"params": plain}])
    for step in range(3 * period):
        before = [p.detach().clone() for p in wrapped]
        set_gradients(wrapped, step)
        gradients = [p.grad for p in wrapped]
        for p, gradient in zip(plain, gradients, strict=True):
            assert gradient is not None
            p.grad = gradient.clone() if p.grad is None else p.grad + gradient
        optimizer.step()
        if (step + 1) % period:
            assert_equal(wrapped, [nn.Parameter(p) for p in before])
            assert all(p.grad is None for p in wrapped)
        else:
            for p in plain:
                assert p.grad is not None
                p.grad /= period
            twin.step()
            twin.zero_grad()
            assert not torch.equal(wrapped[0], before[0])
        assert_equal(plain, wrapped)
        optimizer.zero_grad()
    assert optimizer.sums == {}


def test_groups_keep_their_own_clocks_and_rates() -> None:
    """SGD by hand: gradients 1, 2, 3, ...; rate 0.1, and 0.1 times 2 for the slow group."""
    fast, slow = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    inner = torch.optim.SGD(
        [{"params": [fast]}, {"params": [slow], "period": 3, "lr_scale": 2.0, "weight_decay": 0.5}], lr=0.1
    )
    optimizer = MultiTimescale(inner)
    seen = []
    for step in range(1, 7):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * group.get("lr_scale", 1.0)
        fast.grad, slow.grad = torch.tensor([float(step)]), torch.tensor([float(step)])
        optimizer.step()
        seen.append((round(fast.item(), 6), round(slow.item(), 6)))
    # slow: -0.2 * mean(1,2,3) = -0.4; then -0.4 - 0.2 * (mean(4,5,6) + 0.5 * -0.4) = -1.36
    assert seen == [(-0.1, 0.0), (-0.3, 0.0), (-0.6, -0.4), (-1.0, -0.4), (-1.5, -0.4), (-2.1, -1.36)]


def test_a_parameter_without_gradients_rests() -> None:
    used, unused, sometimes = parameters((2,), (2,), (2,))
    before = unused.detach().clone()
    start = sometimes.detach().clone()
    optimizer = MultiTimescale(torch.optim.SGD([{"params": [used, unused, sometimes], "period": 2}], lr=1.0))
    used.grad, sometimes.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    used.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(unused, before)
    assert torch.equal(sometimes, start - 0.5), "a step without gradient counts as zero"


@pytest.mark.parametrize("kind", INNER)
@pytest.mark.parametrize("reinitialise", [False, True])
@pytest.mark.parametrize("stop", [0, 1, 5, 6, 7])
def test_resuming_equals_going_on(kind: str, reinitialise: bool, stop: int, tmp_path: Any) -> None:
    def make(params: list[nn.Parameter]) -> MultiTimescale:
        groups = [{"params": [p], "period": 2**i, "level": i} for i, p in enumerate(params)]
        return MultiTimescale(INNER[kind](groups), consolidation=0.3, reinitialise=reinitialise)

    straight = parameters(*[(2, 3)] * 3)
    run(make(straight), straight, range(13))

    first = parameters(*[(2, 3)] * 3)
    half = make(first)
    run(half, first, range(stop))
    torch.save(half.state_dict(), tmp_path / "optimizer.pt")
    second = [nn.Parameter(p.detach().clone()) for p in first]
    run(half, first, range(stop, 13))  # what was saved must not follow the optimiser that goes on
    resumed = make(second)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    run(resumed, second, range(stop, 13))
    assert_equal(straight, first)
    assert_equal(straight, second)


def test_bfloat16_parameters_have_float32_sums() -> None:
    """Eight gradients of 1 and 1/256: a bfloat16 sum would lose every small one."""
    (p,) = parameters((1,), dtype=torch.bfloat16)
    with torch.no_grad():
        p.zero_()
    optimizer = MultiTimescale(torch.optim.SGD([{"params": [p], "period": 8}], lr=1.0))
    for step in range(8):
        p.grad = torch.tensor([1.0 if step == 0 else 2**-8], dtype=torch.bfloat16)
        optimizer.step()
        if step < 7:
            assert optimizer.sums[p].dtype == torch.float32
            assert optimizer.sums[p].item() == 1 + step * 2**-8
    assert p.dtype == torch.bfloat16
    assert p.item() == -float(torch.tensor((1 + 7 / 256) / 8, dtype=torch.bfloat16))
    assert p.item() != -0.125, "what a bfloat16 sum gives"


def test_float64_stays_float64() -> None:
    (p,) = parameters((3,), dtype=torch.float64)
    optimizer = MultiTimescale(torch.optim.SGD([{"params": [p], "period": 2}], lr=1.0))
    p.grad = torch.full((3,), 1 / 3, dtype=torch.float64)
    optimizer.step()
    assert optimizer.sums[p].dtype == torch.float64


def three_levels(**options: Any) -> tuple[list[nn.Parameter], MultiTimescale]:
    """Scalars at 0, 10 and 100 with periods 1, 2 and 4, SGD of rate 1."""
    params = [nn.Parameter(torch.tensor([v])) for v in (0.0, 10.0, 100.0)]
    groups = [{"params": [p], "period": 2**i, "level": i} for i, p in enumerate(params)]
    return params, MultiTimescale(torch.optim.SGD(list(reversed(groups)), lr=1.0), **options)


def trace(params: list[nn.Parameter], optimizer: MultiTimescale, steps: int) -> list[tuple[float, ...]]:
    seen = []
    for _ in range(steps):
        for p in params:
            p.grad = torch.tensor([-1.0])
        optimizer.step()
        seen.append(tuple(p.item() for p in params))
    return seen


def test_consolidation_by_hand() -> None:
    """Every gradient moves a parameter by 1 at its boundary; half of what fast moved is added to slow."""
    assert trace(*three_levels(consolidation=0.5), steps=4) == [
        (1.0, 10.0, 100.0),
        (2.0, 12.0, 100.0),  # 10 + 1, and half of 2 - 0
        (3.0, 12.0, 100.0),
        (4.0, 14.0, 103.0),  # 12 + 1 + half of 4 - 2; then 100 + 1 + half of 14 - 10
    ]


def test_reinitialisation_by_hand() -> None:
    """The fast level restarts from an initial state that goes half of its way."""
    assert trace(*three_levels(consolidation=0.5, reinitialise=True), steps=4) == [
        (1.0, 10.0, 100.0),
        (1.0, 11.0, 100.0),  # 2, of which half is kept
        (2.0, 11.0, 100.0),
        (2.0, 11.0, 101.0),  # theta0 1, fast 3, half way is 2; middle: 12, half way from 10 is 11
    ]
    assert trace(*three_levels(reinitialise=True), steps=2)[1] == (0.0, 11.0, 100.0)


def test_flush_steps_what_waits() -> None:
    params, optimizer = three_levels()
    trace(params, optimizer, 5)
    params[0].grad = torch.tensor([7.0])
    optimizer.flush()
    assert [p.item() for p in params] == [5.0, 13.0, 102.0], "the mean of one gradient each"
    assert params[0].grad is not None and params[0].grad.item() == 7.0 and params[1].grad is None
    optimizer.flush()
    assert [p.item() for p in params] == [5.0, 13.0, 102.0]
    assert trace(params, optimizer, 2)[1] == (7.0, 14.0, 102.0), "clocks begin anew"


def test_flush_is_a_mean_over_what_there_is() -> None:
    p = nn.Parameter(torch.zeros(1))
    optimizer = MultiTimescale(torch.optim.SGD([{"params": [p], "period": 8}], lr=1.0))
    for value in (1.0, 2.0, 6.0):
        p.grad = torch.tensor([value])
        optimizer.step()
    optimizer.flush()
    assert p.item() == -3.0


def test_a_closure_is_called_once_with_gradients() -> None:
    (p,) = parameters((2,))
    optimizer = MultiTimescale(torch.optim.SGD([{"params": [p], "period": 2}], lr=1.0))
    calls = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        calls.append(loss.item())
        return loss

    start = p.detach().clone()
    for _ in range(2):
        assert optimizer.step(closure).item() == calls[-1]
    assert len(calls) == 2
    assert torch.allclose(p, start - 2 * start)


def test_copies_and_added_groups() -> None:
    params, optimizer = three_levels()
    trace(params, optimizer, 3)
    other = copy.deepcopy(optimizer)
    copied = [p for group in reversed(other.param_groups) for p in group["params"]]
    assert trace(copied, other, 3) == trace(params, optimizer, 3)
    extra = nn.Parameter(torch.zeros(1))
    optimizer.add_param_group({"params": [extra], "period": 2})
    trace([extra], optimizer, 2)
    assert extra.item() == 1.0


def sgd(*groups: dict[str, Any], **options: Any) -> MultiTimescale:
    return MultiTimescale(torch.optim.SGD(list(groups), lr=1.0), **options)


def test_mistakes_are_sentences() -> None:
    a, b, c = parameters((2,), (2,), (3,))
    for period in (0, -1, 1.5, "8", True):
        with pytest.raises(NlftError, match=r"group 0 has period"):
            sgd({"params": [a], "period": period})
    with pytest.raises(NlftError, match="consolidation is 2"):
        sgd({"params": [a]}, consolidation=2.0)
    with pytest.raises(NlftError, match="group 0 has no level"):
        sgd({"params": [a]}, consolidation=0.5)
    with pytest.raises(NlftError, match=r"shapes \(2,\) and \(3,\)"):
        sgd({"params": [a], "level": 0}, {"params": [c], "level": 1}, consolidation=0.5)
    with pytest.raises(NlftError, match="2 and 1 parameters"):
        sgd({"params": [a, c], "level": 0}, {"params": [b], "level": 1}, consolidation=0.5)
    with pytest.raises(NlftError, match="which does not divide it"):
        sgd({"params": [a], "level": 0, "period": 2}, {"params": [b], "level": 1, "period": 3}, reinitialise=True)
    with pytest.raises(NlftError, match="periods 1 and 2"):
        sgd({"params": [a], "level": 0}, {"params": [b], "level": 0, "period": 2}, consolidation=0.5)
    with pytest.raises(NlftError, match="has no clock"):
        sgd({"params": [a]}).load_state_dict(torch.optim.SGD([b], lr=1.0).state_dict())
    assert len(sgd({"params": [a], "level": 0}, {"params": [c], "level": 1}, reinitialise=True).levels) == 2
