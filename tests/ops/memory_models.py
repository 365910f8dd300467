"""The three memories of sequences with their twins, and runs of both on random tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from nlft.ops.chunk_grid import State, unit
from nlft.ops.delta_memory import run_memory, run_memory_steps
from nlft.ops.mlp_memory import run_mlp_memory, run_mlp_memory_steps
from nlft.ops.self_modifying import run_self_modifying, run_self_modifying_steps

Inputs = dict[str, Any]
"""Tensors by the name of the argument."""
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


class Memory(NamedTuple):
    """A memory: how it is run, its twin, and the keywords that it can be run with."""

    run: Callable[..., Any]
    twin: Callable[..., Any]
    options: list[dict[str, str]]


OBJECTIVES = [{"objective": "dot"}, {"objective": "l2"}]
BOTH = [{**objective, "reads": reads} for objective in OBJECTIVES for reads in ("token", "boundary")]
MEMORIES = {
    "linear": Memory(run_memory, run_memory_steps, BOTH),
    "mlp": Memory(run_mlp_memory, run_mlp_memory_steps, OBJECTIVES),
    "self-modifying": Memory(run_self_modifying, run_self_modifying_steps, BOTH),
}
EVERY = [(name, options) for name, memory in MEMORIES.items() for options in memory.options]
"""Every memory with every objective and every way of reading."""


def tokens(
    name: str, rows: int, length: int, dtype: torch.dtype = torch.float64, decay: float = 0.9, seed: int = 0
) -> Inputs:
    """Random tokens of 2 heads of width 4 (linear: values of width 3), float64 rounded to dtype."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(rows, 2, length, *shape, generator=draw, dtype=torch.float64)

    if name == "self-modifying":
        offsets = torch.tensor([[-3.0, 0.0], [-1.5, 0.0]], dtype=torch.float64)
        # softplus of this is -log(decay)
        offsets[:, 1] = torch.log(torch.expm1(-torch.log(torch.tensor(decay, dtype=torch.float64))))
        found = {"queries": unit(normal(4)), "features": unit(normal(4)), "offsets": offsets}
    else:
        found = {
            "queries": unit(normal(4)),
            "keys": unit(normal(4)),
            "values": normal(3 if name == "linear" else 4),
            "rates": torch.rand(rows, 2, length, generator=draw, dtype=torch.float64) * (0.5 if name == "mlp" else 1),
            "log_decays": (decay + (1 - decay) * torch.rand(rows, 2, length, generator=draw).double()).log(),
        }
    return {key: x.to(dtype) for key, x in found.items()}


def memory_state(
    name: str, counts: list[int], dtype: torch.dtype = torch.float64, chunk: int = 1, seed: int = 1
) -> State:
    """A random state after `counts` tokens of every row; boundary and running state differ inside a chunk."""
    draw = torch.Generator().manual_seed(seed)
    count = torch.tensor(counts)
    shapes = {"linear": {"": (3, 4)}, "mlp": {"_w1": (4, 5), "_w2": (5, 4)}, "self-modifying": {"": (14, 4)}}[name]
    state = {"count": count}
    for suffix, shape in shapes.items():
        running, other = torch.randn(2, len(counts), 2, *shape, generator=draw, dtype=torch.float64) / 2
        inside = (count % chunk > 0)[:, None, None, None]
        state[f"running{suffix}"] = running.to(dtype)
        state[f"boundary{suffix}"] = torch.where(inside, other, running).to(dtype)
    if name == "self-modifying":
        # No feature may come close to zero where it becomes a key: a direction is then anything.
        for x in state["running"], state["boundary"]:
            x[:, :, :12] += torch.eye(4, dtype=dtype).repeat(3, 1)
    return state


def leaves(*parts: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The floating tensors of states and inputs by name, which take gradients."""
    return [part[key] for part in parts for key in sorted(part) if part[key].is_floating_point()]


def fresh(part: dict[str, torch.Tensor]) -> Inputs:
    """Copies that take gradients of their own."""
    return {k: x.detach().clone().requires_grad_(x.is_floating_point()) for k, x in part.items()}


def weighted(found: tuple[torch.Tensor, State, torch.Tensor]) -> torch.Tensor:
    """A loss that every number of reads, state and surprise takes part in."""
    draw = torch.Generator().manual_seed(5)
    parts = [found[0], found[2], *leaves(found[1])]
    weights = [torch.randn(x.shape, generator=draw, dtype=torch.float64).to(x.dtype) for x in parts]
    return torch.stack([(x * w).sum() for x, w in zip(parts, weights, strict=True)]).sum()


def numbers(found: Any) -> list[torch.Tensor]:
    """Reads, surprise and state of a run."""
    return [found[0], found[2], *leaves(found[1])]


def assert_same(found: Any, expected: Any, dtype: torch.dtype) -> None:
    """Reads, states and surprises are equal up to the dtype's tolerance, relative to the largest number."""
    assert set(found[1]) == set(expected[1]) and torch.equal(found[1]["count"], expected[1]["count"])
    for a, b in zip(numbers(found), numbers(expected), strict=True):
        close(a, b, dtype)


def close(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype, rounding: float = 0.0) -> None:
    """Equal up to the dtype's tolerance relative to the largest number, or to three times `rounding`."""
    assert a.dtype == b.dtype and a.shape == b.shape and bool(torch.isfinite(a).all())
    scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
    torch.testing.assert_close(a, b, rtol=0, atol=max(scale * TOLERANCE[dtype], 3 * rounding))


def results(run: Callable[..., Any], state: State, inputs: Inputs, **options: Any) -> list[torch.Tensor]:
    """Reads, surprise and state of a run, and the gradients of its inputs and of the state before."""
    before, given = fresh(state), fresh(inputs)
    out = run(before, **given, **options)
    gradients = torch.autograd.grad(weighted(out), leaves(before, given), allow_unused=True)
    made = [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves(before, given), strict=True)]
    return [x.detach() for x in (out[1]["count"].double(), *numbers(out), *made)]


def compare(name: str, state: State, inputs: Inputs, dtype: torch.dtype, **options: Any) -> None:
    """The run equals its twin, and so do the gradients of all inputs and of the state before.

    A self-modifying memory makes rounding grow: in float32 its run may differ from its twin by three times what
    rounding does to the twin.
    """
    run, twin = MEMORIES[name].run, MEMORIES[name].twin
    found, expected = results(run, state, inputs, **options), results(twin, state, inputs, **options)
    rounding = [0.0] * len(found)
    if name == "self-modifying" and dtype == torch.float32:
        wide = [{k: x.double() if x.is_floating_point() else x for k, x in part.items()} for part in (state, inputs)]
        exact = results(twin, *wide, **options)
        rounding = [float((a - b).abs().max()) if a.numel() else 0.0 for a, b in zip(expected, exact, strict=True)]
    assert torch.equal(found[0], expected[0])
    for a, b, allowed in zip(found[1:], expected[1:], rounding[1:], strict=True):
        assert allowed < 1e-2 * max(1.0, float(b.abs().max())) if b.numel() else True
        close(a, b, dtype, allowed)
