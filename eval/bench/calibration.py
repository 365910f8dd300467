"""What calibrating a task costs beside a plain forward pass over the same rows.

    python eval/bench/calibration.py                          # 2,000 background rows of 128 tokens, 12 layers, D = 512
    python eval/bench/calibration.py --rows 200 --threads 1   # less, and in seconds of this process alone

Slots stand in the upper half of a Llama of random weights, and rows are random tokens. The plain pass gives logits in
the same batches. `each row once` compares the time with a plain pass over background and task rows; `each reading`
with plain passes over all that calibration asks for, which is the background twice before the first task (statistics,
thresholds). The target is 0.9 by `each row once`. Of the parts, `rest` is what no other part names. `speed.py` times
a first task of few rows, with and without a frozen prefix, in turns with the plain pass.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from model import SIZES, random_base, random_rows, same_weights
from overhead import Clock
from rich.console import Console
from rich.table import Table
from step import Setting
from timing import CPU, default_threads, interleaved
from verdict import Verdict, marked, verdict_table

import nlft.calibrate as calibrate
import nlft.frozen_prefix as frozen_prefix
import nlft.pathways.prototype as prototype
from nlft.base import FrozenBase
from nlft.capture import inference
from nlft.config import PrefixConfig, SparseMemoryConfig
from nlft.data.template import Encoded
from nlft.methods import build_method
from nlft.methods.calibration import batches
from nlft.methods.protocol import TaskContext
from nlft.prefix_store import PrefixStore

TARGET = 0.9
"""Least speed of a calibration, in that of a plain forward pass."""
FEW_TASK, FEW_BACKGROUND, FEW_SLOTS = 16, 80, 500
"""Rows and slots in the one table of ratios."""


@dataclass(frozen=True)
class Measured:
    """One calibration."""

    name: str
    seconds: float
    once: int
    """Tokens of the rows that it read."""
    readings: int
    """The same, by how often it asked for them."""
    parts: dict[str, float]


def main() -> None:
    """Prints the tables."""
    ask = argparse.ArgumentParser(description="Calibration beside a forward pass.")
    ask.add_argument("--rows", type=int, default=2000, help="of the background")
    ask.add_argument("--tokens", type=int, default=128)
    ask.add_argument("--task-rows", type=int, default=100)
    ask.add_argument("--slots", type=int, default=1500)
    ask.add_argument("--size", choices=tuple(SIZES), default="small")
    ask.add_argument("--threads", type=int, default=default_threads())
    ask.add_argument("--memory-gb", type=float, default=PrefixConfig().memory_gb)
    ask.add_argument("--no-prefix", action="store_true", help="keep nothing")
    args = ask.parse_args()
    torch.set_num_threads(args.threads)
    size = SIZES[args.size]
    base = random_base(size, CPU, torch.float32)
    background = random_rows(size, args.rows, args.tokens)
    tasks = [random_rows(size, args.task_rows, args.tokens, seed=seed) for seed in (1, 2)]
    learner = upper_half(size.L, args.slots)
    clock = Clock(time.process_time if args.threads == 1 else time.perf_counter)
    plain = plain_speed(base, background, clock)
    model = attached(learner, base)
    spy(clock)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        if not args.no_prefix:
            config = PrefixConfig(memory_gb=args.memory_gb)
            frozen_prefix.install_prefix(model, "random", config, PrefixStore(Path(folder), config))
        for number, rows in enumerate(tasks, start=1):
            earlier = [row for task in tasks[: number - 1] for row in task]
            found.append(measured(clock, learner, model, number, rows, earlier, background))
            learner.end_task(model)
    table = Table("", "seconds", "each row once", "each reading", title=f"Speed, of a plain pass ({plain:,.0f} tok/s)")
    for one in found:
        speeds = [tokens / one.seconds / plain for tokens in (one.once, one.readings)]
        table.add_row(one.name, f"{one.seconds:.1f}", *(f"{speed:.2f}" for speed in speeds))
    parts = Table("part", *(one.name for one in found), title="Seconds by part")
    for part in sorted({part for one in found for part in one.parts}, key=lambda part: -found[0].parts.get(part, 0)):
        parts.add_row(part, *(f"{one.parts.get(part, 0):.2f}" for one in found))
    verdicts = [Verdict(f"{one.name}, each row once", one.once / one.seconds / plain, TARGET, False) for one in found]
    for shown in (table, parts, verdict_table(verdicts)):
        Console(width=110).print(shown)


def calibration(setting: Setting) -> tuple[list[Table], list[Verdict]]:
    """The first task of few rows, for the one table of ratios."""
    base = random_base(setting.size, setting.device, setting.dtype)
    task = random_rows(setting.size, FEW_TASK, setting.tokens, seed=1)
    background = random_rows(setting.size, FEW_BACKGROUND, setting.tokens, seed=2)
    learner = upper_half(setting.size.L, FEW_SLOTS)

    def begin(prefix: PrefixConfig | None) -> None:
        model = attached(learner, base)
        if prefix is not None:
            frozen_prefix.install_prefix(model, "random", prefix, PrefixStore(None, prefix))
        beginning(learner, model, 1, task, [], background)

    kinds = {"prefix off": partial(begin, None), "prefix on": partial(begin, PrefixConfig(memory_gb=8))}
    runs = {"forward": lambda: plain_passes(base, [*task, *background]), **kinds}
    times = interleaved(runs, max(2, setting.rounds // 2), setting.device)
    title = f"Calibration of {FEW_SLOTS} slots, upper half, {FEW_TASK + FEW_BACKGROUND} rows"
    table = Table("", "s", "speed / forward, each row once", title=title)
    table.add_row("forward", f"{median(times['forward']):.2f}", "1.00")
    found = []
    for name in kinds:
        speed = median(a / b for a, b in zip(times["forward"], times[name], strict=True))
        table.add_row(name, f"{median(times[name]):.2f}", marked(speed, TARGET, at_most=False))
        found.append(Verdict(f"calibration / forward: {name}", speed, TARGET, at_most=False))
    return [table], found


def upper_half(L: int, slots: int) -> Any:
    """The method that is calibrated."""
    return build_method(
        SparseMemoryConfig(kind="sparse_memory", lr=0.1, layers=list(range(L - L // 2, L)), slots=slots)
    )


def attached(learner: Any, base: Any) -> Any:
    """A model of the method around the very weights of a base."""
    return learner.attach(FrozenBase(same_weights(base), None, "random", None, "random", frozenset(), 2048), 0)


def plain_passes(base: Any, rows: list[Encoded]) -> None:
    """Forward passes that give logits, in the batches of calibration."""
    device = next(base.parameters()).device
    with inference(base):
        for batch in batches(rows, 0):
            base(**batch.to(device).inputs(), use_cache=False)


def plain_speed(base: Any, rows: list[Encoded], clock: Clock) -> float:
    """Tokens a second of plain passes."""
    plain_passes(base, rows[:1])  # warms up
    begun = clock.now()
    plain_passes(base, rows)
    return count(rows) / (clock.now() - begun)


def beginning(
    learner: Any, model: Any, number: int, rows: list[Encoded], earlier: list[Encoded], background: list[Encoded]
) -> None:
    """Begins a task."""
    learner.begin_task(
        model,
        TaskContext(
            f"task {number}", rows, earlier, background, number, n_tasks=2, batch_size=16, pad_id=0, seed=number
        ),
    )


def measured(
    clock: Clock,
    learner: Any,
    model: Any,
    number: int,
    rows: list[Encoded],
    earlier: list[Encoded],
    background: list[Encoded],
) -> Measured:
    """Calibrates a task."""
    clock.seconds.clear()
    clock.enter("rest")
    beginning(learner, model, number, rows, earlier, background)
    clock.leave()
    parts = {part: seconds for part, seconds in clock.seconds.items() if part != "outside"}
    once = count(rows) + count(earlier) + count(background)
    return Measured(
        "first task" if number == 1 else "second task",
        sum(parts.values()),
        once,
        once + (count(background) if number == 1 else 0),
        parts,
    )


def count(rows: list[Encoded]) -> int:
    """Tokens."""
    return sum(len(row.ids) for row in rows)


def spy(clock: Clock) -> None:
    """Puts the clock around the parts of a calibration."""
    clock.open = ["outside"]
    for home, name, part in (
        (calibrate, "run_until_captured", "forward passes, from the prefix on"),
        (frozen_prefix, "run_until_captured", "forward passes, the prefix"),
        (calibrate.Moments, "add", "moments"),
        (calibrate, "whitener", "whitening: eigenvectors"),
        (prototype, "spherical_kmeans", "k-means"),
        (prototype, "largest_cosine", "largest cosines"),
        (calibrate.KeptInputs, "find", "kept inputs: found, and memories asked"),
        (calibrate.KeptInputs, "add", "kept inputs: kept"),
    ):
        setattr(home, name, clock.around(getattr(home, name), lambda part=part: part))


if __name__ == "__main__":
    main()
