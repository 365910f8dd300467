"""Look-up of the prototypes that fire: in two levels, all at once, as whole products, and a dense layer of that size.

    python eval/bench/lookup.py            # one thread, float32, CPU; about a minute
    python eval/bench/lookup.py --million  # and 10⁶ keys: two minutes and 5 GB more

Keys of width 256 and values of width 512. `clustered` keys lie 30° around 250 centres, with thresholds of 0.70 to 1.10
as calibration leaves them on the built-in base (a third to a half of all keys cannot fire). `scattered` keys have
random directions and a threshold of 0.25: groups must be useless there. Half of the queries are near a key. Times are
CPU seconds of the process, medians over rounds in which all take turns; `peak` is resident memory above what lay there
before.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from nlft.ops.prototype_read import prototype_read
from nlft.ops.search import fired, grouped, indexed
from nlft.ops.slots import prototype_scores
from nlft.peak import read_peak, reset_peak

WIDTH, OUT = 256, 512
SIZES = [(1, 1000), (1, 10_000), (1, 100_000), (1024, 1000), (1024, 10_000), (256, 100_000)]
"""Tokens and keys."""
MILLION = [(1, 1_000_000), (64, 1_000_000)]
ROUNDS = 5


def main() -> None:
    """Prints one table."""
    torch.set_num_threads(1)
    table = Table(
        "keys", "M", "N", "fire", "two levels", "all at once", "every score", "nn.Linear", "peak", "of it", "index"
    )
    with torch.inference_mode():
        for kind in ("clustered", "scattered"):
            for tokens, slots in SIZES + MILLION * ("--million" in sys.argv):
                table.add_row(kind, f"{slots:,}", f"{tokens:,}", *row(kind, tokens, slots))
    console = Console(width=140)
    console.print(table)
    console.print(
        "Milliseconds a look-up. `all at once`: keys that can fire, and the values of those that do. `every score`:"
        " relu((q K - t)) V.\nnn.Linear: 256 to M and back to 512. `peak`: MB of `all at once` and, `of it`, of `every"
        " score`. `index`: ms to build the groups; `-`: refused."
    )


def row(kind: str, tokens: int, slots: int) -> list[str]:
    """One row of the table."""
    torch.manual_seed(0)
    if kind == "clustered":
        keys = around(torch.randn(250, WIDTH).repeat(slots // 250, 1), 30)
        thresholds = (0.95 + 0.1 * torch.randn(len(keys))).clamp(0.7, 1.1)
    else:
        keys, thresholds = F.normalize(torch.randn(slots, WIDTH), dim=1), torch.full((slots,), 0.25)
    near = around(keys[torch.randint(slots, (tokens,))], 10)
    queries = torch.where(torch.arange(tokens)[:, None] % 2 == 0, F.normalize(torch.randn(tokens, WIDTH), dim=1), near)
    values = torch.randn(slots, OUT)
    layer, back = (torch.nn.Linear(*shape, bias=False) for shape in ((WIDTH, slots), (slots, OUT)))
    index = indexed(keys, thresholds)
    begun = time.process_time()
    groups = grouped(index, keys)
    built = time.process_time() - begun
    runs: dict[str, Callable[[], Any]] = {
        "two": lambda: prototype_read(queries, keys, thresholds, values, None, index._replace(groups=groups)),
        "all": lambda: prototype_read(queries, keys, thresholds, values, None, index),
        "every": lambda: prototype_scores(queries, keys, thresholds) @ values,
        "linear": lambda: back(layer(queries).relu_()),
    }
    if groups is None:
        del runs["two"]
    torch.testing.assert_close(runs["all"](), runs["every"](), rtol=1e-3, atol=1e-3)
    peaks = [peak(runs[name]) for name in ("all", "every")]
    times = {name: 1e3 * value for name, value in turns(runs).items()}
    found = fired(queries, keys, thresholds, index, tokens * slots)
    assert found is not None
    return [
        f"{len(found.tokens) / tokens / slots:.5f}",
        *(f"{times[name]:.3g}" if name in times else "-" for name in ("two", "all", "every", "linear")),
        *(f"{size / 2**20:.0f}" for size in peaks),
        f"{1e3 * built:.0f}" if groups is not None else "-",
    ]


def around(centres: torch.Tensor, degrees: float) -> torch.Tensor:
    """Directions at this angle from centres [N, K], [N, K] of length 1."""
    centres = F.normalize(centres, dim=1)
    side = torch.randn_like(centres)
    side = F.normalize(side - (side * centres).sum(1, keepdim=True) * centres, dim=1)
    angle = torch.tensor(degrees).deg2rad()
    return F.normalize(angle.cos() * centres + angle.sin() * side, dim=1)


def turns(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median CPU seconds; each takes several calls a turn where one is too short to time."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            calls, begun = 0, time.process_time()
            while calls == 0 or time.process_time() - begun < 0.02:
                run()
                calls += 1
            found[name].append((time.process_time() - begun) / calls)
    return {name: median(times) for name, times in found.items()}


def peak(run: Callable[[], Any]) -> int:
    """Bytes that a call needs above what is there."""
    cpu = torch.device("cpu")
    reset_peak(cpu)
    before = read_peak(cpu).process
    run()
    after = read_peak(cpu).process
    return (after or 0) - (before or 0)


if __name__ == "__main__":
    main()
