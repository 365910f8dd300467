"""Look-up of the prototypes that fire: in two levels, all at once, as whole products, and a dense layer of that size.

    python eval/bench/lookup.py            # one thread, float32, CPU; about a minute
    python eval/bench/lookup.py --million  # and 10⁶ keys: two minutes and 5 GB more

Keys of width 256 and values of width 512, `clustered` as calibration leaves them, or `scattered` so that groups must
be useless (`model.addresses`). Half of the queries are near a key. Times are medians over rounds in which all take
turns, CPU seconds of the process where one thread works; `peak` is what tensors hold beyond what lay there before, the
index being there, whose turned copy of the keys that can fire is a column of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from memory import peak_bytes
from model import addresses, around
from rich.console import Console
from rich.table import Table
from step import Setting
from timing import CPU, interleaved
from verdict import Verdict

from nlft.ops.prototype_read import prototype_read
from nlft.ops.search import grouped, indexed
from nlft.ops.slots import prototype_scores

WIDTH, OUT = 256, 512
SIZES = [(1, 1000), (1, 10_000), (1, 100_000), (1024, 1000), (1024, 10_000), (256, 100_000)]
"""Tokens and keys."""
MILLION = [(1, 1_000_000), (64, 1_000_000)]
FEW = [(1, 2000), (1024, 2000), (1, 20_000), (1024, 20_000)]
"""Those of the one table of ratios."""
ROUNDS, LEAST = 5, 0.02
"""Rounds, and seconds of a turn."""


def main() -> None:
    """Prints one table."""
    torch.set_num_threads(1)
    Console(width=150).print(lookups(SIZES + MILLION * ("--million" in sys.argv)))


def lookup(setting: Setting) -> tuple[list[Table], list[Verdict]]:
    """Few sizes, for the one table of ratios; always on the CPU, where the look-up is one of its own."""
    return [lookups(FEW)], []


def lookups(sizes: Sequence[tuple[int, int]]) -> Table:
    """One row for each size, of tokens and keys, and kind of keys."""
    table = Table(
        "keys", "M", "N", "fire", "two levels", "all at once", "every score", "nn.Linear", "peak", "of it",
        "turned keys", "groups", title="Look-ups, ms",
    )  # fmt: skip
    with torch.inference_mode():
        for kind in ("clustered", "scattered"):
            for tokens, slots in sizes:
                table.add_row(kind, f"{slots:,}", f"{tokens:,}", *row(kind, tokens, slots))
    table.caption = (
        "`all at once`: keys that can fire, and the values of those that do. `every score`: relu((q K - t)) V."
        " nn.Linear: 256 to M and back to 512. `peak`: MB of `all at once`, and `of it` of `every score`. `turned"
        " keys`: MB that the index keeps. `groups`: ms to build them; `-`: refused."
    )
    return table


def row(kind: str, tokens: int, slots: int) -> list[str]:
    """One row of the table."""
    torch.manual_seed(0)
    keys, thresholds = addresses(kind, slots, WIDTH)
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
    sizes = [peak_bytes(runs[name], CPU) for name in ("all", "every")]
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times = {name: 1e3 * median(found) for name, found in interleaved(runs, ROUNDS, CPU, clock, LEAST).items()}
    share = float((prototype_scores(queries, keys, thresholds) > 0).float().mean())
    return [
        f"{share:.5f}",
        *(f"{times[name]:.3g}" if name in times else "-" for name in ("two", "all", "every", "linear")),
        *(f"{size / 1e6:.1f}" for size in (*sizes, index.columns.nbytes)),
        f"{1e3 * built:.0f}" if groups is not None else "-",
    ]


if __name__ == "__main__":
    main()
