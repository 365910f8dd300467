"""Memories of sequences: chunks against single tokens, error and speed, and titans-pytorch beside them.

    python eval/bench/hope.py            # one thread, float32, CPU; some minutes
    python eval/bench/hope.py 256 1024   # these lengths only

One sequence of 4 heads. Times are medians over rounds in which all candidates take turns. `single` takes one token at a
time: for `linear, dot` the plain loop `delta_steps`, for the others the tests' twin (the MLP's takes its gradients
by torch.func). Errors are the largest difference from the twin, of reads and of the state behind the last token, over
the largest number. titans-pytorch's memory runs without momentum and without its norm and residual, as ours does.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from nlft.ops.chunk_grid import State, unit
from nlft.ops.delta_memory import delta_steps, new_memory, run_memory, run_memory_steps
from nlft.ops.mlp_memory import new_mlp_memory, run_mlp_memory, run_mlp_memory_steps
from nlft.ops.self_modifying import join_memories, run_self_modifying, run_self_modifying_steps

HEADS, CHUNKS, ROUNDS = 4, (32, 64, 128), 3
RUNS: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]] = {
    "linear, dot": (run_memory, run_memory_steps, {}),
    "linear, l2": (run_memory, run_memory_steps, {"objective": "l2"}),
    "mlp, l2": (run_mlp_memory, run_mlp_memory_steps, {"objective": "l2"}),
    "self-modifying, dot": (run_self_modifying, run_self_modifying_steps, {}),
}
SIZES = [("linear, dot", 32), ("linear, dot", 64), ("linear, l2", 64), ("mlp, l2", 32), ("self-modifying, dot", 32)]


def main(lengths: list[int]) -> None:
    """Prints three tables."""
    torch.set_num_threads(1)
    console = Console(width=150)
    columns = ["memory", "m", "T", "C", "error f64", "error f32", "forward: single", "chunks", "faster"]
    grid = Table(*columns, "+ backward: single", "chunks", "faster")
    for name, width in SIZES:
        for length in lengths:
            compare(grid, name, width, length)
    console.print(grid)
    grid = Table("memory", "m", "bytes of state of one sequence at one layer")
    for name, width in SIZES:
        state, _ = tokens(name, width, 1, torch.float32)
        grid.add_row(name, str(width), f"{sum(x.nbytes for x in state.values()):,}")
    console.print(grid)
    compare_titans(console, max(lengths))


def tokens(name: str, width: int, length: int, dtype: torch.dtype) -> tuple[State, dict[str, torch.Tensor]]:
    """A fresh state and random tokens."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    def square() -> torch.Tensor:
        return normal(HEADS, width, width) / width**0.5

    rows = (1, HEADS, length)
    queries, keys, values = unit(normal(*rows, width)), unit(normal(*rows, width)), normal(*rows, width)
    rates, log_decays = torch.sigmoid(normal(*rows)), -nn.functional.softplus(normal(*rows) - 5)
    if name.startswith("self"):
        eye = torch.eye(width, dtype=torch.float64)
        start = join_memories(square(), eye + square() / 4, eye + square() / 4, *normal(2, HEADS, width) / 50)
        offsets = torch.tensor([[-2.0, -7.0]] * HEADS, dtype=torch.float64)
        return new_memory(start.to(dtype), 1), cast(dtype, queries=queries, features=keys, offsets=offsets)
    if name.startswith("mlp"):
        # An MLP memory stays bounded for values of length 1 and small rates only.
        values, rates = unit(values), rates / 5
        state = new_mlp_memory((square().to(dtype) / 4, square().to(dtype)), 1)
    else:
        state = new_memory(square().to(dtype), 1)
    rest = {"rates": rates, "log_decays": log_decays}
    return state, cast(dtype, queries=queries, keys=keys, values=values, **rest)


def cast(dtype: torch.dtype, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Inputs of a dtype that take gradients."""
    return {key: x.to(dtype).requires_grad_() for key, x in inputs.items()}


def compare(grid: Table, name: str, width: int, length: int) -> None:
    """Rows for one memory at one length."""
    run, twin, options = RUNS[name]
    errors: dict[tuple[int, torch.dtype], float] = {}
    for dtype in (torch.float64, torch.float32):
        state, given = tokens(name, width, length, dtype)
        for chunk in CHUNKS:
            with torch.no_grad():
                found, expected = (r(state, **given, chunk=chunk, **options) for r in (run, twin))
            pairs = [(found[0], expected[0]), *((found[1][k], expected[1][k]) for k in state if k != "count")]
            errors[chunk, dtype] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    state, given = tokens(name, width, length, torch.float32)
    times: dict[tuple[Any, bool], list[float]] = {}
    for _ in range(ROUNDS):
        for backward in (False, True):
            for chunk in (None, *CHUNKS):
                call = run if chunk is not None else steps if name == "linear, dot" else twin
                seconds = clock(lambda c=call, n=chunk: c(state, **given, chunk=n or 64, **options)[:2], backward)
                times.setdefault((chunk, backward), []).append(seconds * 1e3)
    singles = {backward: times[None, backward] for backward in (False, True)}
    for chunk in CHUNKS:
        row = [name, str(width), str(length), str(chunk)]
        row += [f"{errors[chunk, dtype]:.0e}" for dtype in (torch.float64, torch.float32)]
        for backward in (False, True):
            one, chunks = median(singles[backward]), median(times[chunk, backward])
            row += [f"{one:.0f} ms", f"{chunks:.1f} ms", f"{one / chunks:.1f} x"]
        grid.add_row(*row)


def steps(state: State, chunk: int, **given: torch.Tensor) -> tuple[torch.Tensor, State]:
    """The plain loop over tokens of a linear memory under the dot objective, whatever the chunk."""
    q, k, v, rates, log_decays = (given[key] for key in ("queries", "keys", "values", "rates", "log_decays"))
    reads, end = delta_steps(state["running"], q, k, rates[..., None] * v, rates, log_decays)
    return reads, {"running": end}


def clock(call: Callable[[], Any], backward: bool) -> float:
    """Seconds of a call, and of the gradients of everything that it returns."""
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        out, state = call()
        if backward:
            total = out.sum() + torch.stack([x.sum() for k, x in state.items() if k != "count"]).sum()
            total.backward()
    return time.perf_counter() - start


class Memory(nn.Module):
    """One of our memories between the projections that titans-pytorch's has too."""

    def __init__(self, name: str, width: int, chunk: int, reads: dict[str, str]) -> None:
        super().__init__()
        self.name, self.chunk, self.reads = name, chunk, reads
        inner = HEADS * width
        self.norm, self.project = nn.RMSNorm(inner), nn.Linear(inner, 3 * inner, bias=False)
        self.rate, self.decay = nn.Linear(inner, HEADS), nn.Linear(inner, HEADS)
        self.output = nn.Linear(inner, inner, bias=False)
        start = tokens(name, width, 1, torch.float32)[0]
        self.first = nn.ParameterDict({key: x[0] for key, x in start.items() if key.startswith("running")})

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, State]:
        x = self.norm(x)
        query, key, value = self.project(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        rates, log_decays = self.rate(x).sigmoid().mT, -nn.functional.softplus(self.decay(x) - 5).mT
        if self.name.startswith("mlp"):
            value, rates = unit(value), rates / 5
            state = new_mlp_memory((self.first["running_w1"], self.first["running_w2"]), len(x))
        else:
            state = new_memory(self.first["running"], len(x))
        run = RUNS[self.name][0]
        given = unit(query), unit(key), value, rates, log_decays
        reads, state, _ = run(state, *given, self.chunk, objective="l2", **self.reads)
        return self.output(reads.transpose(1, 2).flatten(2)), state


def compare_titans(console: Console, length: int) -> None:
    """Tokens a second, forward and backward, beside titans-pytorch's NeuralMemory at equal width and heads."""
    if importlib.util.find_spec("titans_pytorch") is None:
        console.print("titans-pytorch is not installed, so nothing is compared with it (pip install titans-pytorch).")
        return
    from titans_pytorch import MemoryMLP, NeuralMemory  # pyright: ignore[reportMissingImports]

    grid = Table("memory", "m", "T", "C", "gradients taken", "forward and backward", "tokens a second")
    for width in (32, 64):
        for chunk in (32, 64):
            models: dict[tuple[str, str], nn.Module] = {}
            for name, reads, layers in (("linear, l2", {"reads": "boundary"}, 1), ("mlp, l2", {}, 2)):
                kind = name.split(",")[0]
                models[f"{kind}, ours", "at every boundary"] = Memory(name, width, chunk, reads)
                for batch, when in ((chunk, "at every boundary"), (None, "at the start of the pass")):
                    models[f"{kind}, titans-pytorch", when] = NeuralMemory(
                        dim=HEADS * width,
                        heads=HEADS,
                        dim_head=width,
                        chunk_size=chunk,
                        batch_size=batch,
                        model=MemoryMLP(width, depth=layers, expansion_factor=1.0),
                        momentum=False,
                        mem_model_norm_add_residual=False,
                    )
            x = torch.randn(1, length, HEADS * width)
            times: dict[tuple[str, str], list[float]] = {}
            for _ in range(ROUNDS):
                for key, model in models.items():
                    start = time.perf_counter()
                    model(x)[0].sum().backward()
                    times.setdefault(key, []).append(time.perf_counter() - start)
            for (name, when), seconds in times.items():
                row = [name, str(width), str(length), str(chunk), when]
                grid.add_row(*row, f"{median(seconds) * 1e3:.0f} ms", f"{length / median(seconds):,.0f}")
    console.print(grid)


if __name__ == "__main__":
    main([int(x) for x in sys.argv[1:]] or [256, 1024, 4096])
